"""Answers to the exercises of chapter 7."""

from __future__ import annotations

import math

from .answers import Checker, number


def _adamw(gradients: tuple[float, ...] = (100.0, -50.0, 200.0), lr: float = 0.01, decay: float = 0.1) -> float:
    w, m, v = 1.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w -= lr * (m / (1 - 0.9**t) / math.sqrt(v / (1 - 0.999**t)) + decay * w)
    return w


ANSWERS: dict[str, Checker] = {
    "ch7-ex-adamw": number(
        _adamw, 2e-5, "Divide the corrected mean by the root of the corrected mean of squares; let w decay by ηλw."
    ),
    "ch7-ex-images": number(
        lambda: (0.9 * 0.1 + 0.91 * 0.09) * (2 / 0.01) ** 2,
        60,
        "Two independent shares: their variances add, and two standard errors of the difference are 0.01.",
    ),
    "ch7-ex-best": number(
        1.163, 0.03, "Draw five standard normal numbers many times, and take the mean of the largest."
    ),
    "ch7-ex-seeds": number(
        11, 0.4, "The mean of m trainings has the variance 0.5² + 0.8²/m; which part of it is 0.5²?"
    ),
}
