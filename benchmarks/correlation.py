"""Do indicators rank networks as training does? Score and train random networks, write both to one JSON file.

    python benchmarks/correlation.py digits
    python benchmarks/correlation.py cifar10 --data folder:data/cifar10

Networks of the space autoformer-xs, trained from scratch. Each is scored with three seeds of two kinds of weights:
those that training starts from, and those that TF-TAS scores, slices of one set of deviation 0.02. Interrupt it as you
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
from joblib import Parallel, delayed
from lightning_fabric import seed_everything
from measure import begin, resumable, write
from scales import SCALES
from tqdm import tqdm
from tyro.conf import Positional

from dasvit.data.sources import Data, load_data
from dasvit.engine.hardware import make_fabric
from dasvit.engine.loop import run_epochs
from dasvit.engine.runs import as_plain
from dasvit.engine.seeds import derive
from dasvit.retraining import Retraining, RetrainSettings, evaluate
from dasvit.training_free import INDICATORS, SPACES, Probe, Shape, TFSearchSettings, score
from dasvit.training_free.search import draw
from dasvit.vit import VisionTransformer

SPACE = "autoformer-xs"
WEIGHTS = ("trained", "shared")  # those that training starts from, and TF-TAS's: slices of one set


@dataclass(frozen=True)
class Correlate:
    """Score and train random networks."""

    name: Positional[Literal["digits", "cifar10"]]
    """digits (preset tiny) or cifar10 (preset small, reduced)."""
    data: str | None = None
    """Where the images are, as for dasvit retrain --data."""
    samples: int = 60
    """Networks."""
    epochs: int | None = None
    """Epochs of training, instead of the preset's."""
    weight_seeds: int = 3
    """Seeds of the weights that are scored."""
    jobs: int = 2
    """Processes, of one thread each."""
    runs: Path = Path("runs")
    """Where the rows are kept, in a folder of their own."""
    out: Path = Path("book/results")
    """Where the JSON file goes."""


def settings_of(args: Correlate) -> RetrainSettings:
    """Return the settings of training: every image trains, nothing is chosen here."""
    _, train = SCALES[args.name].settings(args.data)
    train = replace(train, val_share=0.0)
    return replace(train, epochs=args.epochs, warmup_epochs=args.epochs // 10) if args.epochs else train


def row_of(number: int, settings: RetrainSettings, data: Data, args: Correlate) -> dict[str, Any]:
    """Score one network with several seeds of its weights, and train it."""
    began = time.perf_counter()
    space, images = SPACES[SPACE], data.train
    sizes = {"image_size": settings.image_size, "patch_size": settings.patch_size}
    sizes |= {"in_channels": images.channels, "num_classes": len(images.classes)}
    batch, labels = next(images.batches(16, image_size=settings.image_size, seed=0))
    scores: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in INDICATORS} for kind in WEIGHTS}
    for seed in range(args.weight_seeds):
        shape = Shape(**sizes, seed=seed)
        for kind in WEIGHTS:
            model = start_of(number, shape, settings) if kind == "trained" else space.build(number, shape)
            probe = Probe(settings.image_size, images=batch, labels=labels, seed=seed)
            for name in INDICATORS:
                scores[kind][name].append(score(model, name, probe)["total"])
    job = Retraining(settings, images, make_fabric(settings.hardware), start_of(number, Shape(**sizes), settings))
    last = run_epochs(job)[-1]
    tested = evaluate(job.model, data.test, settings.image_size)
    parameters = space.parameters(number, Shape(**sizes))
    scored = {f"scores_{kind}": values for kind, values in scores.items()}
    row = {"number": number, **space.describe(number), "parameters": parameters, **scored}
    return row | {"train_loss": last["train_loss"], **tested, "seconds": round(time.perf_counter() - began, 3)}


def row_alone(*arguments: Any) -> dict[str, Any]:
    """Return a row, computed on one thread.

    A function of its own: cloudpickle takes ``images.classes`` in one that names torch for the module torch.classes.
    """
    torch.set_num_threads(1)
    return row_of(*arguments)


def start_of(number: int, shape: Shape, settings: RetrainSettings) -> VisionTransformer:
    """Return a network with the weights that its training with this seed starts from."""
    seed_everything(derive(shape.seed, "weights"), verbose=False)
    return SPACES[SPACE].fresh(number, shape, settings.init)


def main(args: Correlate) -> None:
    """Do what is not done yet and write the file."""
    out = args.out / f"correlation_{args.name}.json"
    start = begin(out)
    settings = settings_of(args)
    data = load_data(settings.data, image_size=settings.image_size)
    numbers = draw(
        TFSearchSettings(SPACE, args.samples, image_size=settings.image_size, patch_size=settings.patch_size)
    )
    depends = {"space": SPACE, "samples": args.samples, "train": settings, "weight_seeds": args.weight_seeds}
    with resumable(args.runs / out.stem, "correlation", depends) as run:
        left = numbers[len(run.history()) :]
        work = (delayed(row_alone)(number, settings, data, args) for number in left)
        for row in tqdm(
            Parallel(args.jobs, return_as="generator")(work), desc="networks", total=len(left), disable=None
        ):
            run.log(row)
        rows = run.history()
    told = {"space": SPACE, "epochs": settings.epochs, "train_images": len(data.train), "test_images": len(data.test)}
    write(out, {"seed": settings.seed, **told, "recipe": as_plain(settings), "rows": rows}, start)


if __name__ == "__main__":
    main(tyro.cli(Correlate, args=sys.argv[1:]))
