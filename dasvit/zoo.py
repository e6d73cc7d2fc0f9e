"""The twelve networks of the paper's Table I, and what of its printed costs they account for (chapter 8; A25)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from .autoformer import build_autoformer
from .counting import CONVENTIONS, Convention, Kind, complexity
from .encoder import BASELINE, build

IMAGE_SIZE = 224

HEAD_SIZES = (10, 100, 1000)
"""Classes of CIFAR-10, of CIFAR-100 and ImageNet-100, of ImageNet."""


@dataclass(frozen=True)
class Row:
    """A row of Table I.

    Args:
        make: Called as ``make(num_classes=…)``; returns the network for images of 224 pixels.
        parameters: Printed parameters in millions.
        macs: Printed "FLOPs" in units of 10⁹.
    """

    make: Callable[..., nn.Module]
    parameters: str
    macs: str


def autoformer_b(**settings: Any) -> nn.Module:
    """Build the network AutoFormer found in its space B, after the paper; relative position gathered, as there."""
    heads = (9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10)
    ratios = (3.5, 3.5, 4, 3.5, 4, 3.5, 3.5, 3, 4, 4, 3, 4, 3, 3.5)
    return build_autoformer(576, heads, ratios, image_size=IMAGE_SIZE, gathered=True, **settings)


def _timm(name: str, **sizes: Any) -> Callable[..., nn.Module]:
    return partial(timm.create_model, name, pretrained=False, **sizes)


TABLE_1 = {
    "VGG-16": Row(torchvision.models.vgg16, "134.7", "15.5"),
    "VGG-19": Row(torchvision.models.vgg19, "140.0", "19.7"),
    "ResNet-50": Row(torchvision.models.resnet50, "23.7", "4.1"),
    "ResNet-152": Row(torchvision.models.resnet152, "58.4", "11.6"),
    "EfficientNet-B7": Row(_timm("efficientnet_b7"), "64.0", "5.2"),
    "RegNetY-12GF": Row(_timm("regnety_120"), "49.8", "12.1"),
    "RegNetY-16GF": Row(_timm("regnety_160"), "80.7", "15.9"),
    "ViT-B/16": Row(partial(build, BASELINE), "85.8", "12.0"),
    "TNT-B": Row(_timm("tnt_b_patch16_224"), "64.8", "13.5"),
    "CaiT-S36": Row(_timm("cait_s36_384", img_size=IMAGE_SIZE), "67.9", "12.9"),
    "AutoFormer-B": Row(autoformer_b, "52.5", "11.6"),
    "DASViT": Row(partial(build, "dasvit-cifar10"), "50.4", "9.9"),
}
"""The rows by name: networks of torchvision and timm, and ours; what the paper prints.

Only ours are trained here (ledger A45).

:meta hide-value:
"""


@dataclass(frozen=True)
class Count:
    """What one row costs with one size of the classifier.

    Args:
        num_classes: Number of classes.
        parameters: Number of parameters.
        products: Multiply-accumulates of one image by kind.
        macs: Multiply-accumulates of one image by convention.
    """

    num_classes: int
    parameters: int
    products: dict[Kind, int]
    macs: dict[Convention, int]


@dataclass(frozen=True)
class Audit:
    """A row of Table I, printed against counted.

    Args:
        name: The row.
        printed_parameters: Millions of parameters, as printed.
        printed_macs: "FLOPs" in units of 10⁹, as printed.
        counts: What is counted, one entry for each size of the classifier.
    """

    name: str
    printed_parameters: str
    printed_macs: str
    counts: list[Count]

    @property
    def parameters_from(self) -> list[int]:
        """The numbers of classes with which the printed parameters come out."""
        return [c.num_classes for c in self.counts if f"{c.parameters / 1e6:.1f}" == self.printed_parameters]

    @property
    def macs_from(self) -> dict[Convention, list[int]]:
        """The conventions that yield the printed FLOPs, each with the numbers of classes with which it does."""
        fits = {
            k: [c.num_classes for c in self.counts if f"{c.macs[k] / 1e9:.1f}" == self.printed_macs]
            for k in CONVENTIONS
        }
        return {convention: classes for convention, classes in fits.items() if classes}


def audit(names: Iterable[str] | None = None, head_sizes: Iterable[int] = HEAD_SIZES) -> Iterator[Audit]:
    """Count rows of Table I, one after the other.

    Args:
        names: The rows; all by default.
        head_sizes: Numbers of classes.

    Raises:
        ValueError: If there is no such row.
    """
    for name in TABLE_1 if names is None else names:
        if name not in TABLE_1:
            raise ValueError(f"{name!r} is no row of Table I; its rows are {', '.join(TABLE_1)}")
        row = TABLE_1[name]
        yield Audit(name, row.parameters, row.macs, [_count(row, n) for n in head_sizes])


def _count(row: Row, num_classes: int) -> Count:
    with torch.device("meta"):  # weights have no values to be made up
        model = row.make(num_classes=num_classes)
    counted = complexity(model, IMAGE_SIZE)
    return Count(num_classes, counted.parameters, counted.products[""], {k: counted.under(k).macs for k in CONVENTIONS})
