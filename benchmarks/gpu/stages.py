"""Stages of a search on random images, ours and the plain way, for steps that are weighed or timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from plain_supernet import PlainSupernet, plain_steps
from torch import Tensor

from dasvit.data.images import ImageSet
from dasvit.engine.hardware import make_fabric
from dasvit.plan import survivors
from dasvit.presets import SEARCH
from dasvit.searching import SearchSettings, SearchStage, make_supernet

Steps = dict[str, Callable[[], Any]]
"""A step of α and one of the weights, by name."""

CLASSES = 10


def settings_of(rehearse: bool) -> SearchSettings:
    """Return the paper's settings, or those of a rehearsal."""
    if rehearse:
        return SearchSettings(dim=24, stages=((1, 8, 1), (2, 3, 1)), batch_size=8)
    return SEARCH["paper"]


def random_batch(settings: SearchSettings, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images and labels."""
    shape = (size, 3, settings.image_size, settings.image_size)
    return torch.randn(shape, device=device), torch.arange(size, device=device) % CLASSES


def random_images(count: int, side: int) -> ImageSet:
    """Return images as bytes."""
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    names = tuple(map(str, range(CLASSES)))
    return ImageSet(images, torch.arange(count) % CLASSES, names, (0.5,) * 3, (0.25,) * 3)


def our_stage(settings: SearchSettings, number: int, images: ImageSet | None = None) -> SearchStage:
    """Return a stage with the operations that a search might have kept."""
    candidates = survivors(settings.space, settings.stages[number][1])
    fabric = make_fabric(settings.hardware)
    halves = (random_images(settings.batch_size, 1),) * 2 if images is None else images.to(fabric.device).halves(0)
    with fabric.device:  # to draw a large network on the CPU and send it takes longer than to weigh it
        return SearchStage(settings, number, candidates, halves, fabric)


def our_steps(stage: SearchStage, size: int) -> Steps:
    """Return the steps of a stage on batches of a size."""
    batch = random_batch(stage.settings, size, stage.fabric.device)
    return {"alpha": lambda: stage.alpha_step(batch, batch), "weights": lambda: stage.weight_step(batch)}


def plain_model(settings: SearchSettings, number: int) -> PlainSupernet:
    """Return the supernet of a stage the plain way."""
    candidates = survivors(settings.space, settings.stages[number][1])
    images = random_images(1, 1)
    with make_fabric(settings.hardware).device:
        return PlainSupernet(make_supernet(settings, number, candidates, images))


def plain_steps_of(model: PlainSupernet, settings: SearchSettings, size: int) -> Steps:
    """Return the steps of the plain way on batches of a size, with no regularisation."""
    fabric = make_fabric(settings.hardware)
    batch = random_batch(settings, size, fabric.device)
    alpha, weights = plain_steps(model, batch, batch, lambda p: p.new_zeros(()), fabric.autocast)
    return {"alpha": alpha, "weights": weights}
