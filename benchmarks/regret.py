"""How good is a search? Methods of the family on the landscape's images, what they find trained as its encoders are.

    python benchmarks/regret.py --data folder:data/cifar10
    python benchmarks/regret.py --data folder:data/cifar10 --cell darts 3

Each search has its own seed and runs on one thread, on the 5,000 training images of the landscape. What it finds is
trained three times by the landscape's recipe and held against its table, where there is one: percentile, regret, and
the probability of beating random search at equal seconds. Searches that judge encoders one by one take what they are
told from the table. Interrupt it as you like: the same command goes on where it stopped, with more seeds or methods
too, also from the recorded file alone, in which each row names the commit that made it. ``--cell`` makes one search
again, as it is in the file, and prints its row; with ``--seeds 1`` of the trainings only the first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from landmarks import recipe_of, told
from landscape import TABLE, Grow, settings_of
from measure import begin, one_line, placeless, resumable, source, stopped_after, write
from scipy import stats

from dasvit.counting import complexity
from dasvit.engine.hardware import Hardware
from dasvit.engine.runs import RunFailedError, as_plain
from dasvit.engine.seeds import derive
from dasvit.engine.spread import one_thread, spread
from dasvit.landscape import Answer, Landscape, LandscapeSettings, load
from dasvit.landscape.measuring import images_of, train_one
from dasvit.methods.comparing import anytime, compare, judge
from dasvit.methods.inherited import inherited_accuracy
from dasvit.methods.registry import METHODS
from dasvit.methods.sampling import (
    Outcome,
    best_by_score,
    evolution,
    random_search,
    screened_search,
    successive_halving,
    weights,
)
from dasvit.methods.settings import ScheduleSettings
from dasvit.methods.simulated import from_table
from dasvit.presets import SEARCH
from dasvit.relaxation import Supernet
from dasvit.retraining import make_network, set_apart
from dasvit.searching import SearchSettings, draw_halves, search
from dasvit.space import Genotype
from dasvit.training_free import dss

TRAINING: dict[str, Callable[..., Outcome]] = {
    "random": random_search,
    "screened": partial(screened_search, size=weights),
    "evolution": evolution,
    "successive-halving": successive_halving,
}
SCORING = ("best-dss", "largest")
STAGES = ((1, 8, 4), (2, 5, 4), (2, 3, 4))  # to the depth at which the landscape trains, in two minutes at most
PATHS = 200  # of one-shot, instead of the paper's thousand: as long as its training
FILE = "regret_cifar10.json"
JUDGED = ("judged", "ranking")  # of a row, by the table
LOGGED = ("kinds", "entropy", "skip_weight", "margins", "val_accuracy", "train_loss", "alpha")


@dataclass(frozen=True)
class Regret:
    """Search, train what is found, and hold it against the landscape."""

    data: str
    """Where the images are, as for dasvit search --data."""
    methods: tuple[str, ...] = (*METHODS, *TRAINING, *SCORING)
    """What searches."""
    searches: int = 10
    """Seeds of each method: 0, 1, …"""
    seeds: int = 3
    """Trainings of each encoder found."""
    budget: float = 120.0
    """Seconds that a search may spend which trains encoders one by one, as the table tells them."""
    scored: int = 100
    """Encoders that a search without training scores."""
    ranked: int = 200
    """Encoders of the table that a trained supernet ranks, where it has all candidates."""
    cell: tuple[str, int] | None = None
    """A method and a seed: make this search alone, and print its row."""
    minutes: float | None = None
    """Stop after so many; by default when all is done."""
    jobs: int = 2
    """Processes, of one thread each."""
    table: Path = TABLE
    """The landscape's table."""
    runs: Path = Path("runs")
    """Where finished rows are kept."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


@dataclass(frozen=True)
class Work:
    """What a piece of work is told beside method and seed.

    Args:
        args: The command.
        landscape: How the landscape's encoders are trained.
        find: The settings of a search, before the method.
    """

    args: Regret
    landscape: LandscapeSettings
    find: SearchSettings


def searched(work: Work, method: str, seed: int) -> dict[str, Any]:
    """Search with a method of the registry; return what is known then. A search that fails is told as it failed."""
    settings = METHODS[method](replace(work.find, seed=seed))
    train, _ = set_apart(work.landscape.recipe, images_of(work.landscape.recipe).train)
    start = time.process_time()
    try:
        result = search(settings, train)
    except RunFailedError as error:
        return {"failed": str(error), "seconds": time.process_time() - start}
    found: dict[str, Any] = {"genotype": result.genotype.to_json(), "seconds": time.process_time() - start}
    found["last"] = [{name: row[name] for name in LOGGED} for row in result.history[-2:]]
    found["epochs"] = len(result.history)
    if work.args.table.is_file():
        _, val = draw_halves(settings, train)
        batches = list(val.batches(500, image_size=settings.image_size))
        found["inherited"] = inherited(result.supernet, load(work.args.table).numbers[: work.args.ranked], batches)
    return found


def inherited(supernet: Supernet, numbers: Sequence[int], batches: list[Any]) -> dict[int, float] | None:
    """Return the validation accuracy of encoders with a supernet's weights; nothing where candidates are pruned."""
    space = supernet.space
    if supernet.relaxation.partial > 1 or len(supernet.candidates[0]) < len(space.operations):
        return None
    return {number: inherited_accuracy(supernet, space[number], batches) for number in numbers}


