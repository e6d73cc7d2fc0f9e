"""Do indicators rank networks as training does? Score and train random networks, write both to one JSON file.

    python benchmarks/correlation.py digits
    python benchmarks/correlation.py cifar10 --data folder:data/cifar10

Networks of the space autoformer-xs, scored with three seeds of weights, then trained from scratch. Interrupt it as you
like: the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from lightning_fabric import seed_everything
from measure import begin, resumable, write
from tqdm import tqdm
from tyro.conf import Positional

from dasvit.data import Data, DataSettings, load_data
from dasvit.hardware import Hardware, make_fabric
from dasvit.loop import run_epochs
from dasvit.presets import RETRAIN
from dasvit.retrain import Retraining, RetrainSettings
from dasvit.training_free import INDICATORS, SPACES, Probe, Shape, TFSearchSettings, score
from dasvit.training_free.search import draw

SPACE = "autoformer-xs"


@dataclass(frozen=True)
class Correlate:
    """Score and train random networks."""

    name: Positional[Literal["digits", "cifar10"]]
    """digits (8 pixels) or cifar10 (32 pixels)."""
    data: str | None = None
    """Where the images are, as for dasvit retrain --data."""
    samples: int = 60
    """Networks."""
    train_images: int | None = None
    """Training images to use; all by default."""
    test_images: int | None = None
    """Test images to use; all by default."""
    epochs: int = 10
    """Epochs of training."""
    weight_seeds: int = 3
    """Seeds of the weights that are scored."""
    threads: int = 1
    """Threads for torch."""
    runs: Path = Path("runs")
    """Where the rows are kept, in a folder of their own."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


def settings_of(args: Correlate) -> RetrainSettings:
    """Return the settings of training."""
    train = RETRAIN[{"digits": "tiny", "cifar10": "small"}[args.name]]
    data: DataSettings = replace(train.data, train_images=args.train_images, test_images=args.test_images)
    data = replace(data, data=args.data or data.data)
    sizes = {"digits": (8, 2), "cifar10": (32, 4)}[args.name]
    train = replace(train, data=data, image_size=sizes[0], patch_size=sizes[1], hardware=Hardware(precision="32-true"))
    return replace(train, epochs=args.epochs, warmup_epochs=max(1, args.epochs // 10))


def row_of(number: int, settings: RetrainSettings, data: Data, args: Correlate) -> dict[str, Any]:
    """Score one network with several seeds of its weights, and train it."""
    space, images = SPACES[SPACE], data.train
    sizes = {"image_size": settings.image_size, "patch_size": settings.patch_size}
    sizes |= {"in_channels": images.channels, "num_classes": len(images.classes)}
    batch, labels = next(images.batches(16, image_size=settings.image_size, seed=0))
    scores: dict[str, list[float]] = {name: [] for name in INDICATORS}
    for seed in range(args.weight_seeds):
        model = space.build(number, Shape(**sizes, seed=seed))
        probe = Probe(settings.image_size, images=batch, labels=labels, seed=seed)
        for name in INDICATORS:
            scores[name].append(score(model, name, probe)["total"])
    fabric = make_fabric(settings.hardware)
    seed_everything(settings.seed, verbose=False)
    network = space.fresh(number, Shape(**sizes), settings.init)
    job = Retraining(settings, data, fabric, network)
    last = run_epochs(job)[-1]
    trained = {k: last[k] for k in ("train_loss", "top1", "loss")}
    parameters = space.parameters(number, Shape(**sizes))
    return {"number": number, **space.describe(number), "parameters": parameters, "scores": scores, **trained}


def main(args: Correlate) -> None:
    """Do what is not done yet and write the file."""
    out = args.out / f"correlation_{args.name}.json"
    start = begin(out)
    torch.set_num_threads(args.threads)
    settings = settings_of(args)
    data = load_data(settings.data, image_size=settings.image_size)
    numbers = draw(
        TFSearchSettings(SPACE, args.samples, image_size=settings.image_size, patch_size=settings.patch_size)
    )
    depends = {"space": SPACE, "samples": args.samples, "train": settings, "weight_seeds": args.weight_seeds}
    with resumable(args.runs / out.stem, "correlation", depends | {"threads": args.threads}) as run:
        seconds = sum(row["seconds"] for row in run.history())
        for number in tqdm(numbers[len(run.history()) :], desc="networks"):
            began = time.perf_counter()
            row = row_of(number, settings, data, args)
            run.log({**row, "seconds": round(time.perf_counter() - began, 3)})
        rows = run.history()
    told = {"space": SPACE, "epochs": settings.epochs, "train_images": len(data.train), "test_images": len(data.test)}
    write(out, {"seed": settings.seed, **told, "rows": rows}, start - seconds)


if __name__ == "__main__":
    main(tyro.cli(Correlate, args=sys.argv[1:]))
