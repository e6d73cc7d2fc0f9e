"""What is searched: candidate operations, the graph of an encoder, and one architecture in it (chapter 2)."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from .formula import INPUTS, Formula, write_formula
from .operations import KINDS, Kind, Size, known

Edge = tuple[int, int]
"""Source and target of an edge."""


def edge_name(edge: Edge) -> str:
    """Return what an edge goes by in modules, checkpoints and logs, e.g. ``"0-2"``."""
    source, target = edge
    return f"{source}-{target}"


FORMAT = 1
MAX_NODES = 16
LISTED = 100_000
"""Names up to which a space is listed to find its functions, at about 10,000 a second."""


@dataclass(frozen=True)
class Operation:
    """A candidate on an edge: ``none`` (zero), ``skip`` (identity), ``msa`` with heads, ``mlp`` with a ratio.

    What can be one is in the table :data:`~dasvit.operations.KINDS`, which others can be added to.

    Args:
        kind: Name of the kind of operation.
        size: Number of heads (``msa``), hidden ratio (``mlp``), otherwise ``None``.

    Raises:
        ValueError: If there is no such kind, or the size does not fit it.
    """

    kind: str
    size: Size = None

    def __post_init__(self) -> None:
        try:
            found = _read(str(self))
        except (TypeError, ValueError, OverflowError):  # the size is no number, or not finite
            found = None
        other = found != (self.kind, self.size) or isinstance(self.size, bool)
        if other or (found is not None and isinstance(found[1], int) and isinstance(self.size, float)):
            raise ValueError(f"unknown operation {self.kind}:{self.size}; {known()}")

    @classmethod
    def parse(cls, text: str) -> Operation:
        """Read ``none``, ``skip``, ``msa:8`` or ``mlp:0.5``.

        Raises:
            ValueError: If ``text`` is none of these.
        """
        if (found := _read(text)) is None:
            raise ValueError(f"unknown operation {text!r:.80}; {known()}")
        return cls(*found)

    @property
    def spec(self) -> Kind:
        """What the library knows of its kind."""
        return KINDS[self.kind]

    def __str__(self) -> str:
        if self.size is None:
            return self.kind
        return f"{self.kind}:{int(self.size) if self.size == int(self.size) else self.size!r}"


def _read(text: str) -> tuple[str, Size] | None:
    """Return kind and size of an operation; nothing if it is none."""
    name, colon, size = text.partition(":")
    if (kind := KINDS.get(name)) is None or bool(colon) != kind.sized:
        return None
    try:
        return name, kind.read(size) if colon else None
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class Genotype:
    """One encoder: for each intermediate node, its incoming edges as ``(source, operation)``.

    Sources are counted from 0 over the inputs, then the nodes: with two inputs, 0 is the output of the layer
    before the previous one, 1 that of the previous layer, 2 the first node. The encoder returns the sum of its
    nodes, Eq. (12).

    Args:
        nodes: Per node the incoming ``(source, operation)`` pairs, ordered by source.
        inputs: Number of layers the encoder looks back (1 or 2).

    Raises:
        ValueError: If a source does not come before its node, is repeated, or a node has no edge.
    """

    nodes: tuple[tuple[tuple[int, Operation], ...], ...]
    inputs: int = 2

    def __post_init__(self) -> None:
        if self.inputs not in (1, 2):
            raise ValueError(f"genotype has inputs {self.inputs}: an encoder looks back 1 or 2 layers")
        if not self.nodes:
            raise ValueError("genotype has no node: give at least one")
        if len(self.nodes) > MAX_NODES:
            raise ValueError(f"genotype has {len(self.nodes)} nodes: at most {MAX_NODES}")
        for number, node in enumerate(self.nodes, start=self.inputs):
            sources = [source for source, _ in node]
            if not node:
                raise ValueError(f"genotype node {number} has no incoming edge: give at least one")
            for source in sources:
                if not 0 <= source < number:
                    raise ValueError(
                        f"genotype node {number} reads source {source!s:.80}: sources are 0 to {number - 1}"
                    )
            if sources != sorted(set(sources)):
                raise ValueError(f"genotype node {number} lists sources {sources!s:.80}: each once, in ascending order")

    @property
    def edges(self) -> Iterator[tuple[Edge, Operation]]:
        """The edges ``((source, target), operation)``, by target, then source."""
        for target, node in enumerate(self.nodes, start=self.inputs):
            for source, operation in node:
                yield (source, target), operation

    @property
    def has_attention(self) -> bool:
        """Whether an edge has attention; without it no token sees another, and the class token sees no image."""
        return any(operation.spec.attends for _, operation in self.edges)

    @property
    def formula(self) -> Formula:
        """The encoder written out; two encoders have one formula if they differ by the names of their weights alone.

        Then any weights of the one are weights of the other, at which both compute the same: they are one *function*.
        In it x1 is the output of the layer before and x0 that of the layer before that, also with one input.
        Weights are renamed, not changed: ``E = 2 y1`` is told from ``E = y1``, though doubled weights can make up for
        it, since both start and train otherwise.
        """
        values: list[Counter[Any]] = [Counter((x,)) for x in INPUTS[-self.inputs :]]
        calls: dict[Edge, tuple[str, Counter[Any]]] = {}
        for target, node in enumerate(self.nodes, start=self.inputs):
            value: Counter[Any] = Counter()
            for source, operation in node:
                if operation.spec.scale == 1:
                    value.update(values[source])
                elif operation.spec.scale is None:
                    calls[source, target] = str(operation), values[source]
                    value[source, target] += 1
            values.append(value)
        return write_formula(calls, sum(values[self.inputs :], start=Counter()))

    def to_json(self) -> str:
        """Write as JSON, e.g. ``{"format": 1, "nodes": [[[0, "mlp:0.5"], [1, "skip"]], …]}``."""
        nodes = [[[source, str(operation)] for source, operation in node] for node in self.nodes]
        extra = {} if self.inputs == 2 else {"inputs": self.inputs}
        return json.dumps({"format": FORMAT, **extra, "nodes": nodes})

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read what :meth:`to_json` writes.

        Raises:
            ValueError: If the text is no genotype; the message names what is wrong.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"genotype is not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f'genotype is not of format {FORMAT}: expected {{"format": {FORMAT}, "nodes": [...]}}')
        if unknown := sorted(set(data) - {"format", "inputs", "nodes"}):
            raise ValueError(f"genotype has unknown fields {', '.join(map(repr, unknown)):.80}: remove them")
        inputs, nodes = data.get("inputs", 2), data.get("nodes")
        if type(inputs) is not int or not isinstance(nodes, list) or not all(isinstance(n, list) for n in nodes):
            raise ValueError('genotype needs "nodes", a list of nodes, each a list of [source, "operation"]')
        return cls(tuple(tuple(map(_parse_edge, node)) for node in nodes), inputs)


def _parse_edge(edge: Any) -> tuple[int, Operation]:
    if not (isinstance(edge, list) and len(edge) == 2 and type(edge[0]) is int and isinstance(edge[1], str)):
        raise ValueError(f'genotype edge {edge!r:.80} is not [source, "operation"]')
    return edge[0], Operation.parse(edge[1])


@dataclass(frozen=True)
class SearchSpace:
    """All encoders of a directed acyclic graph with the given operations (Section III-B).

    ``len(space)`` counts the architectures, iteration enumerates them, ``space[i]`` is the i-th,
    ``space.sample(rng)`` draws one uniformly. Several may be the same function (:attr:`Genotype.formula`):
    ``space.functions()`` has one of each, ``space.shuffled(rng)`` draws those.

    Raises:
        ValueError: If a setting is out of range, or a candidate is unknown or listed twice.
    """

    heads: tuple[int, ...] = (4, 8, 12)
    """Head counts of the attention candidates (ledger A4)."""
    mlp_ratios: tuple[float, ...] = (0.5, 1, 2)
    """Hidden ratios of the MLP candidates (ledger A4)."""
    nodes: int = 2
    """Number of intermediate nodes, at most 16 (ledger A3)."""
    inputs: int = 2
    """Number of layers the encoder looks back (1 or 2)."""
    keep: int = 2
    """Incoming edges each node keeps in an architecture (all, where it has fewer; ledger A7)."""
    extra: tuple[str, ...] = ()
    """Further candidates as they are written, of kinds in the table of operations."""

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MAX_NODES or self.keep < 1 or self.inputs not in (1, 2):
            raise ValueError(
                f"search space with nodes {self.nodes}, keep {self.keep}, inputs {self.inputs}: "
                f"nodes is 1 to {MAX_NODES}, keep is at least 1, inputs is 1 or 2"
            )
        if len(set(self.operations)) < len(self.operations):
            raise ValueError(f"search space lists an operation twice: {', '.join(map(str, self.operations)):.200}")

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """The candidates of every edge: zero, identity, attention by heads, MLP by ratio, further ones."""
        sizes = [("msa", heads) for heads in self.heads] + [("mlp", ratio) for ratio in self.mlp_ratios]
        balanced = (Operation(kind, size) for kind, size in sizes)
        return Operation("none"), Operation("skip"), *balanced, *map(Operation.parse, self.extra)

    @property
    def needs_grid(self) -> bool:
        """Whether a candidate needs the patch tokens where they stand; then tokens are not selected."""
        return any(op.spec.needs_grid for op in self.operations)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges ``(source, target)``, by target, then source: five with the defaults."""
        targets = range(self.inputs, self.inputs + self.nodes)
        return tuple((source, target) for target in targets for source in range(target))

    def _choices(self, target: int) -> list[tuple[int, ...]]:
        return list(itertools.combinations(range(target), min(self.keep, target)))

    def _radices(self) -> list[int]:
        """Number of possible incoming sides of each node; their product is the size of the space."""
        non_zero = len(self.operations) - 1
        targets = range(self.inputs, self.inputs + self.nodes)
        return [len(self._choices(t)) * non_zero ** min(self.keep, t) for t in targets]

    def __len__(self) -> int:
        return math.prod(self._radices())

    def _check(self, index: int) -> None:
        if not 0 <= index < math.prod(self._radices()):
            raise IndexError(f"architecture {index} of a space of {math.prod(self._radices())}")

    def __getitem__(self, index: int) -> Genotype:
        self._check(index)
        operations, nodes = self.operations[1:], []
        for target, radix in enumerate(self._radices(), start=self.inputs):
            index, digit = divmod(index, radix)
            choices = self._choices(target)
            digit, which = divmod(digit, len(choices))
            node = []
            for source in choices[which]:
                digit, operation = divmod(digit, len(operations))
                node.append((source, operations[operation]))
            nodes.append(tuple(node))
        return Genotype(tuple(nodes), self.inputs)

    def number(self, genotype: Genotype) -> int:
        """Return the number of an architecture: ``space[space.number(genotype)] == genotype``.

        Raises:
            ValueError: If it is none of this space.
        """
        if genotype not in self:
            raise ValueError(f"{genotype.to_json()} is no architecture of {self}")
        operations, number = self.operations[1:], 0
        targets = range(self.inputs, self.inputs + self.nodes)
        for target, node, radix in reversed(list(zip(targets, genotype.nodes, self._radices(), strict=True))):
            digit, choices = 0, self._choices(target)
            for _, operation in reversed(node):
                digit = digit * len(operations) + operations.index(operation)
            which = choices.index(tuple(source for source, _ in node))
            number = number * radix + digit * len(choices) + which
        return number

    def __iter__(self) -> Iterator[Genotype]:
        return map(self.__getitem__, range(math.prod(self._radices())))

    def __contains__(self, genotype: object) -> bool:
        return (
            isinstance(genotype, Genotype)
            and genotype.inputs == self.inputs
            and len(genotype.nodes) == self.nodes
            and all(len(n) == min(self.keep, t) for t, n in enumerate(genotype.nodes, start=self.inputs))
            and all(operation in self.operations[1:] for _, operation in genotype.edges)
        )

    def sample(self, rng: random.Random) -> Genotype:
        """Draw one architecture, all being equally likely."""
        return self[rng.randrange(math.prod(self._radices()))]

    def functions(self) -> tuple[int, ...]:
        """Return the numbers of architectures that are different functions, the smallest number of each function.

        Raises:
            ValueError: If the space has more than 100,000 architectures.
        """
        return _functions(self)[0]

    def canonical(self, number: int) -> int:
        """Return the smallest number of an architecture that is the same function.

        Raises:
            IndexError: If there is no architecture of this number.
            ValueError: If the space has more than 100,000 architectures.
        """
        self._check(number)
        return _functions(self)[1][number]

    def shuffled(self, rng: random.Random) -> Iterator[Genotype]:
        """Yield different functions in random order, each once and all being equally likely at any place.

        Of a space with more than 100,000 architectures, so many are drawn; functions that are several of them tend to
        come earlier.
        """
        if math.prod(self._radices()) <= LISTED:
            functions = self.functions()
            yield from map(self.__getitem__, rng.sample(functions, len(functions)))
            return
        seen: set[Formula] = set()
        for genotype in (self.sample(rng) for _ in range(LISTED)):
            if (formula := genotype.formula) not in seen:
                seen.add(formula)
                yield genotype


@cache
def _functions(space: SearchSpace) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the first number of each function, and for each architecture the first number of its function."""
    if (size := math.prod(space._radices())) > LISTED:
        raise ValueError(f"search space of {size:,} architectures: its functions are listed up to {LISTED:,}")
    firsts: dict[Formula, int] = {}
    canonical = tuple(firsts.setdefault(genotype.formula, number) for number, genotype in enumerate(space))
    return tuple(firsts.values()), canonical
