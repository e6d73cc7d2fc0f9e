"""One training of a landscape, or a bank of them at once, and what is told of it (chapter 11)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from lightning_fabric import seed_everything
from torch import Tensor, nn
from torch.optim import AdamW

from ..data.images import ImageSet
from ..data.sources import Data, DataSettings, load_data
from ..engine.capture import Metrics, Recorded
from ..engine.hardware import make_fabric, recorder_of
from ..engine.loop import cosine_schedule, load_schedule, rates_in_place, run_epochs
from ..engine.seeds import derive
from ..engine.shorter import ROUNDING, changing, shortened
from ..engine.spread import one_thread
from ..retraining import Retraining, RetrainSettings, classify, make_network, set_apart, training_batches
from .banks import Bank, losses
from .settings import LandscapeSettings, recipe_of

CURVES = ("train_loss", "val_correct", "val_loss", "test_correct", "test_loss", "seconds")
"""What is told of each epoch of a training."""


class _Looking:
    """Looks at validation and test images after an epoch: at all after the last one, else at some, always the same.

    Attributes:
        right: Which test images each network takes for what they are.
    """

    right: Bool[Tensor, "g images"]

    def __init__(self, recipe: RetrainSettings, curve_images: int, data: Data, device: torch.device) -> None:
        _, val = set_apart(recipe, data.train, data.val)
        assert val is not None
        self.last, self.size, self.device = recipe.epochs - 1, recipe.image_size, device
        self.parts = {"val": val.to(device), "test": data.test.to(device)}
        self.fewer = {name: some(part, curve_images) for name, part in self.parts.items()}

    def __call__(self, model: nn.Module, epoch: int) -> dict[str, list[Any]]:
        """Return what is counted, with a number for each network."""
        found: dict[str, list[Any]] = {}
        for name, part in (self.parts if epoch == self.last else self.fewer).items():
            logits, labels = classify(model, part, self.size, self.device)
            logits = logits[:, None] if logits.ndim == 2 else logits  # of one network
            self.right = (logits.argmax(dim=-1) == labels[:, None]).T
            found |= {
                f"{name}_correct": self.right.sum(dim=1).tolist(),
                f"{name}_loss": losses(logits, labels).tolist(),
            }
        return found


def some(images: ImageSet, count: int) -> ImageSet:
    """Return so many images of a set, always the same, or all if there are no more."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.subset(order[:count].sort().values)


