"""Answers to the exercises of chapter 10, what holds and what does not (chapter 10)."""

from __future__ import annotations

from statistics import mean
from typing import Any

from .answers import Checker, number


def _epochs() -> float:
    """Return the epochs of the published encoder in the time of 30 of ViT-B/16, by counted products."""
    import torch

    from ..counting import complexity
    from ..encoder import build

    with torch.device("meta"):
        networks = [build(name, num_classes=10) for name in ("vit_b16", "dasvit-cifar10")]
    vit, published = (complexity(network, image_size=224).macs for network in networks)
    return 30 * vit / published


def _shares(answer: Any) -> str | None:
    """Judge the shares of an H200's rate."""
    try:
        search, darts = map(float, answer)
    except (TypeError, ValueError):
        return "The answer is a list of two numbers, the search first."
    right = [work / (9.9e14 * 30 * 60) for work in (2.3e17, 1.5e18)]
    if abs(search - right[0]) < 0.01 and abs(darts - right[1]) < 0.03:
        return None
    return "Divide the operations by those that the full rate does in so many minutes, in seconds."


ANSWERS: dict[str, Checker] = {
    "ch10-ex-time": number(_epochs, 0.5, "The network with fewer products trains more epochs: take the ratio of ours."),
    "ch10-ex-seeds": number(
        (2 * 1.5 / (80.1 - 78.8)) ** 2,
        0.1,
        "A standard error is the standard deviation over the root of the number of searches; solve for that number.",
    ),
    "ch10-ex-share": _shares,
    "ch10-ex-behind": number(
        mean(100 * (top - 46.8) / top for top in (59.8, 57.8, 53.4, 57.9, 58.7)),
        0.3,
        "Leave the CNNs out that are behind DASViT, and divide each gap by the accuracy of the CNN.",
    ),
}
"""Label of each exercise, and what judges an answer."""
