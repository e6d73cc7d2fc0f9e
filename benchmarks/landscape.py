"""The truth of the space: train encoders by the pilot's recipe, and write the table that the package carries.

    python benchmarks/landscape.py --data folder:data/cifar10 --minutes 120
    python benchmarks/landscape.py --data folder:data/cifar10 --check 10

A landscape grows: the command goes on where the last one stopped, also from the recorded table alone, and writes what
is complete. ``--check`` trains some of the recorded encoders again and compares every count.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measure import ROOT, begin, interleaved, one_line, placeless, source, stopped_after, write
from scipy import stats

import dasvit.landscape
from dasvit.counting import complexity
from dasvit.engine.hardware import Hardware
from dasvit.engine.runs import Run, as_plain
from dasvit.landscape import RECIPE, Landscape, LandscapeSettings, cross_validated, load, reliability, train, trainings
from dasvit.landscape.measuring import images_of, train_some
from dasvit.retraining import make_network

TABLE = Path(dasvit.landscape.__file__).parent / "cifar10.safetensors"
ROUNDS = 15  # of measuring latency
COUNTS = ("val_correct", "test_correct", "correct")


@dataclass(frozen=True)
class Grow:
    """Train encoders and write their table."""

    data: str
    """Where the images are, as for dasvit search --data."""
    networks: int = 1000
    """Encoders."""
    minutes: float | None = None
    """Stop after so many, behind a training; by default when all are trained."""
    check: int = 0
    """Train so many of the recorded trainings again instead, and compare."""
    jobs: int = 2
    """Processes, of one thread each."""
    runs: Path = Path("runs")
    """Where finished rows are kept."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""
    table: Path = TABLE
    """Where the table goes."""


def settings_of(args: Grow) -> LandscapeSettings:
    """Return the settings, with the images where they are."""
    recipe = replace(RECIPE, data=replace(RECIPE.data, data=args.data), hardware=Hardware("cpu", "32-true"))
    return LandscapeSettings(recipe, networks=args.networks)


def recorded(args: Grow, settings: LandscapeSettings) -> list[dict[str, Any]]:
    """Return the rows of the recorded table if it is of these settings, or none."""
    if not args.table.exists():
        return []
    known = load(args.table)
    same = as_plain(known.settings) | {"networks": settings.networks} == placeless(as_plain(settings))
    return [dict(row) for row in known.rows] if same else []


def grown(args: Grow, settings: LandscapeSettings) -> list[dict[str, Any]]:
    """Return the rows of all that is trained when the time is over."""
    path = args.runs / "landscape"
    with stopped_after(args.minutes):
        train(settings, path, jobs=args.jobs, known=recorded(args, settings), resume=True, progress=True)
    return Run(path).history()


def check(args: Grow, settings: LandscapeSettings) -> None:
    """Train some of the recorded trainings again; end with 1 if a count differs."""
    rows = recorded(args, settings)
    if not rows:
        raise ValueError(f"{args.table} has no training of these settings")
    different = 0
    for index in random.Random(time.time_ns()).sample(range(len(rows)), min(args.check, len(rows))):
        row = rows[index]
        (again,) = train_some(settings, [(row["number"], row["seed"])])
        same = all(again[name] == row[name] for name in COUNTS)
        different += not same
        print(f"{row['number']:5} seed {row['seed']}: {'the same' if same else 'other counts'}", flush=True)
    raise SystemExit(different > 0)


def costs_of(landscape: Landscape) -> dict[str, list[float]]:
    """Count parameters and multiply-accumulates of the trained encoders, and measure how long one image takes."""
    recipe, train_images = landscape.settings.recipe, images_of(landscape.settings.recipe).train
    torch.set_num_threads(1)
    networks = {}
    for number in landscape.numbers:
        genotype = landscape.settings.space[number].to_json()
        networks[str(number)] = make_network(replace(recipe, genotype=genotype), train_images).eval()
    counted = [complexity(network, recipe.image_size) for network in networks.values()]
    image = torch.zeros(1, train_images.channels, recipe.image_size, recipe.image_size)
    with torch.inference_mode():
        seconds = interleaved({name: partial(network, image) for name, network in networks.items()}, ROUNDS)
    latency = [seconds[str(number)] for number in landscape.numbers]
    counts = {"parameters": [float(c.parameters) for c in counted], "macs": [float(c.macs) for c in counted]}
    return {**counts, "latency": latency}


