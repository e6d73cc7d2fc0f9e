"""The truth of a space: encoders drawn from it, all trained by one recipe (chapter 11)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from ..checks import check_sizes
from ..data.images import Augmentation, ImageSet
from ..data.sources import Data, DataSettings, load_data
from ..engine.checkpoint import expect
from ..engine.hardware import make_fabric
from ..engine.loop import run_epochs
from ..engine.runs import Run
from ..engine.seeds import check_seed, derive
from ..engine.spread import one_thread, spread
from ..retraining import Retraining, RetrainSettings, check_data, classify
from ..space import SearchSpace

RECIPE = RetrainSettings(
    data=DataSettings("cifar10", train_images=15_000, augmentation=Augmentation(flip=True, shift=0.125)),
    image_size=16,
    patch_size=4,
    dim=48,
    depth=2,
    epochs=15,
    warmup_epochs=1,
    batch_size=128,
    lr=8e-3,
    val_share=2 / 3,
)
"""How every encoder is trained, chosen by ``benchmarks/pilot.py``."""

CURVES = ("train_loss", "val_correct", "val_loss", "test_correct", "test_loss", "seconds")
"""What is told of each epoch of a training."""


@dataclass(frozen=True)
class LandscapeSettings:
    """Everything the truth of a space depends on."""

    recipe: RetrainSettings = RECIPE
    """How every encoder is trained."""
    space: SearchSpace = field(default_factory=SearchSpace)
    """The space."""
    networks: int = 1000
    """Encoders drawn: different functions with attention, every one being equally likely."""
    trainings: int = 3
    """Trainings of every tenth encoder; of the others there is one."""
    curve_images: int = 1000
    """Validation images, and test images, looked at after each epoch but the last, which looks at all."""
    draw_seed: int = 0
    """Seed that draws the encoders."""

    def __post_init__(self) -> None:
        check_sizes(trainings=self.trainings, curve_images=self.curve_images)
        check_seed(self.draw_seed, "draw_seed")
        count = len(attending(self.space))
        if not 1 <= self.networks <= count:
            raise ValueError(f"networks {self.networks} is outside 1 … {count:,}, those with attention in the space")
        if self.recipe.val_share == 0:
            raise ValueError("val_share 0 leaves no validation images: choices are not made by test images")


@cache
def attending(space: SearchSpace) -> tuple[int, ...]:
    """Return the numbers of the encoders with attention, one of each function: the others see no image."""
    return tuple(number for number in space.functions() if space[number].has_attention)


def trainings(settings: LandscapeSettings) -> list[tuple[int, int]]:
    """Return the number of an encoder and the seed of each training, in their order.

    A part from the start is a smaller landscape: its encoders are drawn evenly, and a tenth are trained several times.
    """
    numbers = attending(settings.space)
    drawn = random.Random(derive(settings.draw_seed, "landscape")).sample(numbers, settings.networks)
    seeds = (range(settings.trainings if i % 10 == 0 else 1) for i in range(len(drawn)))
    return [(number, seed) for number, several in zip(drawn, seeds, strict=True) for seed in several]


class MeasuredTraining(Retraining):
    """A training whose test images are looked at as well: of a landscape they choose nothing.

    Args:
        settings: Of the landscape.
        number: Of the encoder.
        seed: Of the training.
        data: All images.
    """

    def __init__(self, settings: LandscapeSettings, number: int, seed: int, data: Data) -> None:
        recipe = replace(
            settings.recipe,
            genotype=settings.space[number].to_json(),
            seed=derive(seed, "landscape", number),
        )
        super().__init__(recipe, data.train, make_fabric(recipe.hardware))
        assert self.val is not None
        self.parts = {"val": self.val, "test": data.test.to(self.fabric.device)}
        self.fewer = {name: some(part, settings.curve_images) for name, part in self.parts.items()}
        self.right = torch.zeros(0, dtype=torch.bool)

    def end_epoch(self, epoch: int, means: dict[str, float]) -> dict[str, Any]:
        """Return the row of an epoch."""
        row: dict[str, Any] = {"epoch": epoch, **means}
        for name, part in (self.parts if epoch == self.epochs - 1 else self.fewer).items():
            logits, labels = classify(self.model, part, self.settings.image_size, self.fabric.device)
            self.right = logits.argmax(dim=1) == labels
            row |= {f"{name}_correct": int(self.right.sum()), f"{name}_loss": float(F.cross_entropy(logits, labels))}
        return row


def some(images: ImageSet, count: int) -> ImageSet:
    """Return so many images of a set, always the same, or all if there are no more."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.subset(order[:count].sort().values)


def train_one(settings: LandscapeSettings, training: tuple[int, int]) -> dict[str, Any]:
    """Return the row of one training; it depends on nothing but the arguments.

    ``correct`` says in hexadecimal, a bit an image, which test images are taken for what they are at the end.
    """
    number, seed = training
    recipe = settings.recipe
    with one_thread():
        job = MeasuredTraining(settings, number, seed, _images(recipe.data, recipe.image_size))
        epochs = run_epochs(job)
    curves = {name: [row[name] for row in epochs] for name in CURVES}
    return {"number": number, "seed": seed, **curves, "correct": pack(job.right.cpu())}


@cache
def _images(data: DataSettings, image_size: int) -> Data:
    """Return the images, read once by a process."""
    return load_data(data, image_size=image_size)


def pack(bits: Bool[Tensor, " n"]) -> str:
    """Return booleans as hexadecimal digits, eight in two."""
    return np.packbits(bits.numpy()).tobytes().hex()


def check_row(settings: LandscapeSettings, pieces: list[tuple[int, int]], index: int, row: Mapping[str, Any]) -> None:
    """Check that a logged row is one of :func:`train_one` for the settings.

    Raises:
        ValueError: If it is not, or else an error for what it lacks.
    """
    for name, value in zip(("number", "seed"), pieces[index], strict=True):
        expect(row.get(name), range(value, value + 1), name)
    for name in CURVES:
        expect(len(row[name]), range(epochs := settings.recipe.epochs, epochs + 1), name)
        for value in row[name]:
            expect(value, int if name.endswith("correct") else float, name)
    bytes.fromhex(row["correct"])


def train(
    settings: LandscapeSettings,
    run_dir: str | Path | None = None,
    *,
    jobs: int = 1,
    resume: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Train encoders of a space by one recipe; see :func:`~dasvit.engine.spread.spread` for where it runs.

    Args:
        settings: Everything it depends on.
        run_dir: Where settings and rows go; by default nothing is written.
        jobs: Processes.
        resume: Continue the run in ``run_dir``, or begin it if nothing began there.
        progress: Show progress on stderr.

    Returns:
        A row for each of :func:`trainings`: ``number`` and ``seed``, a value an epoch of each of :data:`CURVES`
        (``…_correct`` counts images, ``…_loss`` is a mean cross-entropy), and ``correct``, see :func:`train_one`.

    Raises:
        ValueError: If the settings do not fit the images, or the directory cannot be used.
        Interrupted: On SIGINT or SIGTERM; every row so far is written.
        RunFailedError: If losses diverge, a process dies or the directory cannot be written.
    """
    pieces = trainings(settings)
    check_data(settings.recipe, _images(settings.recipe.data, settings.recipe.image_size))
    with Run.open(run_dir, "landscape", settings, resume=resume) if run_dir is not None else nullcontext() as run:
        rows = [] if run is None else run.resume_rows(partial(check_row, settings, pieces))
        spread(partial(train_one, settings), pieces, rows, run, jobs=jobs, title="training", progress=progress)
    return rows
