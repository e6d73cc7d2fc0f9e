"""Answers to the exercises of chapter 3, the relaxation and its gradients (chapter 3)."""

from __future__ import annotations

from typing import Any

from .answers import Checker, equals, number

_GRADIENT = (-2 / 9, -1 / 9, 1 / 3)


def _gradient(answer: Any) -> str | None:
    """Judge the gradient of a softmax with three candidates."""
    try:
        given = [float(value) for value in answer]
    except (TypeError, ValueError):
        return "The answer is a list of three numbers."
    if len(given) != len(_GRADIENT):
        return f"There is one entry for each of three candidates, not {len(given)}."
    if abs(sum(given)) > 1e-3:
        return f"Your entries sum to {sum(given):.3f}; subtract the mean of c under p, not the plain mean."
    if max(abs(a - b) for a, b in zip(given, _GRADIENT, strict=True)) > 1e-3:
        return "The sum is right: now look at the factor in front of each entry, and at the sign."
    return None


ANSWERS: dict[str, Checker] = {
    "ch3-ex-rows": _gradient,
    "ch3-ex-xi": number(
        1 / 6, 1e-3, "Put w = α into the gradient of second order and ask for which ξ it is zero at 1."
    ),
    "ch3-ex-forward": equals(
        [0.5, 0.5], "Balance the first term of Taylor's series that is left against the rounding ε/h."
    ),
    "ch3-ex-literal": equals(
        [(8**2 - 1) * (8**3 - 1), 7**2 * 3 * 7**2],
        "Take the nodes one at a time: of all outcomes of its edges, which are no good?",
    ),
}
"""Label of each exercise, and what judges an answer."""