class MeasuredTraining(Retraining):
    """A training whose test images are looked at as well: of a landscape they choose nothing.

    Args:
        recipe: Of a network.
        curve_images: As of a landscape.
        data: All images.
    """

    def __init__(self, recipe: RetrainSettings, curve_images: int, data: Data) -> None:
        super().__init__(recipe, data.train, make_fabric(recipe.hardware), val=data.val)
        self.look = _Looking(recipe, curve_images, data, self.fabric.device)
        self.worked = 0.0  # seconds of the core that trained the last epoch, whatever else the machine did

    def train(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Take a step on every batch."""
        began = time.process_time()
        yield from super().train(epoch, start)
        self.worked = time.process_time() - began

    def end_epoch(self, epoch: int, means: dict[str, float]) -> dict[str, Any]:
        """Return the row of an epoch, with a number for each network."""
        on_cpu = {"cpu_seconds": self.worked} if self.fabric.device.type == "cpu" else {}
        return {"train_loss": [means["train_loss"]], **on_cpu, **self.look(self.evaluated, epoch)}


class BankTraining:
    """Trainings of encoders of one wiring at once: each takes the steps that it would take alone.

    On a GPU the step is recorded, once it has been seen to do what the eager one does.

    Args:
        settings: Of the landscape.
        piece: Number and seed of each training; one seed, so that all see the same images.
        data: All images.

    Raises:
        ValueError: If the recipe mixes or erases images, which draws from the global generator for each network.
    """

    title = "training a bank"

    def __init__(self, settings: LandscapeSettings, piece: Sequence[tuple[int, int]], data: Data) -> None:
        recipes = [recipe_of(settings, *training) for training in piece]
        self.recipe = recipe = recipes[0]
        for name in ("mixup", "cutmix", "erase", "drop_path", "ema", "teacher", "init_from"):
            if getattr(recipe, name):
                raise ValueError(f"{name} is not for banks: train one encoder at a time")
        self.fabric = make_fabric(recipe.hardware)
        train, _ = set_apart(recipe, data.train, data.val)
        self.images = train.to(self.fabric.device)
        self.epochs, self.steps = recipe.epochs, len(train) // recipe.batch_size
        networks = []
        for own in recipes:
            seed_everything(derive(own.seed, "weights"), verbose=False)
            networks.append(make_network(own, data.train))
        bank = Bank(networks, settings.space, [number for number, _ in piece])
        device = self.fabric.device
        self.recorder = recorder_of(recipe.hardware, self.fabric)
        capturable = device.type == "cuda" and self.recorder is not None
        groups = bank.to(device).weight_groups(recipe.weight_decay)
        optimizer = AdamW(groups, lr=recipe.lr, fused=True, capturable=capturable)
        self.schedule = cosine_schedule(optimizer, self.epochs * self.steps, recipe.warmup_epochs * self.steps)
        if self.recorder is not None:
            rates_in_place(optimizer, device)
        self.model, self.optimizer = self.fabric.setup(bank, optimizer)
        self.total = torch.zeros(len(piece), device=device, dtype=next(bank.parameters()).dtype)
        self._recorded: Recorded | None = None
        self._warm, self._checked = False, self.recorder is None
        self.look = _Looking(recipe, settings.curve_images, data, device)

    def train(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Take a step of all networks on every batch."""
        self.total.zero_()
        self.model.train()
        for images, labels in training_batches(self.recipe, self.images, self.fabric, epoch, start):
            if not self._checked and self._warm:
                self._shorten(images, labels)
            self._warm = True  # the first step is eager: only then has the optimiser what it gathers in
            yield self._take(images, labels)

    def _take(self, images: Tensor, labels: Tensor) -> Metrics:
        metrics = self._step(images, labels) if self._recorded is None else self._recorded(images, labels)
        self.schedule.step()
        return metrics

    def _step(self, images: Tensor, labels: Tensor) -> Metrics:
        own = losses(self.model(images), labels, self.recipe.label_smoothing)
        self.fabric.backward(own.sum())  # of a sum each network's weights get their own gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.total += own.detach()
        return {"train_loss": own.detach().mean()}

    def _shorten(self, images: Tensor, labels: Tensor) -> None:
        """Go over to a recorded step, if it does what the eager one does; else one line says why not."""
        recorder = self.recorder
        assert recorder is not None

        def take() -> Metrics:
            rate = self.schedule.state_dict()
            metrics = self._take(images, labels)
            load_schedule(self.schedule, rate)
            return metrics

        def shorten() -> None:
            self._recorded = Recorded(self._step, (images, labels), recorder)

        tensors = changing(self.model.state_dict(), {"weights": self.optimizer}) | {"value total": self.total}
        rounding = ROUNDING.get(self.fabric.strategy.precision.precision, 0.1)
        why, self._checked = shortened(tensors, take, shorten, rounding), True
        if why is not None:
            self._recorded = None
            print(f"dasvit: {self.title}: steps stay eager, the shorter ones fail: {why}", file=sys.stderr)

    def end_epoch(self, epoch: int, means: dict[str, float]) -> dict[str, Any]:
        """Return the row of an epoch, with a number for each network."""
        return {"train_loss": (self.total / self.steps).tolist(), **self.look(self.model, epoch)}

    def state_dict(self) -> dict[str, Any]:
        """Return the weights."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the weights."""
        self.model.load_state_dict(state)


def train_some(settings: LandscapeSettings, piece: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return the rows of a training, or of a bank of them; they depend on nothing but the arguments."""
    if len(piece) == 1:
        (training,) = piece
        told = [train_one(recipe_of(settings, *training), settings.curve_images)]
    else:
        with one_thread():
            told = _told(BankTraining(settings, piece, images_of(settings.recipe)))
    return [{"number": n, "seed": seed, **row} for (n, seed), row in zip(piece, told, strict=True)]


def train_one(recipe: RetrainSettings, curve_images: int) -> dict[str, Any]:
    """Return what is told of one training: :data:`CURVES`, and which test images are taken for what they are."""
    with one_thread():
        (row,) = _told(MeasuredTraining(recipe, curve_images, images_of(recipe)))
    return row


def _told(job: MeasuredTraining | BankTraining) -> list[dict[str, Any]]:
    epochs = run_epochs(job)
    rows = []
    for i, right in enumerate(job.look.right):
        curves = {name: [row[name][i] for row in epochs] for name in CURVES[:-1]}
        seconds = {"seconds": [row.get("cpu_seconds", row["seconds"]) / len(job.look.right) for row in epochs]}
        rows.append({**curves, **seconds, "correct": np.packbits(right.cpu().numpy()).tobytes().hex()})
    return rows


def images_of(recipe: RetrainSettings) -> Data:
    """Return the images of a recipe, read once by a process."""
    return _images(recipe.data, recipe.image_size)


@cache
def _images(data: DataSettings, image_size: int) -> Data:
    return load_data(data, image_size=image_size)
