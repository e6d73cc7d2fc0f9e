"""Which recipe tells encoders apart at the least cost? The pilot of the landscape, on CIFAR-10.

    python benchmarks/pilot.py --data folder:data/cifar10

Every recipe trains the same random encoders with the same seeds. Its learning rate is chosen first, by other encoders
and another seed. All is measured on 10,000 images that no recipe trains on; the test images are not looked at. What a
recipe is worth is its reliability, the share of the variance between trainings that is the encoders' own, and what it
costs is the seconds of one core that an encoder takes until the mean of its trainings is 0.8 reliable.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import tyro
from joblib import Parallel, delayed
from measure import begin, one_line, resumable, write
from scales import SCALES
from tqdm import tqdm

from dasvit.data.images import Augmentation, ImageSet
from dasvit.data.sources import hold_out, load_data
from dasvit.engine.hardware import make_fabric
from dasvit.engine.loop import run_epochs
from dasvit.engine.seeds import derive
from dasvit.landscape import reliability
from dasvit.retraining import Retraining, RetrainSettings, classify, measures
from dasvit.space import SearchSpace

RECIPES: dict[str, dict[str, Any]] = {
    "base": {},
    "shallow": {"depth": 2},
    "short": {"epochs": 8},
    "narrow": {"dim": 24},
    "more images": {"images": 15_000, "epochs": 5},
    "fewer images": {"images": 2_500},
    "plain images": {"augmentation": Augmentation()},
}
"""What each recipe has instead of the base: 4 layers of 48 channels, 5,000 mirrored and cropped images, 15 epochs."""
BASE = {"depth": 4, "dim": 48, "images": 5_000, "epochs": 15}
RATES = (2e-3, 4e-3, 8e-3)
TRIED = 3  # encoders that choose the rate
TESTED = (1_000, 2_000, 5_000, 10_000)
GOAL = 0.8  # reliability
MEASURES = ("top1", "loss")


@dataclass(frozen=True)
class Pilot:
    """Train some encoders by every recipe."""

    data: str
    """Where the images are, as for dasvit search --data."""
    networks: int = 12
    """Random encoders."""
    seeds: int = 3
    """Trainings of each."""
    jobs: int = 2
    """Processes, of one thread each."""
    runs: Path = Path("runs")
    """Where finished rows are kept."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


