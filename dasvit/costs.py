"""What an encoder will cost, as a function of α: parameters, multiply-accumulates, measured time (own objective)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .counting import Products
from .engine.checkpoint import expect, refusing
from .relaxation import Candidates
from .space import Operation, SearchSpace
from .vit import trunk_parameters

Unit = Literal["params", "macs", "latency"]
"""What is counted: parameters, multiply-accumulates of an image, seconds of an image."""
UNITS: Mapping[Unit, str] = {"params": "parameters", "macs": "multiply-accumulates", "latency": "seconds"}
"""Each unit in words."""
TABLE = 2
"""Format of a table of times."""


def read_amount(text: str) -> float:
    """Read a number with a suffix: ``350K``, ``22M``, ``2G``.

    Raises:
        ValueError: If it is none above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)", text.strip().upper())
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no amount: write e.g. 350K, 22M or 2G")
    return float(match[1]) * 1000 ** " KMGT".index(match[2] or " ")


def read_seconds(text: str) -> float:
    """Read a time: ``5ms``, ``800us``, ``0.1s``.

    Raises:
        ValueError: If it is none above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|ms|us)", text.strip().lower())
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no time: write e.g. 5ms, 800us or 0.1s")
    return float(match[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[match[2]]


@dataclass(frozen=True)
class Target:
    """What the network that is found should cost; one of the targets, or none."""

    target_params: float | None = field(default=None, metadata={"read": read_amount})
    """Search a network of so many parameters, e.g. 2M, at the last stage's depth."""
    target_macs: float | None = field(default=None, metadata={"read": read_amount})
    """Search a network of so many multiply-accumulates an image, e.g. 2G, at the last stage's depth."""
    target_latency: float | None = field(default=None, metadata={"read": read_seconds})
    """Search a network of so much time an image, e.g. 5ms, by --latency-table, at the last stage's depth."""
    latency_table: str | None = None
    """The table that dasvit latency wrote, a file; in settings.json its content."""
    cost_weight: float = 1.0
    """Weight of the squared logarithm of expected cost by target in the upper-level loss."""

    def __post_init__(self) -> None:
        given = [unit for unit in UNITS if getattr(self, f"target_{unit}") is not None]
        if len(given) > 1:
            raise ValueError(f"targets for {' and '.join(given)}: give one of them")
        if (self.target_latency is None) != (self.latency_table is None):
            raise ValueError("target_latency and latency_table go together: dasvit latency writes the table")
        if not 0 <= self.cost_weight < float("inf"):
            raise ValueError(f"cost_weight {self.cost_weight} is negative or infinite: use 0 or more")
        if any(not 0 < value < float("inf") for value in (self._value,) if value is not None):
            raise ValueError(f"target {self._value} is not above zero")

    @property
    def unit(self) -> Unit | None:
        """What the target counts; nothing without one."""
        return next((unit for unit in UNITS if getattr(self, f"target_{unit}") is not None), None)

    @property
    def _value(self) -> float | None:
        return None if self.unit is None else getattr(self, f"target_{self.unit}")

    @property
    def value(self) -> float:
        """The target, in its unit.

        Raises:
            ValueError: If there is none.
        """
        if self._value is None:
            raise ValueError("no target is set")
        return self._value


@dataclass(frozen=True)
class Shape:
    """What of a network the cost of an operation depends on.

    Args:
        tokens: Of a layer, the class token included.
        dim: Width of a token.
        depth: Number of layers.
        patch_pixels: Numbers in a patch.
        classes: Number of classes.
    """

    tokens: int
    dim: int
    depth: int
    patch_pixels: int
    classes: int


@cache
def operation_cost(
    operation: Operation, unit: Unit, shape: Shape, table: str | None = None, *, last: bool = False
) -> float:
    """Return what an operation costs in one layer, all tokens computed; of a time, the mean over the layers.

    Args:
        operation: The operation.
        unit: What is counted.
        shape: Of the network.
        table: Content of a table of times, for ``"latency"``.
        last: Whether it enters the last node, of whose last layer the class token alone is computed. Parameters and
            multiply-accumulates are counted for all tokens, times are what is computed.

    Raises:
        ValueError: If the table is none of this shape or lacks the operation.
    """
    spec = operation.spec
    if spec.module is None and unit != "latency":
        return 0.0
    if unit == "params":
        return float(spec.count(shape.dim, operation.size))
    if unit == "macs":
        if spec.macs is not None:
            return float(spec.macs(shape.tokens, shape.dim, operation.size))
        return float(_counted(operation, shape))
    times = read_table(table or "", shape, last)
    if str(operation) not in times:
        raise ValueError(f"latency table has no time of {operation}: measure again with it, by dasvit latency")
    return times[str(operation)]


