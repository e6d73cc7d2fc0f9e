"""Several retrainings by cost and accuracy: which of them no other one beats in both (own objective)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from .counting import complexity
from .engine.checkpoint import refusing
from .engine.runs import Run, from_plain
from .predicting import unseen
from .retraining import PREPARATION, RESULT, RetrainSettings, make_network

Cost = Literal["params", "macs"]
"""What a network is weighed by."""


class Trained(NamedTuple):
    """One retraining.

    Args:
        run: Its directory.
        cost: Of its network.
        accuracy: Balanced accuracy on its validation images after the last epoch, by which choices are made.
        best: Whether no other one costs less and is at least as accurate, or costs the same and is more accurate.
    """

    run: Path
    cost: float
    accuracy: float
    best: bool


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell of each point, cost and accuracy, whether no other one is as good in both and better in one."""
    return [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        for cost, accuracy in points
    ]


def gather(runs: Sequence[Path], unit: Cost = "macs") -> list[Trained]:
    """Return finished retrainings with cost and validation accuracy, the cheapest first.

    Raises:
        ValueError: If one is no finished retraining with validation images; the message names it.
    """
    points = [_point(path, unit) for path in runs]
    found = [Trained(run, *point, best) for run, point, best in zip(runs, points, pareto(points), strict=True)]
    return sorted(found, key=lambda trained: (trained.cost, trained.accuracy))


def _point(path: Path, unit: Cost) -> tuple[float, float]:
    run = Run(path)
    settings: RetrainSettings = from_plain(RetrainSettings, run.settings("retrain"))
    history = run.history()
    if len(history) < settings.epochs or "val_balanced" not in history[-1]:
        raise ValueError(f"{path} is not finished, or has no validation images to compare by: resume it, or train anew")
    with refusing(f"{path / RESULT}: {PREPARATION}"):
        images = unseen(run.read(RESULT, PREPARATION))
    with torch.device("meta"):
        network = make_network(settings, images, class_token_last=False)  # as it is exported and counted elsewhere
    counted = complexity(network, settings.image_size)
    return float(counted.parameters if unit == "params" else counted.macs), float(history[-1]["val_balanced"])
