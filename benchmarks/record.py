"""Record a run for the book: search, retrain the found encoder and its peers, evaluate, write one JSON file.

    python benchmarks/record.py digits
    python benchmarks/record.py cifar10 --data folder:data/cifar10

The second takes CIFAR-10 as a folder with train and test folders, one folder a class. Interrupt it as you like: the
same command goes on where it stopped. Results go to book/results/, run directories to runs/.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from measure import source
from tyro.conf import Positional

from dasvit.complexity import complexity
from dasvit.data import Data, DataSettings, load_data
from dasvit.peers import peers
from dasvit.presets import RETRAIN, SEARCH
from dasvit.retrain import RetrainSettings, make_network, retrain
from dasvit.search import SearchSettings, search

NOTES = {
    "digits": "scikit-learn's digits, split by a seed",
    "cifar10": "CIFAR-10 images re-encoded as JPEG (quality about 75), so accuracies are not those of the originals",
}


@dataclass(frozen=True)
class Record:
    """Search, retrain and evaluate, and write down what came out."""

    name: Positional[Literal["digits", "cifar10"]]
    """digits (preset tiny) or cifar10 (preset small)."""
    data: str | None = None
    """Where the images are, as for dasvit search --data."""
    train_images: int | None = None
    """Training images to use; all by default."""
    test_images: int | None = None
    """Test images to use; all by default."""
    search_epochs: int | None = None
    """Epochs of each search stage, instead of the preset's."""
    epochs: int | None = None
    """Epochs of retraining, instead of the preset's."""
    seeds: int = 3
    """Seeds of retraining: 0, 1, …"""
    random: int = 10
    """Random encoders of the size of the found one, the same for all seeds."""
    threads: int = 2
    """Threads for torch."""
    runs: Path = Path("runs")
    """Where run directories go."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


def settings_of(record: Record) -> tuple[SearchSettings, RetrainSettings]:
    """Return the settings of search and retraining."""
    preset = {"digits": "tiny", "cifar10": "small"}[record.name]
    find, train = SEARCH[preset], RETRAIN[preset]
    data: DataSettings = replace(find.data, train_images=record.train_images, test_images=record.test_images)
    data = replace(data, data=record.data or data.data)
    if record.search_epochs:
        find = replace(find, stages=tuple((depth, ops, record.search_epochs) for depth, ops, _ in find.stages))
    if record.epochs:
        train = replace(train, epochs=record.epochs, warmup_epochs=max(1, record.epochs // 10))
    return replace(find, data=data), replace(train, data=data)


def run(record: Record, folder: Path) -> dict[str, Any]:
    """Do what is not done yet and return the content of the file."""
    find, train = settings_of(record)
    data: Data = load_data(find.data, image_size=find.image_size, seed=find.seed)
    found = search(find, data, folder / "search", resume=(folder / "search").exists(), progress=True)
    rows = []
    for seed in range(record.seeds):
        own = replace(train, seed=seed)
        others = peers(found.genotype, own, data.train, count=record.random, space=find.space)
        for network, settings in others.items():
            path = folder / f"{network}-{seed}"
            result = retrain(settings, data, path, resume=path.exists(), progress=True)
            cost = complexity(make_network(settings, data.train), settings.image_size)
            row = {"network": network, "genotype": settings.genotype, "depth": settings.depth, "seed": seed}
            row |= {"parameters": cost.parameters, "macs": cost.macs, "epochs": settings.epochs}
            rows.append({**row, **result.accuracy, "seconds": sum(r["seconds"] for r in result.history)})
    searched = sum(r["seconds"] for r in found.history)
    wall = searched + sum(float(str(r["seconds"])) for r in rows)
    images = {"train_images": len(data.train), "test_images": len(data.test)}
    chosen = {"genotype": found.genotype.to_json(), "seconds": searched, "history": found.history}
    return {
        "provenance": {"seed": find.seed, "wall_seconds": wall},
        "note": NOTES[record.name],
        **images,
        "search": chosen,
        "rows": rows,
    }


def main() -> None:
    """Record a run."""
    record = tyro.cli(Record, description=__doc__)
    torch.set_num_threads(record.threads)
    preset = {"digits": "tiny", "cifar10": "small"}[record.name]
    record.runs.mkdir(parents=True, exist_ok=True)
    told = source()
    content = run(record, record.runs / f"{record.name}_{preset}")
    content["provenance"] = told | content["provenance"]
    record.out.mkdir(parents=True, exist_ok=True)
    path = record.out / f"{record.name}_{preset}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
