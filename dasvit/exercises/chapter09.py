"""Answers to the exercises of chapter 9."""

from __future__ import annotations

import math

from .answers import Checker, number

ANSWERS: dict[str, Checker] = {
    "ch9-ex-product": number(
        197, 0.4, "The matrix in the middle is a product of two triangular factors: which of n, p and q are its sides?"
    ),
    "ch9-ex-size": number(1.5, 0.03, "The bound is √rank times the Frobenius norm; how does each grow with the width?"),
    "ch9-ex-ceiling": number(
        lambda: 100 * 1.96 * math.sqrt(2 * 0.38 * 0.62 / 5000),
        0.03,
        "1.96 standard errors of a difference of two shares, each with p(1 − p)/n; in points of percent.",
    ),
    "ch9-ex-partial": number(
        lambda: (0.42 - 0.89 * 0.45) / math.sqrt((1 - 0.89**2) * (1 - 0.45**2)),
        0.005,
        "x is the score, y the accuracy, z the size: which of the three correlations is ρ_xy?",
    ),
}
