"""Searches that judge encoders one by one: random, evolution, successive halving, training-free (chapter 12).

They are told of an encoder by a function, so that the same code runs with real trainings and on a landscape, where a
search of hours takes seconds. What a search is charged are the seconds that its trainings take, or would have taken.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from ..space import Genotype, SearchSpace

Evaluate = Callable[[Genotype, int, int], tuple[float, float]]
"""From encoder, epochs and seed: validation accuracy after so many epochs, and seconds of the training until then."""


@dataclass(frozen=True)
class Trial:
    """An encoder that was looked at.

    Args:
        genotype: The encoder.
        epochs: For how many epochs it was trained; 0 of one that was not.
        score: Its validation accuracy, or its score.
        seconds: What the search had been charged when this was known.
    """

    genotype: Genotype
    epochs: int
    score: float
    seconds: float


@dataclass
class Spending:
    """A search in progress: what it looked at, and what that cost.

    Args:
        evaluate: Tells of an encoder.
        limit: Seconds; a training that begins before they are over is finished and charged.
    """

    evaluate: Evaluate
    limit: float
    spent: float = 0.0
    trials: list[Trial] = field(default_factory=list)

    @property
    def left(self) -> bool:
        """Whether there are seconds left."""
        return self.spent < self.limit

    def look(self, genotype: Genotype, epochs: int, seed: int, paid: float = 0.0) -> tuple[float, float]:
        """Train an encoder, of which some seconds were paid before; return its accuracy and all its seconds."""
        score, seconds = self.evaluate(genotype, epochs, seed)
        self.spent += max(0.0, seconds - paid)
        self.trials.append(Trial(genotype, epochs, score, self.spent))
        return score, seconds


@dataclass(frozen=True)
class Outcome:
    """What a search returns.

    Args:
        genotype: The encoder found.
        trials: All that it looked at, in order.
    """

    genotype: Genotype
    trials: tuple[Trial, ...]

    @property
    def seconds(self) -> float:
        """What it was charged."""
        return self.trials[-1].seconds

    def anytime(self) -> Iterator[tuple[float, Genotype]]:
        """Yield after each trial the seconds until then and the best encoder of the most epochs so far."""
        best: Trial | None = None
        for trial in self.trials:
            if best is None or (trial.epochs, trial.score) > (best.epochs, best.score):
                best = trial
            yield trial.seconds, best.genotype


def _best(spending: Spending) -> Outcome:
    return Outcome(max(spending.trials, key=lambda t: (t.epochs, t.score)).genotype, tuple(spending.trials))


def _attending(space: SearchSpace, rng: random.Random) -> Iterator[Genotype]:
    """Yield different functions that see the image, in random order; all if no candidate attends."""
    blind = not any(operation.spec.attends for operation in space.operations)
    return (genotype for genotype in space.shuffled(rng) if blind or genotype.has_attention)


def random_search(space: SearchSpace, evaluate: Evaluate, seconds: float, *, epochs: int, seed: int = 0) -> Outcome:
    """Train random encoders, none twice, until the time is over; the best on validation images is found."""
    return _trained(_attending(space, random.Random(seed)), evaluate, seconds, epochs, seed)


def screened_search(
    space: SearchSpace,
    evaluate: Evaluate,
    seconds: float,
    *,
    epochs: int,
    seed: int = 0,
    size: Callable[[Genotype], float],
    among: int = 10,
) -> Outcome:
    """Random search among large encoders: of so many random ones, none twice, only the largest is trained.

    Not from a paper. Size says something of accuracy and costs nothing; what it does not say, trainings do.

    Args:
        space: The space.
        evaluate: Tells of an encoder.
        seconds: What may be spent.
        epochs: Of each training.
        seed: Draws the encoders.
        size: From an encoder: its size, such as :func:`weights`.
        among: How many are drawn for one that is trained.
    """
    fresh = _attending(space, random.Random(seed))
    large = (max(some, key=size) for some in iter(lambda: list(islice(fresh, among)), []))
    return _trained(large, evaluate, seconds, epochs, seed)


def weights(genotype: Genotype, dim: int = 48) -> int:
    """Return the parameters of an encoder's operations, of one layer with so many channels a token."""
    return sum(operation.spec.count(dim, operation.size) for _, operation in genotype.edges)


