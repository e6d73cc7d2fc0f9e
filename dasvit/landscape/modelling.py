"""What a landscape knows of encoders that were not trained: effects of operations, alone and in pairs (chapter 11).

A network's true value is ``μ + Σ a(edge, operation) + Σ b(edge, operation, edge', operation') + r(network)``; the
effects a, b and r are normal around zero. Their three variances are those that make the measured values most likely.
The posterior mean is then a prediction for a network that was not trained, and a shrunken estimate for one that was:
the best of many measured values is partly luck, and this is taken off.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from ..space import SearchSpace, edge_name

ABSENT = "absent"


@dataclass(frozen=True)
class Variances:
    """Variances of the effects, in squares of the unit of what is modelled.

    Args:
        alone: Of what an operation on an edge does.
        pairs: Of what two do together, beyond that.
        rest: Of what is the network's own.
        seed: Of what training it again changes.
    """

    alone: float
    pairs: float
    rest: float
    seed: float


@cache
def features(space: SearchSpace) -> tuple[Float[ndarray, "names alone"], Float[ndarray, "names pairs"]]:
    """Return for each name in a space which operation is on which edge, and which two are on which two.

    Names of one function have the same features, the means of theirs. Rows have length 1 where there is one name.
    """
    edges, levels = [edge_name(e) for e in space.edges], [ABSENT, *map(str, space.operations[1:])]
    chosen = np.zeros((len(space), len(edges), len(levels)), dtype=np.float32)
    for number, genotype in enumerate(space):
        here = {edge_name(edge): str(operation) for edge, operation in genotype.edges}
        for i, edge in enumerate(edges):
            chosen[number, i, levels.index(here.get(edge, ABSENT))] = 1
    alone = chosen.reshape(len(space), -1)
    both = [chosen[:, i, :, None] * chosen[:, j, None, :] for i, j in itertools.combinations(range(len(edges)), 2)]
    pairs = np.concatenate([b.reshape(len(space), -1) for b in both], axis=1)
    pairs = pairs[:, pairs.any(axis=0)]
    return _means(space, alone) / len(edges) ** 0.5, _means(space, pairs) / len(both) ** 0.5


def _means(space: SearchSpace, rows: ndarray) -> ndarray:
    """Replace the row of each name by the mean of those of its function."""
    _, function = np.unique([space.canonical(n) for n in range(len(space))], return_inverse=True)
    order = np.argsort(function, kind="stable")
    starts = np.flatnonzero(np.diff(function[order], prepend=-1))
    sums = np.add.reduceat(rows[order], starts, axis=0)
    return (sums / np.bincount(function)[:, None])[function]


@lru_cache(maxsize=2)
def _products(
    space: SearchSpace, numbers: tuple[int, ...]
) -> tuple[Float[ndarray, "numbers numbers"], Float[ndarray, "numbers numbers"]]:
    """Return the inner products of the features of some networks, which every try of a fit needs."""
    alone, pairs = (rows[list(numbers)].astype(float) for rows in features(space))
    return alone @ alone.T, pairs @ pairs.T


class Model:
    """Means of measured networks, and what they say of all.

    Args:
        space: Their space.
        numbers: Of the networks, each once.
        values: The mean of the trainings of each.
        counts: How many those are.
        variances: As :func:`fit` finds them.
    """

    def __init__(
        self,
        space: SearchSpace,
        numbers: Sequence[int],
        values: Float[ndarray, " n"],
        counts: Float[ndarray, " n"],
        variances: Variances,
    ) -> None:
        self.space, self.numbers, self.variances = space, np.asarray(numbers), variances
        alone, pairs = _products(space, tuple(numbers))
        covariance = variances.alone * alone + variances.pairs * pairs
        covariance[np.diag_indices_from(covariance)] += variances.rest + variances.seed / counts
        self._factor = cho_factor(covariance, lower=True)
        ones = np.ones(len(values))
        self._weights = cho_solve(self._factor, ones)
        self.mean = float(self._weights @ values / self._weights.sum())
        self._solved = cho_solve(self._factor, values - self.mean)
        self.log_likelihood = float(
            -0.5 * (values - self.mean) @ self._solved
            - np.log(np.diag(self._factor[0])).sum()
            - 0.5 * np.log(self._weights.sum())  # μ is estimated too
        )

    def _covariance(self, numbers: ndarray) -> Float[ndarray, "numbers measured"]:
        """Return the covariances that come from the effects of operations."""
        alone, pairs = features(self.space)
        a, b = self.variances.alone, self.variances.pairs
        return np.asarray(
            a * (alone[numbers] @ alone[self.numbers].T) + b * (pairs[numbers] @ pairs[self.numbers].T), dtype=float
        )

    def posterior(self, numbers: Sequence[int]) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
        """Return the posterior mean and standard deviation of networks, measured or not."""
        which = np.asarray(numbers, dtype=int)
        cross = self._covariance(which) + self.variances.rest * (which[:, None] == self.numbers[None])
        alone, pairs = features(self.space)
        prior = self.variances.alone * (alone[which] ** 2).sum(1) + self.variances.pairs * (pairs[which] ** 2).sum(1)
        solved = cho_solve(self._factor, cross.T)
        left = 1 - cross @ self._weights
        variance = prior + self.variances.rest - (cross.T * solved).sum(0) + left**2 / self._weights.sum()
        return self.mean + cross @ self._solved, np.sqrt(np.maximum(variance, 0))


def between_seeds(values: Sequence[Sequence[float]]) -> float:
    """Return the variance between trainings of one network, pooled over networks; 0 if none was trained twice."""
    again = sum(len(own) - 1 for own in values)
    return float(sum(np.var(own) * len(own) for own in values if len(own) > 1) / again) if again else 0.0


def fit(space: SearchSpace, numbers: Sequence[int], values: Sequence[Sequence[float]]) -> Variances:
    """Return the variances under which the measured values are most likely; that of seeds is pooled within networks.

    Args:
        space: The space.
        numbers: Of the networks, each once.
        values: The trainings of each; without a network trained twice the variance of seeds is 0.
    """
    means, counts = np.array([np.mean(v) for v in values]), np.array([len(v) for v in values], dtype=float)
    seed = between_seeds(values)
    scale = max(float(means.var()), 1e-12)

    def of(logs: ndarray) -> Variances:
        alone, pairs, rest = (scale * np.exp(logs)).tolist()
        return Variances(alone, pairs, rest, seed)

    def unlikely(logs: ndarray) -> float:
        return -Model(space, numbers, means, counts, of(logs)).log_likelihood

    found = minimize(unlikely, np.log([0.5, 0.25, 0.1]), method="L-BFGS-B", bounds=[(-9.0, 5.0)] * 3)
    return of(found.x)


def cross_validated(
    space: SearchSpace, numbers: Sequence[int], values: Sequence[Sequence[float]], folds: int = 10
) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
    """Return the mean and standard deviation of each network as predicted without its own fold.

    Args:
        space: The space.
        numbers: Of the networks, in random order.
        values: The trainings of each.
        folds: How many times the variances are fitted, to all networks but those of a fold.
    """
    folds = min(folds, len(numbers))
    mean, sd = np.zeros(len(numbers)), np.zeros(len(numbers))
    for fold in range(folds):
        held = range(fold, len(numbers), folds)
        kept = [i for i in range(len(numbers)) if i not in held]
        own, trained = [numbers[i] for i in kept], [values[i] for i in kept]
        means, counts = np.array([np.mean(v) for v in trained]), np.array([len(v) for v in trained], dtype=float)
        model = Model(space, own, means, counts, fit(space, own, trained))
        mean[held], sd[held] = model.posterior([numbers[i] for i in held])
    return mean, sd


def reliability(values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return the intraclass correlation of trainings by encoder, with its 95 % interval (Shrout and Fleiss 1979).

    Args:
        values: One row for each encoder, with a value for each of its trainings.
    """
    table = np.asarray(values)
    encoders, trainings = table.shape
    between = trainings * table.mean(axis=1).var(ddof=1)
    within = table.var(axis=1, ddof=1).mean()
    freedom = encoders - 1, encoders * (trainings - 1)
    ends = (1.0, stats.f.ppf(0.975, *freedom), stats.f.ppf(0.025, *freedom))
    ratios = (between / within / end for end in ends)
    correlation, low, high = ((ratio - 1) / (ratio + trainings - 1) for ratio in ratios)
    return float(correlation), float(low), float(high)
