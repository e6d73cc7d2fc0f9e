"""Exercises that check themselves: :func:`check` says whether an answer is right, and if not, what to look at.

How to use it stands on the book's first page. Each chapter's answers are a module of their own, ``chapter01`` to
``chapter13``, with one name, ``ANSWERS``; they are loaded when an exercise is checked.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from .answers import Checker


def check(label: str, answer: Any) -> bool:
    """Print in one line whether the answer to an exercise is right, and return it.

    Args:
        label: The exercise's label in the book, such as ``"ex-vit-shuffle"``.
        answer: What the exercise asks for: a number, a text, a list, …

    Raises:
        ValueError: There is no such exercise.

    Example:
        >>> from dasvit.exercises import check
        >>> check("ex-vit-shuffle", your_answer)  # doctest: +SKIP
        ex-vit-shuffle: right.
        True
    """
    hint = _checker(label)(answer)
    print(f"{label}: right." if hint is None else f"{label}: not yet. {hint}")
    return hint is None


def chapters() -> dict[str, dict[str, Checker]]:
    """Return for each chapter, ``"01"`` to ``"12"``, its exercises: label → what judges an answer."""
    files = sorted(Path(__file__).parent.glob("chapter[0-9][0-9].py"))
    return {file.stem[-2:]: importlib.import_module(f"{__name__}.{file.stem}").ANSWERS for file in files}


def _checker(label: str) -> Checker:
    """Return what judges the answers to an exercise.

    Raises:
        ValueError: There is no such exercise; the chapter with the nearest label is listed.
    """
    known = chapters()
    for answers in known.values():
        if label in answers:
            return answers[label]

    def likeness(answers: dict[str, Checker]) -> float:
        return max((difflib.SequenceMatcher(None, str(label), other).ratio() for other in answers), default=0.0)

    nearest = max(known, key=lambda chapter: likeness(known[chapter]))
    raise ValueError(f"no exercise {label!r}; those of chapter {int(nearest)} are {', '.join(known[nearest])}")
