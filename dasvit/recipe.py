"""What people add to a training, from timm's own parts: mixing, erasing, drop path, moving average, a teacher.

All are off by default (chapter 7).
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .data.images import ImageSet
from .encoder import Cell
from .engine.hardware import place
from .retrain_settings import RetrainSettings
from .search_stage import Loss
from .vit import EncoderLayer, VisionTransformer


class Recipe:
    """The loss of a batch in training, with all that the settings add to it.

    Args:
        settings: Of the retraining.
        images: Training images, for classes and normalisation.
        fabric: Device and precision.
        loss: What is descended; by default the cross-entropy with the label smoothing that the settings say.

    Raises:
        ValueError: If there is no such teacher, or it does not fit the images.
    """

    def __init__(self, settings: RetrainSettings, images: ImageSet, fabric: Fabric, loss: Loss | None = None) -> None:
        mixing = {"mixup_alpha": settings.mixup, "cutmix_alpha": settings.cutmix}
        smoothing = {"label_smoothing": settings.label_smoothing, "num_classes": len(images.classes)}
        # mixup has smoothed its targets already
        plain = 0.0 if settings.mixup or settings.cutmix else settings.label_smoothing
        self.hard: Loss = partial(F.cross_entropy, label_smoothing=plain) if loss is None else loss
        self.mix = Mixup(**mixing, **smoothing) if settings.mixup or settings.cutmix else None
        self.erase = RandomErasing(settings.erase, mode="pixel", device=str(fabric.device)) if settings.erase else None
        self.teacher = None if settings.teacher is None else Teacher(settings.teacher, images, fabric)
        self.share, self.temperature = settings.distill, settings.distill_temperature

    def loss(self, model: nn.Module, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the loss of a batch, of normalised images."""
        x = images if self.erase is None else self.erase(images)
        x, target = (x, labels) if self.mix is None else self.mix(x, labels)
        logits = model(x)
        hard = self.hard(logits, target)
        if self.teacher is None:
            return hard
        return (1 - self.share) * hard + self.share * distilled(logits, self.teacher(x), self.temperature)


def distilled(
    logits: Float[Tensor, "b classes"], taught: Float[Tensor, "b classes"], temperature: float
) -> Float[Tensor, ""]:
    """Return how far answers are from a teacher's: ``T²·KL(softmax(taught/T) ‖ softmax(logits/T))`` (Hinton, 2015)."""
    student, teacher = (F.log_softmax(x / temperature, dim=1) for x in (logits, taught))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Teacher:
    """A trained model of timm that answers to the images of a training, prepared as it wants them.

    Args:
        name: A name of timm's, whose weights timm fetches, or ``local-dir:FOLDER``.
        images: Whose classes it must have, and how they are normalised.
        fabric: Where it computes.

    Raises:
        ValueError: If there is no such model, or it has other classes.
    """

    def __init__(self, name: str, images: ImageSet, fabric: Fabric) -> None:
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:  # timm and the hub raise all kinds for names, folders and networks that fail
            reason = " ".join(str(error).split())
            raise ValueError(f"teacher {name!r} cannot be had: {reason:.300}") from None
        told = cast(dict[str, Any], model.pretrained_cfg)
        names, count = told.get("label_names"), getattr(model, "num_classes", None)
        if count != len(images.classes) or (names is not None and list(names) != list(images.classes)):
            raise ValueError(
                f"teacher {name!r} has {count} classes, the images have {len(images.classes)}, or they have other "
                "names: train it on the same folders, and export it with --format timm"
            )
        place(model, fabric)
        self.model = model.eval().requires_grad_(False)
        channels, *size = told["input_size"]
        self.channels, self.size = channels, (size[0], size[1])
        self.own, self.its = (
            tuple(torch.tensor(v, device=fabric.device).view(1, -1, 1, 1) for v in pair)
            for pair in ((images.mean, images.std), (told["mean"], told["std"]))
        )

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Return its logits for images that are normalised for the student."""
        pixels = x * self.own[1] + self.own[0]
        if pixels.shape[1] != self.channels:
            pixels = pixels.mean(dim=1, keepdim=True).expand(-1, self.channels, -1, -1)
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, size=self.size, mode="bilinear", antialias=True)
        weight = next(self.model.parameters())
        return self.model(((pixels - self.its[0]) / self.its[1]).to(weight.dtype)).to(x.dtype)


def drop_paths(network: VisionTransformer, rate: float) -> None:
    """Let a network in training leave out, for an image at random, what an operation computes.

    The probability grows from 0 in the first layer to ``rate`` in the last. Identities are never left out.
    """
    if not rate:
        return
    depth = len(network.layers)
    for number, layer in enumerate(network.layers):
        share = rate if depth == 1 else rate * number / (depth - 1)
        assert isinstance(layer, Cell | EncoderLayer)
        layer.drop_path = DropPath(share)


def averaged(network: VisionTransformer, decay: float, fabric: Fabric) -> ModelEmaV3 | None:
    """Return the moving average of a network's weights, which starts as they are now; none with a decay of 0.

    The decay grows from zero, so that the start is soon forgotten in short trainings too.
    """
    if not decay:
        return None
    average = ModelEmaV3(network, decay=decay, use_warmup=True)
    place(average.module, fabric)
    return average
