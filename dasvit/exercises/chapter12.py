"""Answers to the exercises of chapter 12, the DARTS family (chapter 12)."""

from __future__ import annotations

from typing import Any

from .answers import Checker, equals, number


def _own(answer: Any) -> str | None:
    """Judge the settings of a search: DARTS with an auxiliary skip and entangled edges, and nothing else."""
    relaxation = getattr(answer, "relaxation", None)
    if relaxation is None:
        return "The answer is a SearchSettings: what one of the METHODS returns, with another relaxation."
    if relaxation.skip_bonus != 1.0:
        return "DARTS− begins with an auxiliary skip of weight one; which setting is its weight?"
    if not relaxation.entangled:
        return "Edges do not share their weights yet; look at what TangleNAS sets."
    return None


ANSWERS: dict[str, Checker] = {
    "ch12-ex-anchor": number(
        33 / 9, 0.1, "The variance falls with the sum of the eight concentrations, plus one; divide the two variances."
    ),
    "ch12-ex-beta": equals(
        False, "Two numbers that have become equal fall alike from then on: ask whether they can ever change places."
    ),
    "ch12-ex-own": _own,
    "ch12-ex-share": number(
        0.05, 0.005, "Draw ten uniform numbers many times, and count the means that are at least as high."
    ),
}
"""Label of each exercise, and what judges an answer."""
