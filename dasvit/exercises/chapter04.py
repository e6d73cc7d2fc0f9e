"""The exercises of chapter 4, token selection."""

from __future__ import annotations

from .answers import Checker, number

ANSWERS: dict[str, Checker] = {
    "ex-tokens-break-even": number(
        2, 0.5, "Compare what selection costs with what the edges of all layers save when k tokens are left."
    ),
    "ex-tokens-class": number(
        4 / 16, 0.005, "Take one patch of the first choice: how likely is it to be in the second one?"
    ),
    "ex-tokens-all": number(17 / 5, 0.01, "Count the class token in both: it is never dropped."),
    "ex-tokens-maps": number(
        61 / 196, 0.0005, "A map grows with the square of the tokens; one of the tokens that stay is no patch."
    ),
}
"""What judges an answer, by label."""
