"""Several searches, and what their encoders are worth: trained beside their peers, written to one JSON file.

    python benchmarks/record.py digits
    python benchmarks/record.py cifar10 --data folder:data/cifar10

The second takes CIFAR-10 as a folder with train and test folders, one folder a class. Each search has its own seed.
What it finds is trained with several seeds, and so are the published encoder and the plain transformer of equal size.
Random encoders of the size of each found one are drawn by a seed of their own, no function twice, and each is trained
with one of the seeds in turn. All is trained for equal epochs; what then differs from the found encoder by more than
5 % of the operations is trained again for equal operations. Interrupt it as you like: the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
import tyro
from joblib import Parallel, delayed
from measure import begin, resumable, write
from scales import SCALES
from tqdm import tqdm
from tyro.conf import Positional

from dasvit.counting import complexity
from dasvit.data.sources import Data, load_data
from dasvit.engine.runs import as_plain
from dasvit.peers import peers, random_peers
from dasvit.retraining import RetrainSettings, make_network, retrain
from dasvit.searching import SearchResult, SearchSettings, search
from dasvit.space import Genotype

CLOSE = 0.05  # of the operations: within it equal epochs are equal operations
DRAW = 1000  # seed of the first search's random encoders


@dataclass(frozen=True)
class Record:
    """Search, retrain and evaluate, and write down what came out."""

    name: Positional[Literal["digits", "cifar10"]]
    """digits (preset tiny) or cifar10 (preset small, reduced)."""
    data: str | None = None
    """Where the images are, as for dasvit search --data."""
    searches: int = 5
    """Seeds of the search: 0, 1, …"""
    seeds: int = 3
    """Seeds of retraining: 0, 1, …"""
    randoms: int = 4
    """Random encoders for each search."""
    jobs: int = 2
    """Processes, of one thread each."""
    runs: Path = Path("runs")
    """Where run directories go."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


@dataclass(frozen=True)
class Training:
    """One training of the table.

    Args:
        network: What it is called: ``found``, ``published``, ``vit`` or ``random``.
        name: The same with what tells it from others.
        search: Number of the search that it is held against; nothing for those that are held against all.
        settings: How it is trained.
        equal: ``"epochs"`` or ``"macs"``.
    """

    network: str
    name: str
    search: int | None
    settings: RetrainSettings
    equal: Literal["epochs", "macs"] = "epochs"

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        return f"{self.name}-{self.equal}-{self.settings.seed}"


def searched(settings: SearchSettings, data: Data, folder: Path) -> SearchResult:
    """Search, or go on with it."""
    torch.set_num_threads(1)
    return replace(search(settings, data, folder, resume=True), supernet=None)  # it is not sent back


def trained(training: Training, data: Data, folder: Path) -> dict[str, Any]:
    """Train a network, or go on with it, and return its row."""
    torch.set_num_threads(1)
    s, path = training.settings, folder / training.folder
    result = retrain(s, data, path, resume=True)
    cost = complexity(make_network(s, data.train), s.image_size)
    right = (result.predictions == data.test.labels).numpy()
    named = {k: getattr(training, k) for k in ("network", "name", "search", "equal")}
    chosen = {"genotype": s.genotype, "depth": s.depth, "seed": s.seed, "epochs": s.epochs}
    last = {k: result.history[-1][k] for k in ("train_loss", "val_top1", "val_loss")}
    row = {**named, **chosen, "parameters": cost.parameters, "macs": cost.macs, **result.accuracy, **last}
    seconds = round(sum(float(r["seconds"]) for r in result.history), 1)
    return row | {"seconds": seconds, "correct": np.packbits(right).tobytes().hex()}


def draw(found: list[Genotype], train: RetrainSettings, data: Data, count: int) -> list[list[Genotype]]:
    """Return for each found encoder random ones of its size; no function twice, and none that was found."""
    seen, drawn = {genotype.formula for genotype in found}, []
    for number, genotype in enumerate(found):
        others = random_peers(genotype, train, data.train, count=count * 2 * len(found), seed=DRAW + number)
        drawn.append([other for other in others if other.formula not in seen][:count])
        seen |= {other.formula for other in drawn[-1]}
    return drawn


def for_equal_epochs(found: list[Genotype], train: RetrainSettings, data: Data, record: Record) -> list[Training]:
    """Return every training of equal epochs."""
    todo: dict[str, Training] = {}

    def add(network: str, name: str, search: int | None, settings: RetrainSettings) -> None:
        training = Training(network, name, search, settings)
        todo.setdefault(training.folder, training)

    for number, (genotype, others) in enumerate(zip(found, draw(found, train, data, record.randoms), strict=True)):
        known = peers(genotype, train, data.train, count=0)
        for seed in range(record.seeds):
            add("found", f"found-{number}", number, replace(known["found"], seed=seed))
            add("published", "published", None, replace(known["published"], seed=seed))
            depth = known["vit"].depth
            add("vit", f"vit-{depth}", None, replace(known["vit"], seed=seed))
        for i, other in enumerate(others, start=number * record.randoms):
            add("random", f"random-{i}", number, replace(train, genotype=other.to_json(), seed=i % record.seeds))
    return list(todo.values())


def for_equal_macs(todo: list[Training], rows: list[dict[str, Any]]) -> list[Training]:
    """Return the trainings that differ in operations from the found encoders, with the epochs that make them equal."""
    found = {row["search"]: row["macs"] for row in rows if row["network"] == "found"}
    again = []
    for training, row in zip(todo, rows, strict=True):
        ratio = found.get(training.search, fmean(found.values())) / row["macs"]
        if training.network != "found" and abs(ratio - 1) > CLOSE:
            epochs = max(2, round(training.settings.epochs * ratio))
            settings = replace(training.settings, epochs=epochs, warmup_epochs=max(1, epochs // 10))
            again.append(replace(training, settings=settings, equal="macs"))
    return again


def main(record: Record) -> None:
    """Do what is not done yet and write the file."""
    scale = SCALES[record.name]
    out = record.out / f"{record.name}_{scale.preset}.json"
    start, folder = begin(out), record.runs / out.stem
    find, train = scale.settings(record.data)
    data = load_data(train.data, image_size=train.image_size)

    def parallel(function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        todo = [*zip(*arguments, strict=True)]
        done = Parallel(record.jobs, return_as="generator")(delayed(function)(*each) for each in todo)
        return [*tqdm(done, desc=function.__name__, total=len(todo), disable=None)]

    with resumable(folder, "record", {"search": find, "retrain": train}):
        seeds = range(record.searches)
        places = [folder / f"search-{seed}" for seed in seeds]
        results = parallel(searched, [replace(find, seed=seed) for seed in seeds], repeat(data, len(seeds)), places)
        todo = for_equal_epochs([result.genotype for result in results], train, data, record)
        rows = parallel(trained, todo, repeat(data, len(todo)), repeat(folder, len(todo)))
        again = for_equal_macs(todo, rows)
        rows += parallel(trained, again, repeat(data, len(again)), repeat(folder, len(again)))
    searches = [
        {
            "seed": seed,
            "genotype": result.genotype.to_json(),
            "seconds": round(sum(float(row["seconds"]) for row in result.history), 1),
            "history": result.history,
        }
        for seed, result in enumerate(results)
    ]
    images = {"train_images": len(data.train), "test_images": len(data.test)}
    told = {"note": scale.note, **images, "recipe": as_plain(train), "search_recipe": as_plain(find)}
    write(out, {"seed": DRAW, **told, "searches": searches, "rows": rows}, start)


if __name__ == "__main__":
    main(tyro.cli(Record, description=__doc__))
