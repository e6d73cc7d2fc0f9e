"""The exercises of chapter 6, the progressive search."""

from __future__ import annotations

from .answers import Checker, number

ANSWERS: dict[str, Checker] = {
    "ch6-ex-stage": number(10, 0.5, "Layers times candidates may be no more than in the second stage of the paper."),
    "ch6-ex-carry": number(
        0.3 * (1 / 0.8 - 1), 0.0005, "Divide by what all survivors hold, and subtract what it had before."
    ),
    "ch6-ex-chance": number(
        25 * 5 / 8, 0.05, "How likely is one survivor of the first search to be among the second one's on its edge?"
    ),
    "ch6-ex-cosine": number(0.5 * (1 - 0.5), 0.005, "The rate is ½ (1 + cos πt); which t has the third stage's start?"),
}
"""What judges an answer, by label."""
