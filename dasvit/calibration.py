"""Probabilities that can be believed: one temperature, fitted on validation images (own images)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor

COLDEST, HOTTEST = 0.05, 20.0


def fit_temperature(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """Return the temperature T at which the cross-entropy of ``softmax(logits / T)`` is least (Guo et al., 2017).

    It changes no answer, only how sure the network says it is; above 1 it was too sure.

    Args:
        logits: Of images that the network was not trained on.
        labels: Their classes.
    """
    logits = logits.double().cpu()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_temperature), labels.cpu()))

    found = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return math.exp(found.x)


def calibration_error(probabilities: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], bins: int = 10) -> float:
    """Return the expected calibration error: how far accuracy is from confidence, over bins of equal confidence.

    Args:
        probabilities: Of each class.
        labels: The classes.
        bins: Between 0 and 1.
    """
    confidence, answers = probabilities.max(dim=1)
    right = (answers == labels).to(confidence)
    which = (confidence * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins, dtype=confidence.dtype).index_add(0, which, right - confidence)
    return float(gaps.abs().sum() / len(labels))
