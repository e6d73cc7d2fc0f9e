"""Training a derived network from scratch, and evaluating it (chapter 7; ledger A22, A23, A42)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn
from torch.optim import AdamW

from .calibration import calibration_error, fit_temperature
from .data.images import Batch, ImageSet
from .data.sizes import ImageSize, as_size
from .data.sources import Data, hold_out, load_data
from .encoder import build, resolve
from .engine.capture import Metrics, uncompiled
from .engine.checkpoint import expect
from .engine.hardware import average, compile_network, make_fabric
from .engine.loggers import check_logger, follow
from .engine.loop import (
    check_row,
    check_state,
    cosine_schedule,
    load_moments,
    load_schedule,
    moments,
    run_epochs,
)
from .engine.runs import CheckRow, Run, from_plain
from .engine.seeds import derive
from .engine.shorter import ROUNDING, changing, shortened
from .inspecting import inherited
from .recipe import Recipe, averaged, drop_paths
from .retrain_settings import RetrainSettings as RetrainSettings
from .searching import Loss
from .space import Genotype
from .vit import VisionTransformer, weight_groups

ROW, VALIDATED = {"train_loss": float}, dict.fromkeys(("val_top1", "val_top5", "val_loss"), float)
"""What is logged of an epoch, and what else with validation images."""
LATER = {"val_balanced": float}
"""What else, in rows that no earlier version logged."""
RESULT, PREPARATION = "result.json", "preparation"
"""The file of a run directory with what it came to, and its part that says how images are prepared."""


@dataclass(frozen=True)
class RetrainResult:
    """What a retraining returns.

    Args:
        model: The trained network.
        accuracy: The :func:`measures` on the test set, which is looked at once, at the end.
        history: A row for each epoch, with ``val_top1`` and the other :func:`measures` on the validation images.
        predictions: The class that each test image is taken for.
    """

    model: VisionTransformer
    accuracy: dict[str, float]
    history: list[dict[str, Any]]
    predictions: Int[Tensor, " images"]


def training_batches(
    settings: RetrainSettings, images: ImageSet, fabric: Fabric, epoch: int, start: int
) -> Iterator[Batch]:
    """Yield the training batches of an epoch from number ``start``, of each this device's part."""
    return images.batches(
        settings.batch_size,
        image_size=settings.image_size,
        device=fabric.device,
        augmentation=settings.data.augmentation,
        seed=derive(settings.ordering, "order"),
        epoch=epoch,
        start=start,
        part=(fabric.global_rank, fabric.world_size),
    )


