"""Answers to the exercises of chapter 13, how good a search is (chapter 13)."""

from __future__ import annotations

from .answers import Checker, number

ANSWERS: dict[str, Checker] = {
    "ch13-ex-best": number(80, 0.5, "The highest of k uniform numbers has a mean that is a fraction of k and k + 1."),
    "ch13-ex-needed": number(66, 2, "Put 1/√12 for the deviation of even shares, 0.29 for that seen, 0.1 for the gap."),
    "ch13-ex-part": number(0, 1e-9, "Write down the variance of a difference of two correlated numbers."),
}
"""Label of each exercise, and what judges an answer."""