def ranking(row: dict[str, Any], table: Landscape) -> float | None:
    """Return Kendall's τ between a supernet's ranking of encoders and the table's test estimates."""
    if not row.get("inherited"):
        return None
    truth = dict(zip(table.functions, table.estimates("test")[0].tolist(), strict=True))
    own = {int(number): accuracy for number, accuracy in row["inherited"].items()}
    return float(stats.kendalltau(list(own.values()), [truth[number] for number in own]).statistic)


def sampled(work: Work, method: str, seed: int) -> dict[str, Any]:
    """Search by trainings that the table tells of."""
    table = load(work.args.table)
    space, epochs = table.settings.space, table.epochs
    outcome = TRAINING[method](space, from_table(table), work.args.budget, epochs=epochs, seed=seed)
    curve = anytime(table, outcome)
    told = {"genotype": outcome.genotype.to_json(), "seconds": outcome.seconds}
    return {**told, "looked_at": len(outcome.trials), "anytime": curve, "known": len(table)}


def scored(work: Work, method: str, seed: int) -> dict[str, Any]:
    """Search by a score of untrained networks: DSS, or the number of weights."""
    recipe, train = work.landscape.recipe, images_of(work.landscape.recipe).train

    def score(genotype: Genotype) -> tuple[float, float]:
        start = time.process_time()
        torch.manual_seed(derive(seed, "scored", work.landscape.space.number(genotype)))
        network = make_network(replace(recipe, genotype=genotype.to_json()), train)
        if method == "largest":
            value = float(complexity(network.eval(), recipe.image_size).parameters)
        else:
            value = dss(network, recipe.image_size).total
        return value, time.process_time() - start

    outcome = best_by_score(work.landscape.space, score, work.args.scored, seed=seed)
    return {"genotype": outcome.genotype.to_json(), "seconds": outcome.seconds, "looked_at": len(outcome.trials)}


def row_of(work: Work, piece: tuple[str, int]) -> dict[str, Any]:
    """Make one search, and train what it finds; what comes of it depends on nothing else."""
    method, seed = piece
    make = sampled if method in TRAINING else scored if method in SCORING else searched
    with one_thread():
        found = make(work, method, seed)
    if "failed" in found:
        return {"method": method, "seed": seed, **found, "trainings": []}
    recipe, data = work.landscape.recipe, images_of(work.landscape.recipe)
    _, val = set_apart(recipe, data.train)
    assert val is not None
    network = {"name": f"{method} {seed}", "network": found["genotype"]}
    trainings = []
    for again in range(work.args.seeds):
        training = train_one(recipe_of(recipe, network, again), curve_images=1)  # no curve is asked for
        trainings.append(told({"seed": again, **training}, len(val), len(data.test)))
    return {"method": method, "seed": seed, **found, "trainings": trainings}