class Retraining:
    """A network in training, to be run by :func:`~dasvit.engine.loop.run_epochs`.

    Args:
        settings: Of the retraining.
        images: Training images, of which those for validation are set apart.
        fabric: Device and precision.
        network: What to train; by default what the settings describe.
        loss: See :func:`retrain`.
        val: Validation images of their own, for which none of ``images`` are set apart.
    """

    title = "retraining"

    def __init__(
        self,
        settings: RetrainSettings,
        images: ImageSet,
        fabric: Fabric,
        network: VisionTransformer | None = None,
        loss: Loss | None = None,
        val: ImageSet | None = None,
    ) -> None:
        self.settings, self.fabric = settings, fabric
        own = val.to(fabric.device) if val is not None else None
        self.images, self.val = set_apart(settings, images.to(fabric.device), own)
        self.epochs, self.steps = settings.epochs, len(self.images) // settings.batch_size
        seed_everything(derive(settings.seed, "weights"), verbose=False)
        self.network = make_network(settings, images) if network is None else network
        drop_paths(self.network, settings.drop_path)
        self.average = averaged(self.network, settings.ema, fabric)
        if settings.hardware.compile:
            compile_network(self.network)
        optimizer = AdamW(weight_groups(self.network, settings.weight_decay), lr=settings.lr, fused=True)
        self.schedule = cosine_schedule(optimizer, self.epochs * self.steps, settings.warmup_epochs * self.steps)
        self.model, self.optimizer = fabric.setup(self.network, optimizer)
        self.recipe = Recipe(settings, images, fabric, loss)
        self._warm, self._checked = False, not settings.hardware.compile
        self._eager = settings.hardware.compile  # until a compiled step has done what an eager one does

    def train(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Take a step on every batch."""
        self.model.train()
        for images, labels in training_batches(self.settings, self.images, self.fabric, epoch, start):
            if not self._checked and self._warm:
                self._check(images, labels)
            self._warm = True  # the first step is eager: only then has the optimiser what it gathers in
            metrics = self._step(images, labels)
            self.schedule.step()
            if self.average is not None:
                self.average.update(self.network, step=self.schedule.last_epoch)
            yield {name: average(value, self.fabric) for name, value in metrics.items()}

    def _step(self, images: Tensor, labels: Tensor) -> Metrics:
        with self.eagerly():
            loss = self.recipe.loss(self.model, images, labels)
            self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"train_loss": loss.detach()}

    def eagerly(self) -> AbstractContextManager[None]:
        """Let nothing run as compiled until it has been checked, and never if it did not stand the check."""
        return uncompiled() if self._eager else nullcontext()

    def _check(self, images: Tensor, labels: Tensor) -> None:
        """Go over to compiled steps, if one does what the eager one does; else one line says why not.

        A compiled network may draw other numbers for drop path than the eager one: it then stays eager.
        """

        def compiled() -> None:
            self._eager = False

        tensors = changing(self.network.state_dict(), {"weights": self.optimizer})
        rounding = ROUNDING.get(self.fabric.strategy.precision.precision, 0.1)
        # a copy: images are mixed in place
        why = shortened(tensors, lambda: self._step(images.clone(), labels), compiled, rounding)
        self._checked, self._eager = True, why is not None
        if why is not None:
            self.optimizer.zero_grad()
            print(f"dasvit: {self.title}: steps stay eager, the compiled ones fail: {why}", file=sys.stderr)

    def end_epoch(self, epoch: int, means: dict[str, float]) -> dict[str, Any]:
        """Return the row of an epoch, with the accuracy on the validation images."""
        if self.val is None:
            return {"epoch": epoch, **means}
        with self.eagerly():
            accuracy = evaluate(self.evaluated, self.val, self.settings.image_size, self.fabric.device)
        return {"epoch": epoch, **means, **{f"val_{name}": value for name, value in accuracy.items()}}

    @property
    def evaluated(self) -> nn.Module:
        """What is evaluated: the network, or the moving average of its weights if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def kept(self) -> VisionTransformer:
        """The same without what Fabric wraps around a network."""
        return self.network if self.average is None else cast(VisionTransformer, self.average.module)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, their moving average if there is one, optimiser and schedule."""
        optimizer, schedule = self.optimizer.state_dict(), self.schedule.state_dict()
        state = {"network": self.network.state_dict(), "optimizer": optimizer, "schedule": schedule}
        return state if self.average is None else {**state, "average": self.average.module.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set what :meth:`state_dict` returned."""
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        load_moments(self.optimizer, state["optimizer"])
        load_schedule(self.schedule, state["schedule"])


def make_network(settings: RetrainSettings, images: ImageSet) -> VisionTransformer:
    """Return the fresh network that the settings describe."""
    return build(
        settings.genotype,
        depth=settings.depth,
        dim=settings.dim,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        in_channels=images.channels,
        num_classes=len(images.classes),
        init=settings.init,
        class_token_last=True,
    )


def set_apart(
    settings: RetrainSettings, images: ImageSet, own: ImageSet | None = None
) -> tuple[ImageSet, ImageSet | None]:
    """Return the images that are trained on, and those for validation.

    Args:
        settings: Of the retraining.
        images: The training images.
        own: Validation images that came apart; they are taken unless the settings want none.

    Raises:
        ValueError: If there are too few.
    """
    share = settings.val_share if own is None else 0.0
    train, val = hold_out(images, share, settings.data.split_seed)
    if settings.val_share and own is not None:
        val = own
    if len(train) < settings.batch_size:
        apart = f", {len(val)} more are for validation" if val is not None else ""
        raise ValueError(f"batch_size {settings.batch_size} is more than the {len(train)} training images{apart}")
    return train, val


@torch.no_grad()
def classify(
    model: nn.Module,
    images: ImageSet,
    image_size: ImageSize,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
) -> tuple[Float[Tensor, " n *classes"], Int[Tensor, " n"]]:
    """Return the logits of a set of images, and their labels.

    Args:
        model: Maps normalised images to logits; put in evaluation mode, and back.
        images: The set.
        image_size: Size in pixels that the images are resized to.
        device: Where the model is.
        batch_size: Images at a time.
    """
    training = model.training
    model.eval()
    batches = images.batches(batch_size, image_size=image_size, device=device)
    logits, labels = map(torch.cat, zip(*((model(x).float(), y) for x, y in batches), strict=True))
    model.train(training)
    return logits, labels


def measures(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Return ``top1``, ``top5`` and ``balanced`` accuracy in [0, 1] and the mean cross-entropy ``loss``.

    The balanced accuracy is the mean over the classes of the share of their images that are taken for what they are: to
    call everything by the most frequent class's name does not pay. Classes without an image do not count.
    """
    classes = logits.shape[1]

    def top(k: int) -> float:
        k = min(k, classes - 1)  # among as many classes as there are, every answer is right
        return float((logits.topk(k).indices == labels[:, None]).any(dim=1).float().mean())

    counts = labels.bincount(minlength=classes)
    right = labels[logits.argmax(dim=1) == labels].bincount(minlength=classes)
    balanced = float((right / counts)[counts > 0].mean())
    return {"top1": top(1), "top5": top(5), "balanced": balanced, "loss": float(F.cross_entropy(logits, labels))}


def evaluate(
    model: nn.Module,
    images: ImageSet,
    image_size: ImageSize,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
) -> dict[str, float]:
    """Return the :func:`measures` of a model over a set of images; its arguments are those of :func:`classify`."""
    return measures(*classify(model, images, image_size, device, batch_size))


def prepare(model: nn.Module, settings: RetrainSettings, data: Data, device: torch.device | str) -> dict[str, Any]:
    """Return as plain data how images are prepared for a network, and the temperature of its probabilities.

    Args:
        model: The trained network.
        settings: Of its training.
        data: Its images; the temperature is fitted on those for validation, without such it is 1.
        device: Where the model is.
    """
    _, val = set_apart(settings, data.train, data.val)
    told: dict[str, Any] = {"temperature": 1.0, "calibration": None}
    if val is not None:
        logits, labels = (x.cpu() for x in classify(model, val.to(device), settings.image_size, device))
        temperature = fit_temperature(logits, labels)
        errors = [calibration_error((logits / t).softmax(1), labels) for t in (1.0, temperature)]
        calibration = {"images": len(labels), "error_before": errors[0], "error_after": errors[1]}
        told = {"temperature": temperature, "calibration": calibration}
    images = data.test.images
    size = as_size(*images.shape[-2:]) if isinstance(images, Tensor) else images.size
    return {"classes": data.train.classes, "mean": data.train.mean, "std": data.train.std, "decoded": size, **told}


def retrain(
    settings: RetrainSettings,
    data: Data,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    progress: bool = False,
    logger: str | None = None,
    loss: Loss | None = None,
) -> RetrainResult:
    """Train a network from scratch on the training images, and evaluate it on the test images, once, at the end.

    Its accuracy there, the class it takes each image for, and how images are prepared for it go to ``result.json``.

    Args:
        settings: Everything it depends on.
        data: Training and test set.
        run_dir: Where settings, metrics, genotype and checkpoints go; by default nothing is written.
        resume: Continue the run in ``run_dir``, or begin it if nothing began there.
        progress: Show progress on stderr.
        logger: ``"csv"`` or ``"tensorboard"``: log the rows also in a folder of this name in ``run_dir``.
        loss: What is descended, from logits and labels (with mixup and CutMix, logits and shares of the classes); by
            default the cross-entropy with the label smoothing that the settings say. What is told of validation and
            test images is the cross-entropy. To resume a run give the same; it is not kept there.

    Raises:
        ValueError: If settings and data do not fit together, or the directory cannot be used.
        Interrupted: On SIGINT or SIGTERM, after the state was saved.
        RunFailedError: If the losses diverge or the directory cannot be written; what was saved before is as it was.
    """
    fabric = make_fabric(settings.hardware)
    check_data(settings, data)
    check_logger(logger)
    start = inherited(settings, data.train)
    opened = None
    if run_dir is not None and fabric.global_rank == 0:
        opened = Run.open(run_dir, "retrain", settings, resume=resume)
    with opened or nullcontext() as run:
        fabric.launch()  # what cannot be run has failed before there are other processes
        if run is not None and isinstance(architecture := resolve(settings.genotype), Genotype):
            run.keep("genotype.json", architecture.to_json())
        check = partial(check_checkpoint, settings, data)
        state = fabric.broadcast(run.load(check, check_rows(settings)) if run is not None and resume else None)
        history = run.history() if run is not None else []
        if run is not None and logger is not None:
            run.on_row = follow(logger, run.path, history)
        job = Retraining(settings, data.train, fabric, start, loss, data.val)
        history += run_epochs(job, run, state, progress=progress and fabric.is_global_zero)
        with job.eagerly():
            preparation = prepare(job.evaluated, settings, data, fabric.device)
            logits, labels = classify(job.evaluated, data.test.to(fabric.device), settings.image_size, fabric.device)
        accuracy, predictions = measures(logits, labels), logits.argmax(dim=1).cpu()
        if run is not None:
            answers = {"images": len(labels), "predictions": predictions.tolist(), "labels": labels.tolist()}
            run.write(RESULT, {**accuracy, **answers, PREPARATION: preparation})
    return RetrainResult(job.kept, accuracy, history, predictions)


def check_data(settings: RetrainSettings, data: Data) -> None:
    """Check that settings and data fit together, before anything is written.

    Raises:
        ValueError: If they do not.
    """
    set_apart(settings, data.train, data.val)
    if data.train.classes != data.test.classes:
        raise ValueError("training and test set differ in their classes: give both the same class folders")
    with torch.device("meta"):
        make_network(settings, data.train)


def check_rows(settings: RetrainSettings) -> CheckRow:
    """Return what checks that a logged row is one of the retraining."""
    positions = [{"epoch": epoch} for epoch in range(settings.epochs)]
    parts = ROW | VALIDATED if settings.val_share else ROW

    def check(number: int, row: dict[str, Any]) -> None:
        check_row(positions, parts | {name: kind for name, kind in LATER.items() if name in row}, number, row)

    return check


def check_checkpoint(settings: RetrainSettings, data: Data, state: Mapping[str, Any]) -> None:
    """Check that a checkpoint is one of the retraining that settings and data describe.

    Raises:
        ValueError: If it is not, or else an error for what its parts lack.
    """
    with torch.device("meta"):
        network = make_network(settings, data.train)
    optimizer = moments(weight_groups(network, settings.weight_decay), state["job"]["optimizer"])
    job = {"network": network.state_dict(), "optimizer": optimizer, "schedule": dict}
    if settings.ema:
        job["average"] = job["network"]
    train, _ = set_apart(settings, data.train, data.val)
    check_state(state, job, epochs=settings.epochs, steps=len(train) // settings.batch_size)


def load_trained(run_dir: str | Path) -> tuple[VisionTransformer, RetrainSettings, Data]:
    """Return the network of a finished or interrupted retraining, its settings, and its data.

    Raises:
        ValueError: If the directory holds no such run.
    """
    run = Run(Path(run_dir))
    settings: RetrainSettings = from_plain(RetrainSettings, run.settings("retrain"))
    data = load_data(settings.data, image_size=settings.image_size)
    network = make_network(settings, data.train)
    load_weights(network, settings, run)
    return network, settings, data


def load_weights(network: VisionTransformer, settings: RetrainSettings, run: Run) -> None:
    """Give a network the weights that a retraining came to: their moving average if there is one.

    Raises:
        ValueError: If nothing was saved, or it is of another network.
    """
    part = "average" if settings.ema else "network"
    state = run.peek(lambda state: expect(state["job"][part], network.state_dict(), f"job.{part}"))
    network.load_state_dict(state["job"][part])
