"""The likeliest encoder that meets a condition: it attends, or its cost is near a target (own objective)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from .relaxation import Candidates
from .space import Genotype, Operation, SearchSpace

STEP = 1e-3  # of the target: costs nearer to each other than this are one cost
NEAR = 0.02  # of the target: among encoders as near as this the likeliest is taken; a table of times errs by more

Chosen = tuple[tuple[int, Operation], ...]
"""The edges into a node that are kept: source and operation."""


class _Found(NamedTuple):
    """The likeliest way to fill the nodes so far at one cost, with or without attention."""

    likelihood: float
    cost: float
    nodes: tuple[Chosen, ...]


def likeliest(
    weights: Float[Tensor, "edges operations"],
    candidates: Candidates,
    space: SearchSpace,
    *,
    attends: bool = False,
    cost: Callable[[Operation, int], float] = lambda *_: 0.0,
    target: float | None = None,
) -> Genotype:
    """Return the encoder with the greatest product of mixing weights among those that meet the conditions.

    Without conditions that is what :func:`~dasvit.relaxation.derive` returns: the strongest operation of an edge and
    the strongest edges of a node maximise the product. Node after node the best way to each cost is kept, so the choice
    is exact up to a thousandth of the target, however large the space.

    Args:
        weights: Mixing weights ``softmax(α)``.
        candidates: The operations that the columns stand for, by edge.
        space: The search space.
        attends: Whether the encoder must have attention, without which the class token sees no image; if no candidate
            attends, it is not asked for.
        cost: Of an operation on an edge into a node, in one layer.
        target: Cost of one layer. The likeliest encoder within 2 % of it is taken, or if there is none, the nearest.
    """
    step = STEP * target if target else 1.0
    found: dict[tuple[bool, int], _Found] = {(False, 0): _Found(0.0, 0.0, ())}
    for node, choices in enumerate(_choices(weights, candidates, space), space.inputs):
        ways = [
            (chosen, likelihood, sum(cost(op, node) for _, op in chosen), any(op.spec.attends for _, op in chosen))
            for chosen, likelihood in choices
        ]
        after: dict[tuple[bool, int], _Found] = {}
        for (attended, _), before in found.items():
            for chosen, likelihood, price, attending in ways:
                total = before.cost + price
                key = (attended or attending, round(total / step) if target else 0)
                sum_of = before.likelihood + likelihood
                if key not in after or sum_of > after[key].likelihood:
                    after[key] = _Found(sum_of, total, (*before.nodes, chosen))
        found = after
    left = [way for (attended, _), way in found.items() if attended] if attends else []
    left = left or list(found.values())
    if target:
        near = [way for way in left if abs(way.cost / target - 1) <= NEAR]
        left = near or [min(left, key=lambda way: abs(way.cost / target - 1))]
    return Genotype(max(left, key=lambda way: way.likelihood).nodes, space.inputs)


def reach(candidates: Candidates, space: SearchSpace, cost: Callable[[Operation, int], float]) -> tuple[float, float]:
    """Return the least and the greatest cost of one layer of an encoder in the space."""
    least = most = 0.0
    for node in range(space.inputs, space.inputs + space.nodes):
        incoming = _incoming(candidates, space, node)
        prices = [[cost(op, node) for op in ops if op.spec.scale != 0] for _, ops, _ in incoming]
        kept = min(space.keep, len(incoming))
        least += sum(sorted(min(each) for each in prices)[:kept])
        most += sum(sorted(max(each) for each in prices)[-kept:])
    return least, most


def _incoming(candidates: Candidates, space: SearchSpace, target: int) -> list[tuple[int, tuple[Operation, ...], int]]:
    return [(source, candidates[index], index) for index, (source, end) in enumerate(space.edges) if end == target]


def _choices(weights: Tensor, candidates: Candidates, space: SearchSpace) -> Iterator[list[tuple[Chosen, float]]]:
    """Yield for each node every way to keep edges into it, with the logarithm of the product of their weights."""
    rows = weights.double().tolist()
    for node in range(space.nodes):
        edges = [
            [
                (source, op, math.log(max(rows[index][column], 1e-300)))
                for column, op in enumerate(operations)
                if op.spec.scale != 0
            ]
            for source, operations, index in _incoming(candidates, space, space.inputs + node)
        ]
        yield [
            (tuple((source, op) for source, op, _ in chosen), sum(log for *_, log in chosen))
            for kept in combinations(edges, min(space.keep, len(edges)))
            for chosen in product(*kept)
        ]