def settings_of(recipe: str, data: str) -> tuple[RetrainSettings, int]:
    """Return the settings of a recipe, without its learning rate, and its number of training images."""
    _, train = SCALES["cifar10"].settings(data)
    own = BASE | RECIPES[recipe]
    images = replace(train.data, train_images=None, test_images=None)
    images = replace(images, augmentation=own.pop("augmentation", images.augmentation))
    count, epochs = own.pop("images"), own["epochs"]
    return replace(train, **own, data=images, warmup_epochs=max(1, epochs // 10), val_share=0.0), count


def row_alone(settings: RetrainSettings, train: ImageSet, val: ImageSet) -> dict[str, Any]:
    """Train one encoder on one thread, and look at it once, at its end."""
    torch.set_num_threads(1)
    began = time.process_time()
    job = Retraining(settings, train, make_fabric(settings.hardware))
    last = run_epochs(job)[-1]
    trained = time.process_time()
    logits, labels = classify(job.model, val, settings.image_size)
    found = {str(count): measures(logits[:count], labels[:count]) for count in TESTED}
    seconds = {"seconds": trained - began, "test_seconds": time.process_time() - trained}
    return {"train_loss": last["train_loss"], "val": found, **seconds}


def encoders(count: int, use: str) -> list[str]:
    """Draw different encoders with attention."""
    drawn = SearchSpace().shuffled(random.Random(derive(0, use)))
    return [
        genotype.to_json() for _, genotype in zip(range(count), filter(lambda g: g.has_attention, drawn), strict=False)
    ]


def trainings(args: Pilot, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield what is to be trained in two turns: to choose the rates, and, from the rows of that, to measure."""
    tried = product(RECIPES, RATES, encoders(TRIED, "rates"))
    yield [{"turn": "rate", "recipe": r, "lr": lr, "genotype": g, "seed": args.seeds} for r, lr, g in tried]
    rates = chosen_rates(rows)
    measured = product(range(args.seeds), RECIPES, encoders(args.networks, "pilot"))
    yield [{"turn": "measure", "recipe": r, "lr": rates[r], "genotype": g, "seed": seed} for seed, r, g in measured]


def chosen_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the rate of the highest mean accuracy, for each recipe."""

    def accuracy(recipe: str, lr: float) -> float:
        here = {"turn": "rate", "recipe": recipe, "lr": lr}.items()
        return mean(row["val"][str(TESTED[-1])]["top1"] for row in rows if here <= row.items())

    return {recipe: max(RATES, key=lambda lr: accuracy(recipe, lr)) for recipe in RECIPES}


def summary(rows: Sequence[Mapping[str, Any]], recipe: str) -> dict[str, Any]:
    """Return what a recipe is worth and costs, by measure and number of images that it is measured on."""
    here = [row for row in rows if row["turn"] == "measure" and row["recipe"] == recipe]
    by_encoder: dict[str, list[Mapping[str, Any]]] = {}
    for row in here:
        by_encoder.setdefault(row["genotype"], []).append(row)
    training, testing = (mean(row[name] for row in here) for name in ("seconds", "test_seconds"))
    told: dict[str, Any] = {"lr": here[0]["lr"], "seconds": training, "test_seconds": testing}
    for name, count in product(MEASURES, TESTED):
        table = [[row["val"][str(count)][name] for row in of_one] for of_one in by_encoder.values()]
        icc, low, high = reliability(table)
        needed = GOAL * (1 - icc) / ((1 - GOAL) * icc) if icc > 0 else float("inf")  # Spearman and Brown
        cost = max(1.0, needed) * (training + testing * count / TESTED[-1])
        found = {"mean": float(np.mean(table)), "icc": icc, "low": low, "high": high}
        told.setdefault(name, {})[str(count)] = found | {"seconds_to_goal": cost if icc > 0 else None}
    return told


def main(args: Pilot) -> None:
    """Do what is not done yet and write the file."""
    start = begin(args.out)
    with one_line():
        settings = {recipe: settings_of(recipe, args.data) for recipe in RECIPES}
        data = load_data(settings["base"][0].data, image_size=settings["base"][0].image_size)
        rest, val = hold_out(data.train, TESTED[-1] / len(data.train), seed=0)
        assert val is not None
        val = val.subset(torch.randperm(len(val), generator=torch.Generator().manual_seed(0)))
        train = {count: hold_out(rest, count / len(rest), seed=1)[1] for _, count in settings.values()}
        plain = {recipe: asdict(s) | {"images": count} for recipe, (s, count) in settings.items()}
        run = resumable(args.runs / "pilot", "pilot", {"recipes": repr(plain), "networks": args.networks})
    with run:
        for todo in trainings(args, rows := run.history()):
            known = [{name: row[name] for name in todo[0]} for row in rows]
            left = [one for one in todo if one not in known]
            jobs = (
                delayed(row_alone)(
                    replace(settings[one["recipe"]][0], genotype=one["genotype"], lr=one["lr"], seed=one["seed"]),
                    train[settings[one["recipe"]][1]],
                    val,
                )
                for one in left
            )
            done = Parallel(args.jobs, return_as="generator")(jobs)
            for one, row in zip(left, tqdm(done, "trainings", len(left), disable=None), strict=True):
                rows.append(one | row)
                run.log(rows[-1])
    content = {
        "seed": 0,
        "note": SCALES["cifar10"].note.partition(", 3,000")[0],
        "goal": GOAL,
        "recipes": {recipe: BASE | {k: str(v) for k, v in RECIPES[recipe].items()} for recipe in RECIPES},
        "found": {recipe: summary(rows, recipe) for recipe in RECIPES},
        "rows": rows,
    }
    write(args.out / "landscape_pilot.json", content, start)


if __name__ == "__main__":
    main(tyro.cli(Pilot, description=__doc__))
