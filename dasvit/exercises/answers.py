"""What an answer to an exercise can be held against: a number within a tolerance, or a value that must be equal.

Both take the expected value itself or a function that computes it, called when an answer is checked: loading a
chapter's answers computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

Checker = Callable[[Any], str | None]
"""Judges an answer: None where it is right, else one line that says what to look at, never the solution."""


def number(expected: float | Callable[[], float], within: float, hint: str) -> Checker:
    """Return what judges a number, which may be a tensor or an array of one element.

    Args:
        expected: The right number, or a function that computes it.
        within: How far from it an answer may be, absolute: 0.5 for a whole number.
        hint: One line for an answer that is further away.
    """

    def judge(answer: Any) -> str | None:
        try:
            given = float(answer)
        except (TypeError, ValueError, RuntimeError):  # the last: a tensor of several elements
            return f"The answer is one number, not {type(answer).__name__}."
        right = expected() if callable(expected) else expected
        return None if abs(given - right) <= within else hint

    return judge


def equals(expected: Any, hint: str) -> Checker:
    """Return what judges a value: lists and tuples count alike, and a tensor or an array as its list.

    Args:
        expected: The right value, or a function that computes it.
        hint: One line for any other answer.
    """

    def judge(answer: Any) -> str | None:
        right = expected() if callable(expected) else expected
        return None if _plain(answer) == _plain(right) else hint

    return judge


def _plain(value: Any) -> Any:
    """Return a value with every sequence as a list, so that equal contents compare equal."""
    if hasattr(value, "tolist"):  # of torch and of numpy
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, AbstractSet):
        return set(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value
