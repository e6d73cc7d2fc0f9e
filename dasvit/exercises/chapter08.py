"""Answers to the exercises of chapter 8."""

from __future__ import annotations

from .answers import Checker, equals, number


def _macs(pixels: int, dim: int = 768, patch: int = 16, classes: int = 10) -> int:
    patches = (pixels // patch) ** 2
    tokens = patches + 1
    layer = tokens * dim**2 * (3 * 2 * 0.5 + 4) + 2 * tokens**2 * dim  # three MLPs, projections, attention
    return int(patches * 3 * patch**2 * dim + 12 * layer + classes * dim)


ANSWERS: dict[str, Checker] = {
    "ch8-ex-tokens": number(
        1536, 0.5, "Set the four projections, 4ND², equal to the two products, 2N²D, and take the width of ViT-B/16."
    ),
    "ch8-ex-classes": equals(
        (29, 61), "A printed 80.7 stands for 80.65 to 80.75 million; which whole numbers of classes lie within?"
    ),
    "ch8-ex-swap": number(
        5.0, 0.045, "The hook takes timm's attention for a leaf: which products of all twelve layers are then gone?"
    ),
    "ch8-ex-larger": number(
        lambda: _macs(448) / _macs(224), 0.02, "Only attention's two products grow with the square of the tokens."
    ),
}