def noise(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return how far one training can be believed, by the encoders that were trained most often."""
    again = [own for own in values if len(own) > 1]
    again = [own for own in again if len(own) == max(map(len, again))]
    if len(again) < 3:
        return {"encoders": len(again)}
    icc, low, high = reliability(again)
    first, second = ([own[i] for own in again] for i in range(2))
    tau = float(stats.kendalltau(first, second).statistic)
    return {"encoders": len(again), "icc": icc, "low": low, "high": high, "tau_between_seeds": tau}


def predicted(landscape: Landscape, metric: str) -> dict[str, float]:
    """Return how well an encoder is predicted without its own fold, against what its own training could tell.

    ``ceiling`` is the share of the variance of one training that is not noise: no prediction explains more.
    """
    values = landscape.values(metric)
    mean, deviation = cross_validated(landscape.settings.space, landscape.numbers, values)
    first = np.array([own[0] for own in values])
    seed = landscape.model(metric).variances.seed
    inside = np.abs(first - mean) < 1.96 * np.sqrt(deviation**2 + seed)
    explained = 1 - float(np.mean((first - mean) ** 2) / first.var())
    return {
        "r2": explained,
        "ceiling": 1 - seed / float(first.var()),
        "tau": float(stats.kendalltau(mean, first).statistic),
        "inside_95": float(inside.mean()),
        "rmse": float(np.sqrt(np.mean((first - mean) ** 2))),
    }


def summary(landscape: Landscape) -> dict[str, Any]:
    """Return what is told of the table beside the table."""
    metrics = ("test", "val", "test_loss", "val_loss")
    by_epoch = [noise(landscape.values("test", epoch)) for epoch in range(1, landscape.epochs + 1)]
    return {
        "settings": as_plain(landscape.settings),
        "encoders": len(landscape.numbers),
        "trainings": len(landscape),
        "planned": len(trainings(landscape.settings)),
        "functions": len(landscape.functions),
        "noise": {metric: noise(landscape.values(metric)) for metric in metrics},
        "noise_by_epoch": by_epoch,
        "predicted": {metric: predicted(landscape, metric) for metric in metrics},
        "training_seconds": sum(sum(row["seconds"]) for row in landscape.rows),
    }


def main(args: Grow) -> None:
    """Train, and write the table and what is told of it."""
    start = begin(args.out)
    settings = settings_of(args)
    with one_line():
        if args.check:
            check(args, settings)
        rows = grown(args, settings)
        if len(rows) < 5:
            raise ValueError(f"{len(rows)} trainings are too few for a table: give it more minutes")
    told: Mapping[str, Any] = {"provenance": {k: v for k, v in source().items() if k != "modules"}}
    landscape = Landscape.gather(settings, rows, images_of(settings.recipe), about=told)
    landscape = replace(landscape, costs=costs_of(landscape))
    recipe = replace(settings.recipe, data=replace(settings.recipe.data, data=placeless(args.data)))
    landscape = replace(landscape, settings=replace(settings, recipe=recipe))
    landscape.save(args.table)
    note = "CIFAR-10 images re-encoded as JPEG (quality about 75) and reduced to 16 pixels: not those of the originals"
    inside = args.table.resolve().is_relative_to(ROOT)
    table = str(args.table.resolve().relative_to(ROOT)) if inside else args.table.name
    write(args.out / "landscape_cifar10.json", {"seed": 0, "note": note, "table": table, **summary(landscape)}, start)


if __name__ == "__main__":
    main(tyro.cli(Grow, description=__doc__))
