"""Answers to the exercises of chapter 2, the search space (chapter 2)."""

from __future__ import annotations

from typing import Any

from ..space import Genotype
from .answers import Checker, equals, number

_VIT = '{"format": 1, "inputs": 1, "nodes": [[[0, "skip"]], [[0, "msa:4"], [1, "skip"]], [[2, "mlp:4"]]]}'


def _nearly_vit(answer: Any) -> str | None:
    """Judge a genotype, or its JSON, by the function that it is."""
    try:
        given = answer if isinstance(answer, Genotype) else Genotype.from_json(answer)
    except (TypeError, ValueError) as error:
        return f"This is no genotype: {error}."
    if given.inputs != 1:
        return "ViT's layer reads one layer before, so the genotype has one input."
    if given.formula != Genotype.from_json(_VIT).formula:
        return f"Yours computes {given.formula}; the output adds every node, so ask which nodes carry x on."
    return None


def _third_ratio() -> float:
    """Return the ratio of the third MLP at seven layers."""
    d, layers = 768, 7
    trunk = 3 * 16**2 * d + 2 * d + 197 * d + 2 * d + (d + 1) * 10
    spare = (50.4e6 - trunk) / layers - 2 * (d**2 + 3.5 * d) - (4 * d**2 + 6 * d)
    return (spare - 3 * d) / (2 * d**2 + d)


ANSWERS: dict[str, Checker] = {
    "ex-space-attention": equals(
        [4**4 * 3, 4**4 * 2 + 10**2],
        "Four choices an edge are left; for functions, look at the architectures in which node 3 does not read node 2.",
    ),
    "ex-space-mirror": number(
        5586 - 264,
        0.5,
        "Look where node 3 reads node 2 by an identity: which operations on one input can change places then?",
    ),
    "ex-space-vit": _nearly_vit,
    "ex-space-depth": number(
        _third_ratio,
        0.02,
        "Share what the trunk leaves of 50.4 M among the layers, and subtract attention and two MLPs with their norms.",
    ),
}
"""Label of each exercise, and what judges an answer."""
