"""Which recipe trains? Learning rate, then augmentation, then epochs, each chosen on validation images.

    python benchmarks/tune.py digits
    python benchmarks/tune.py cifar10 --data folder:data/cifar10

The plain transformer, the published encoder and two random ones are trained with every value, each with two seeds: the
same effort for all. One recipe is chosen for all of them, by the mean of their validation accuracies; what each would
have chosen for itself stands beside it. Then the learning rate of the search, by the supernet's accuracy on the half of
α at the end of the first stage. Test images are not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
import tyro
from joblib import Parallel, delayed
from measure import begin, one_line, resumable, write
from scales import SCALES
from tyro.conf import Positional

from dasvit.data.images import Augmentation
from dasvit.data.sources import Data, load_data
from dasvit.encoder import BASELINE, genotypes
from dasvit.engine.hardware import make_fabric
from dasvit.engine.loop import run_epochs
from dasvit.peers import random_peers
from dasvit.retraining import Retraining, RetrainSettings
from dasvit.searching import SearchSettings, search

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
AUGMENTATIONS = {
    "digits": {"none": Augmentation(), "shift": Augmentation(shift=0.125)},
    "cifar10": {
        "mirror, shift": Augmentation(flip=True, shift=0.125),
        "none": Augmentation(),
        "mirror, crop": Augmentation(flip=True, min_crop=0.5),
    },
}
SEARCH_RATES = (1e-3, 2e-3, 4e-3)


@dataclass(frozen=True)
class Tune:
    """Choose learning rate, augmentation and epochs."""

    name: Positional[Literal["digits", "cifar10"]]
    """digits (preset tiny) or cifar10 (preset small, reduced)."""
    data: str | None = None
    """Where the images are, as for dasvit search --data."""
    epochs: tuple[int, ...] = (15, 30)
    """Epochs to try; the first while the rest is chosen."""
    seeds: int = 2
    """Seeds of each training."""
    jobs: int = 2
    """Processes, of one thread each."""
    runs: Path = Path("runs")
    """Where finished rows are kept."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


def trained(settings: RetrainSettings, data: Data) -> dict[str, float]:
    """Train a network and return its accuracy and loss on the validation images."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    last = run_epochs(Retraining(settings, data.train, make_fabric(settings.hardware)))[-1]
    kept = {name: last[name] for name in ("train_loss", "val_top1", "val_loss")}
    return kept | {"seconds": time.perf_counter() - began}


def searched(settings: SearchSettings, data: Data) -> dict[str, float]:
    """Search the first stage and return the supernet's accuracy and loss on the half of α."""
    torch.set_num_threads(1)
    last = search(replace(settings, stages=settings.stages[:1]), data).history[-1]
    return {name: last[name] for name in ("train_loss", "val_accuracy", "val_loss", "seconds")}


class Tuning:
    """Values tried one after the other, with finished rows kept between calls.

    Args:
        args: The command.
    """

    def __init__(self, args: Tune) -> None:
        self.args = args
        self.find, self.train = SCALES[args.name].settings(args.data)
        self.train = replace(self.train, val_share=0.2)
        self.images = load_data(self.train.data, image_size=self.train.image_size)
        published = genotypes()["dasvit-cifar10"]
        drawn = random_peers(published, self.train, self.images.train, count=2, seed=100)
        named = {"published": "dasvit-cifar10"} | {f"random-{i}": g.to_json() for i, g in enumerate(drawn)}
        self.networks = {"vit": BASELINE} | named
        settings = {"train": self.train, "find": self.find, "networks": self.networks, "seeds": args.seeds}
        self.run = resumable(args.runs / f"tune_{args.name}", "tune", {k: str(v) for k, v in settings.items()})
        self.rows = self.run.history()

    def measure(self, value: Mapping[str, Any], settings: RetrainSettings) -> None:
        """Train every network with every seed, if that is not done yet."""
        todo = [(n, seed) for n in self.networks for seed in range(self.args.seeds) if not self.of(value, n, seed)]
        jobs = (
            delayed(trained)(replace(settings, genotype=self.networks[n], seed=seed), self.images) for n, seed in todo
        )
        for (network, seed), row in zip(todo, Parallel(self.args.jobs, return_as="generator")(jobs), strict=True):
            self.note({**value, "network": network, "seed": seed, **row})

    def note(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)
        self.run.log(row)

    def of(self, value: Mapping[str, Any], network: str | None = None, seed: int | None = None) -> list[dict[str, Any]]:
        """Return the rows of a value, all or those of a network and seed."""
        wanted = {**value, **({"network": network} if network else {}), **({"seed": seed} if seed is not None else {})}
        return [row for row in self.rows if wanted.items() <= row.items()]

    def choose(self, values: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the value of the highest mean validation accuracy, and each network's own."""

        def best(network: str | None) -> dict[str, Any]:
            return max(values, key=lambda value: mean(row["val_top1"] for row in self.of(value, network)))

        return best(None), {network: best(network) for network in self.networks}


def recipe(tuning: Tuning) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Choose rate, augmentation and epochs in turn; return the recipe, and what was chosen at each turn."""
    augmentations, epochs = AUGMENTATIONS[tuning.args.name], tuning.args.epochs
    chosen: dict[str, Any] = {"lr": None, "augmentation": next(iter(augmentations)), "epochs": epochs[0]}
    told = []
    for what, options in (("lr", RATES), ("augmentation", tuple(augmentations)), ("epochs", epochs)):
        values = [chosen | {what: option} for option in options]
        for value in values:
            data = replace(tuning.train.data, augmentation=augmentations[value["augmentation"]])
            warmup = max(1, value["epochs"] // 10)
            settings = replace(tuning.train, data=data, lr=value["lr"], epochs=value["epochs"], warmup_epochs=warmup)
            tuning.measure(value, settings)
        chosen, own = tuning.choose(values)
        told.append(
            {"what": what, "tried": list(options), "chosen": chosen[what], "own": {n: v[what] for n, v in own.items()}}
        )
    return chosen, told


def search_rate(tuning: Tuning) -> float:
    """Choose the learning rate of the search's weights."""
    for lr in SEARCH_RATES:
        for seed in range(tuning.args.seeds):
            if not tuning.of({"search_lr": lr}, seed=seed):
                row = searched(replace(tuning.find, lr=lr, seed=seed), tuning.images)
                tuning.note({"search_lr": lr, "seed": seed, **row})
    return max(SEARCH_RATES, key=lambda lr: mean(row["val_accuracy"] for row in tuning.of({"search_lr": lr})))


def main(args: Tune) -> None:
    """Do what is not done yet and write the file."""
    start = begin(args.out)
    with one_line():
        tuning = Tuning(args)
    chosen, told = recipe(tuning)
    content = {
        "seed": 100,
        "note": SCALES[args.name].note,
        "networks": tuning.networks,
        "validation_images": round(0.2 * len(tuning.images.train)),
        "settings": asdict(tuning.train) | {"hardware": None},
        "recipe": chosen,
        "choices": told,
        "search_lr": search_rate(tuning),
        "rows": tuning.rows,
        "seconds": sum(row["seconds"] for row in tuning.rows),
    }
    write(args.out / f"tune_{args.name}.json", content, start)


if __name__ == "__main__":
    main(tyro.cli(Tune, description=__doc__))