def _counted(operation: Operation, shape: Shape) -> int:
    side = int((shape.tokens - 1) ** 0.5)
    with torch.device("meta"), torch.no_grad(), Products() as products:
        module = operation.spec.make(shape.dim, operation.size).eval()
        module(torch.zeros(1, shape.tokens, shape.dim), None, (side, (shape.tokens - 1) // side))
    return products.macs


def trunk_cost(unit: Unit, shape: Shape, table: str | None = None) -> float:
    """Return what a network costs beside its operations; arguments as for :func:`operation_cost`."""
    if unit == "params":
        row = (1, shape.tokens - 1)  # of patches: only their number counts
        sizes = {"patch_size": 1, "in_channels": shape.patch_pixels, "num_classes": shape.classes}
        return float(trunk_parameters(shape.dim, image_size=row, **sizes))
    if unit == "macs":
        return float((shape.tokens - 1) * shape.patch_pixels * shape.dim + shape.dim * shape.classes)
    return read_table(table or "", shape)["trunk"]


@cache
def read_table(text: str, shape: Shape, last: bool = False) -> dict[str, float]:
    """Return the seconds of each operation, and of the ``"trunk"``, of a table that ``dasvit latency`` wrote.

    Args:
        text: Content of the table.
        shape: Of the network.
        last: Whether operations enter the last node.

    Raises:
        ValueError: If the text is no such table, or one of another shape.
    """
    with refusing("latency table"):
        told = json.loads(text)
        expect(told["format"], range(TABLE, TABLE + 1), "format")
        for name, wanted in (("tokens", shape.tokens), ("dim", shape.dim), ("depth", shape.depth)):
            if told[name] != wanted:
                raise ValueError(f"it is for {name} {told[name]}, this search has {wanted}: measure again")
        for part in ("seconds", "last"):
            for name, seconds in told[part].items():
                expect(seconds, float, f"{part}.{name}")
        expect(told["seconds"]["trunk"], float, "seconds.trunk")
        return dict(told["last" if last else "seconds"])


def expected_cost(
    weights: Float[Tensor, "edges operations"],
    prices: Float[Tensor, "edges operations"],
    space: SearchSpace,
) -> Float[Tensor, ""]:
    """Return the expected cost of the operations of one layer, differentiable in the mixing weights.

    An edge gets one of its operations but zero, each with its share of their weights, and of the edges into a node as
    many as the space keeps are kept, each as likely as another.

    Args:
        weights: Mixing weights ``softmax(α)``.
        prices: Of each candidate; not a number for zero, which is never taken.
        space: The search space.
    """
    taken = ~prices.isnan()
    shares = weights * taken
    shares = shares / shares.sum(dim=1, keepdim=True)
    by_edge = (shares * prices.nan_to_num()).sum(dim=1)
    kept = torch.tensor([min(1.0, space.keep / target) for _, target in space.edges]).to(by_edge)
    return (kept * by_edge).sum()


def price_list(
    candidates: Candidates, space: SearchSpace, unit: Unit, shape: Shape, table: str | None = None
) -> Float[Tensor, "edges operations"]:
    """Return what each candidate costs in one layer; not a number for zero."""

    def price(operation: Operation, target: int) -> float:
        if operation.spec.scale == 0:
            return float("nan")
        return operation_cost(operation, unit, shape, table, last=target == space.edges[-1][1])

    rows = zip(candidates, space.edges, strict=True)
    return torch.tensor([[price(op, target) for op in ops] for ops, (_, target) in rows], dtype=torch.float64)


def read_table_file(path: str) -> str:
    """Return what is in a file with a table of times, to be kept in settings; a table's text is returned as it is.

    Raises:
        ValueError: If there is no such file.
    """
    if path.lstrip().startswith("{"):
        return path
    try:
        return json.dumps(json.loads(Path(path).read_text()))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"latency table {path} cannot be read: {reason}: dasvit latency writes one") from None
