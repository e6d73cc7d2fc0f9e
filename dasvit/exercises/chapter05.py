"""The exercises of chapter 5, fairness."""

from __future__ import annotations

from .answers import Checker, number

ANSWERS: dict[str, Checker] = {
    "ch5-ex-pull": number(0.5, 0.005, "The pull is in proportion to p_s (1 - p_s): where is that largest?"),
    "ch5-ex-sigmoid": number(
        0.2 * 0.8 / 5, 0.0005, "The derivative of the sigmoid, and the mean over the skip-connects of all edges."
    ),
    "ch5-ex-limits": number(
        2 * 0.6 - 1, 0.005, "Let both types share the whole weight between them, and add what each lacks to L."
    ),
    "ch5-ex-half": number(
        0.02 / 3**0.5 / (1 / 5 * 1 / 8 * 7 / 8),
        0.01,
        "Solve λ₁ r = ½ √((λ₁ r)² + σ²) for λ₁ r first; r is the gradient of the skip term on one edge.",
    ),
}
"""What judges an answer, by label."""