def _trained(genotypes: Iterator[Genotype], evaluate: Evaluate, seconds: float, epochs: int, seed: int) -> Outcome:
    spending = Spending(evaluate, seconds)
    for genotype in genotypes:
        spending.look(genotype, epochs, seed)
        if not spending.left:
            break
    return _best(spending)


def mutate(genotype: Genotype, space: SearchSpace, rng: random.Random) -> Genotype:
    """Change the operation on one edge, or what one edge reads, evenly among all such changes."""
    changed = []
    for number, node in enumerate(genotype.nodes):
        sources = [source for source, _ in node]
        for place, (source, operation) in enumerate(node):
            free = [other for other in range(genotype.inputs + number) if other not in sources]
            others = [(source, op) for op in space.operations[1:] if op != operation]
            for edge in others + [(other, operation) for other in free]:
                nodes = list(genotype.nodes)
                nodes[number] = tuple(sorted([*node[:place], edge, *node[place + 1 :]], key=lambda one: one[0]))
                changed.append(Genotype(tuple(nodes), genotype.inputs))
    return rng.choice(changed)


def evolution(
    space: SearchSpace,
    evaluate: Evaluate,
    seconds: float,
    *,
    epochs: int,
    seed: int = 0,
    population: int = 20,
    sample: int = 5,
) -> Outcome:
    """Regularised evolution (Real et al. 2019): the best of a sample has a child by mutation, the oldest dies.

    AmoebaNet-A was found with a population of 100 and samples of 25 among 20,000 encoders (P and S of the paper); a
    search of some tens of trainings would be random with it, so both are a fifth of that here.

    Args:
        space: The space.
        evaluate: Tells of an encoder.
        seconds: What may be spent.
        epochs: Of each training.
        seed: Draws the population, the samples and the mutations.
        population: Encoders alive.
        sample: Of them the best has a child.
    """
    rng, spending = random.Random(seed), Spending(evaluate, seconds)
    alive: deque[tuple[float, Genotype]] = deque()
    fresh = _attending(space, rng)
    while spending.left:
        child = next(fresh, None) if len(alive) < population else None
        if child is None:
            _, parent = max(rng.sample(list(alive), min(sample, len(alive))), key=lambda one: one[0])
            child = mutate(parent, space, rng)
        alive.append((spending.look(child, epochs, seed)[0], child))
        if len(alive) > population:
            alive.popleft()
    return _best(spending)


def successive_halving(
    space: SearchSpace, evaluate: Evaluate, seconds: float, *, epochs: int, seed: int = 0, rate: int = 3
) -> Outcome:
    """Train many encoders for few epochs and go on with the best third, until one is trained to the end.

    Rounds of so many as can be afforded follow each other until the time is over. Jamieson and Talwalkar (2016) keep
    the best half; a third, as here, is the usual η = 3 of Hyperband (Li et al. 2017), of which this is one bracket. A
    training that goes on is charged what is added.

    Args:
        space: The space.
        evaluate: Tells of an encoder.
        seconds: What may be spent.
        epochs: Of a whole training.
        seed: Draws the encoders.
        rate: One of so many goes on.
    """
    rungs = [epochs]
    while rungs[0] >= rate:
        rungs.insert(0, rungs[0] // rate)
    spending, fresh = Spending(evaluate, seconds), _attending(space, random.Random(seed))
    while spending.left:
        entered = [(genotype, 0.0) for _, genotype in zip(range(rate ** (len(rungs) - 1)), fresh, strict=False)]
        for rung in rungs:
            looked = []
            for genotype, paid in entered:
                score, cost = spending.look(genotype, rung, seed, paid)
                looked.append((score, genotype, cost))
            looked.sort(key=lambda one: -one[0])
            entered = [(genotype, cost) for _, genotype, cost in looked[: max(1, len(looked) // rate)]]
        if not entered:
            break
    return _best(spending)


def best_by_score(
    space: SearchSpace, score: Callable[[Genotype], tuple[float, float]], count: int, *, seed: int = 0
) -> Outcome:
    """Score random encoders without training them and take the highest.

    Args:
        space: The space.
        score: From an encoder: its score, and the seconds that this took.
        count: Encoders.
        seed: Draws them.
    """
    spending = Spending(lambda genotype, *_: score(genotype), float("inf"))
    for _, genotype in zip(range(count), _attending(space, random.Random(seed)), strict=False):
        spending.look(genotype, 0, seed)
    return _best(spending)