def answer_of(row: dict[str, Any], table: Landscape) -> Answer:
    """Return what the encoder of a row came to, with the standard error that the table knows of trainings."""
    if not row["trainings"]:
        return Answer(1 / table.classes, 0.0, 0, measured=True)
    values = [one["test"] for one in row["trainings"]]
    error = (table.model("test").variances.seed / len(values)) ** 0.5
    return Answer(sum(values) / len(values), error, len(values), measured=True)


def judged(rows: list[dict[str, Any]], table: Landscape) -> list[dict[str, Any]]:
    """Return the comparison of all methods; each row is told what its search is worth."""
    by_method: dict[str, list[Any]] = {}
    for row in rows:
        one = judge(table, answer_of(row, table), row["seconds"])
        row["judged"], row["ranking"] = as_plain(one), ranking(row, table)
        by_method.setdefault(row["method"], []).append(one)
    return compare(by_method)


def check(args: Regret) -> None:
    """Check the command.

    Raises:
        ValueError: If a method is not known, or needs a table that is not there.
    """
    known = (*METHODS, *TRAINING, *SCORING)
    for method in args.methods if args.cell is None else args.cell[:1]:
        if method not in known:
            raise ValueError(f"unknown method {method!r}; known: {', '.join(known)}")
        if method in TRAINING and not args.table.is_file():
            raise ValueError(f"{method} takes trainings from the landscape's table, which is not there: {args.table}")


def recorded(args: Regret, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the recorded file, as they were logged, if they are of these settings."""
    path = args.out / FILE
    known = json.loads(path.read_text()) if path.is_file() else None
    if known is None or known["settings"] != placeless(as_plain(settings)):
        return []
    made = {"commit": known["provenance"]["commit"]}
    return [made | {name: value for name, value in row.items() if name not in JUDGED} for row in known["rows"]]


def main(args: Regret) -> None:
    """Do what is not done yet and write the file."""
    start = begin(None if args.cell else args.out)
    with one_line():
        check(args)
        landscape = settings_of(Grow(args.data))
        images_of(landscape.recipe)
    recipe = landscape.recipe
    same = {name: getattr(recipe, name) for name in ("data", "image_size", "patch_size", "dim")}
    find = replace(SEARCH["small"], **same, stages=STAGES, hardware=Hardware("cpu", "32-true"))
    find = replace(find, schedule=ScheduleSettings(paths=PATHS))
    work = Work(args, landscape, find)
    if args.cell:
        print(json.dumps(row_of(work, args.cell), indent=1))
        return
    settings = {"search": find, "recipe": recipe, "seeds": args.seeds, "budget": args.budget, "scored": args.scored}
    table = load(args.table) if args.table.is_file() else None
    with resumable(args.runs / "regret", "regret", settings) as run:
        for row in [] if run.history() else recorded(args, settings):
            run.log(row)

        def current() -> list[dict[str, Any]]:  # what a smaller table told is of no more use
            return [row for row in run.history() if row.get("known") in (None, table and len(table))]

        done = {(row["method"], row["seed"]) for row in current()}
        pieces = [(method, seed) for seed in range(args.searches) for method in args.methods]
        pieces = [piece for piece in pieces if piece not in done]
        work_on = partial(row_of, work)
        with stopped_after(args.minutes):
            for row in spread(work_on, pieces, jobs=args.jobs, title="searching", progress=True, done=len(done)):
                run.log({**row, "commit": source()["commit"]})
        rows = current()
    found = {"seed": 0, "settings": as_plain(settings), "ranked": args.ranked}
    if table is not None:
        found |= {"trainings": len(table), "methods": judged(rows, table)}
    write(args.out / FILE, {**found, "rows": rows}, start)


if __name__ == "__main__":
    main(tyro.cli(Regret, description=__doc__))
