"""An encoder written out as a formula, the same for all encoders that are the same function (chapter 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

INPUTS = ("x0", "x1")
"""The outputs of the layer before the previous one and of the previous layer."""
Call = tuple[int, int]
"""An operation with weights of its own, named by its edge."""
Sum = Mapping[str | Call, int]
"""How often each input and the result of each call occur in a sum."""
Ranks = Mapping[Call, int]
"""Places of calls in an order; those that are not told apart have the same."""


@dataclass(frozen=True)
class Formula:
    """What an encoder computes: each operation with weights is named once, and identities are multiplied out.

    Args:
        text: For instance ``y1 = mlp:1(x0), y2 = msa:4(x0 + y1), E = 2 x0 + y1 + y2``; formulas are equal if it is.
        edges: The edges that y1, y2, … stand for. Of two encoders with one formula, the one computes what the other
            does if each of its operations gets the weights of the one at the same place.
    """

    text: str
    edges: tuple[Call, ...] = field(compare=False)

    def __str__(self) -> str:
        return self.text


def write_formula(calls: Mapping[Call, tuple[str, Sum]], output: Sum) -> Formula:
    """Write the formula of an encoder; it does not depend on how its calls are named and ordered.

    Which call reads which is a graph. Its calls are ranked by operation, inputs and use, then again and again by the
    ranks of those that they read and that read them, until nothing changes. Where calls are still tied, as two equal
    operations on one input are, each is tried as the first of them, and the smallest text is taken.

    Args:
        calls: Operation and argument of each call, after those that it reads.
        output: What the encoder returns.
    """
    graph = _Graph(calls, output)
    return graph.smallest(graph.alone)


class _Graph:
    """Calls that read each other."""

    def __init__(self, calls: Mapping[Call, tuple[str, Sum]], output: Sum) -> None:
        self.calls, self.output = calls, output
        self.reads: dict[Call, list[tuple[Call, int]]] = {}
        self.read_by: dict[Call, list[tuple[Call, int]]] = {call: [] for call in calls}
        self.alone: dict[Call, Any] = {}
        depth: dict[Call, int] = {}  # ranked first, so that a formula names nothing before it says what it is
        for call, (operation, argument) in calls.items():
            self.reads[call] = [(x, times) for x, times in argument.items() if not isinstance(x, str)]
            for x, times in self.reads[call]:
                self.read_by[x].append((call, times))
            depth[call] = 1 + max((depth[x] for x, _ in self.reads[call]), default=0)
            inputs = tuple(-argument.get(x, 0) for x in INPUTS)  # what reads x0 comes first
            self.alone[call] = depth[call], operation, inputs, output.get(call, 0)

    def refine(self, keys: Mapping[Call, Any]) -> Ranks:
        """Rank the calls by their keys, then by the ranks of those that they read and that read them, to the end."""
        told_apart = 0
        while True:
            place = {key: rank for rank, key in enumerate(sorted(set(keys.values())))}
            ranks = {call: place[key] for call, key in keys.items()}
            if len(place) in (told_apart, len(ranks)):
                return ranks
            told_apart, keys = len(place), {}
            for call, rank in ranks.items():
                around = (sorted((ranks[x], times) for x, times in side[call]) for side in (self.reads, self.read_by))
                keys[call] = (rank, *map(tuple, around))

    def smallest(self, keys: Mapping[Call, Any]) -> Formula:
        """Return the formula of smallest text among the orders that the keys leave open."""
        ranks = self.refine(keys)
        ways: dict[Formula, Mapping[Call, Any]] = {}
        for way in self.broken(ranks):
            ways.setdefault(self.some(way), way)  # of one formula: exchanging calls makes one of the other
        return min(map(self.smallest, ways.values()), key=str) if ways else self.write(ranks)

    def some(self, keys: Mapping[Call, Any]) -> Formula:
        """Return a formula of some order that the keys leave open."""
        ranks = self.refine(keys)
        while (broken := next(self.broken(ranks), None)) is not None:
            ranks = self.refine(broken)
        return self.write(ranks)

    def broken(self, ranks: Ranks) -> Iterator[Mapping[Call, Any]]:
        """Break the tie of lowest rank: yield keys that put one call first, for each of those tied."""
        order = sorted(ranks.values())
        tie = next((rank for rank, following in pairwise(order) if rank == following), None)
        for first in (call for call, rank in ranks.items() if rank == tie):
            yield {call: (rank, call != first) for call, rank in ranks.items()}

    def write(self, ranks: Ranks) -> Formula:
        """Return the formula that names the calls in the order of their ranks."""
        order = sorted(self.calls, key=ranks.__getitem__)
        names: dict[str | Call, str] = {x: x for x in INPUTS} | {call: f"y{i}" for i, call in enumerate(order, start=1)}
        sums = []
        for terms in [*(self.calls[call][1] for call in order), self.output]:
            named = [names[x] if terms[x] == 1 else f"{terms[x]} {names[x]}" for x in names if x in terms]
            sums.append(" + ".join(named) or "0")
        lines = [f"{names[call]} = {self.calls[call][0]}({sums[i]})" for i, call in enumerate(order)]
        return Formula(", ".join([*lines, f"E = {sums[-1]}"]), tuple(order))
