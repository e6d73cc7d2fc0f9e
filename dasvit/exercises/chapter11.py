"""Answers to the exercises of chapter 11, the landscape (chapter 11)."""

from __future__ import annotations

import math

from .answers import Checker, number

RELIABILITY = 0.62

ANSWERS: dict[str, Checker] = {
    "ch11-ex-brown": number(
        math.ceil(0.9 * (1 - RELIABILITY) / ((1 - 0.9) * RELIABILITY)),
        0.1,
        "Solve the formula of Spearman and Brown for k, and remember that trainings come whole.",
    ),
    "ch11-ex-luck": number(
        RELIABILITY,
        0.04,
        "Take both less the mean of all, and average over many draws; which share is true?",
    ),
    "ch11-ex-shrink": number(
        0.40 + 2 * RELIABILITY / (1 + RELIABILITY) * 0.05,
        0.001,
        "Pull the mean towards μ, by the reliability of two trainings rather than of one.",
    ),
    "ch11-ex-score": number(
        0.55 / math.sqrt(RELIABILITY), 0.01, "Noise lowers a correlation, so yours must be higher; a root is involved."
    ),
}
"""Label of each exercise, and what judges an answer."""
