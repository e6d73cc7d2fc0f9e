"""The table of operations: all that the library knows of a kind of candidate, and how to add another (chapter 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .layers import Attention, Mlp, layer_norm
from .lean import LeanTerm, weighted_attention, weighted_mlp

MAX_HEADS, MAX_RATIO = 1024, 64.0

Size = int | float | None
"""What an operation is told by what follows its colon: heads, hidden ratio, width of a kernel, …"""

Few = Literal["each", "asked", "cut"]
"""How few tokens are computed where only the first ones are wanted.

``"each"``: the module transforms each token by itself and is given those alone. ``"asked"``: it takes them as an
argument, ``module(x, first)``. ``"cut"``: it computes all, and the others are thrown away.
"""


Grid = tuple[int, int]
"""Rows and columns of patches."""


class Zero(nn.Module):
    """The operation that cuts an edge."""

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return zeros of the shape of ``x``."""
        return torch.zeros_like(x)


class PreNorm(nn.Module):
    """A module on a LayerNorm of its input, without a residual of its own: identity is itself a candidate (ledger).

    Args:
        name: What the module goes by.
        module: Maps tokens ``[b, n, dim]`` to such.
        dim: Width of a token.
        few: How few tokens are computed where only the first ones are wanted.
        needs_grid: Whether the module is called as ``module(x, grid=(rows, columns))``, see :class:`Kind`.
        lean: Its term of a mixed edge in the lean way, if it has one.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        dim: int,
        *,
        few: Few = "cut",
        needs_grid: bool = False,
        lean: LeanTerm | None = None,
    ) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.add_module(name, module)
        self._name, self.few, self.needs_grid, self.lean = name, few, needs_grid, lean

    @property
    def module(self) -> nn.Module:
        """The module behind the LayerNorm."""
        return self.get_submodule(self._name)

    def forward(
        self, x: Float[Tensor, "b n d"], first: int | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "b m d"]:
        """Transform all tokens, or only the ``first`` ones."""
        how: dict[str, Any] = {"grid": grid} if self.needs_grid else {}
        if self.few == "each":
            return self.module(self.norm(x[:, :first]), **how)
        if self.few == "asked":
            return self.module(self.norm(x), first=first, **how)
        return self.module(self.norm(x), **how)[:, :first]


def few_of(operation: nn.Module, x: Tensor, first: int | None, grid: Grid | None) -> Tensor:
    """Return what an operation makes of tokens ``x``, or of the ``first`` ones."""
    if isinstance(operation, PreNorm):
        return operation(x, first, grid)
    return operation(x)[:, :first]


def _no_size(text: str) -> Size:
    raise ValueError(f"{text!r} where nothing is said")


@dataclass(frozen=True)
class Kind:
    """A kind of operation, and all that the library asks of it.

    Args:
        name: What it is written as, before the colon.
        make: Called as ``make(dim, size)``; returns the module on tokens ``[b, n, dim]``, mostly a :class:`PreNorm`.
        parameters: Called as ``parameters(dim, size)``; their number.
        macs: Called as ``macs(tokens, dim, size)``; multiply-accumulates for one image, every matrix product counted.
        usage: How it is written, for messages.
        read: Reads what follows the colon; raises :class:`ValueError` if it is no size. Without it there is no colon.
        colour: In figures.
        type: What it counts as in the fairness term; nothing if it is of no type.
        attends: Whether each token sees all others in it; without such an operation the class token sees no image.
        needs_grid: Whether it needs the patch tokens where they stand, ``[b, 1 + rows · columns, dim]`` with the class
            token first. Where such a candidate is in play, tokens are not selected.
        scale: 0 for an operation that returns nothing, 1 for one that returns its input; none else have no weights.
    """

    name: str
    make: Callable[[int, Any], nn.Module]
    parameters: Callable[[int, Any], int]
    macs: Callable[[int, int, Any], int]
    usage: str = ""
    read: Callable[[str], Size] = _no_size
    colour: str = "#b65fb0"
    type: str | None = None
    attends: bool = False
    needs_grid: bool = False
    scale: Literal[0, 1] | None = None

    @property
    def sized(self) -> bool:
        """Whether it is written with a colon and a size."""
        return self.read is not _no_size


def _heads(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_HEADS):
        raise ValueError(f"{text!r} is no number of heads")
    return int(text)


def _ratio(text: str) -> float:
    if not 0 < (ratio := float(text)) <= MAX_RATIO:
        raise ValueError(f"{text!r} is no hidden ratio")
    return ratio


KINDS: dict[str, Kind] = {}
"""Every kind of operation by its name, in the order in which candidates are listed."""


def register(kind: Kind) -> Kind:
    """Add a kind of operation to the table; it can be searched, written in genotypes, built, counted and drawn then.

    Raises:
        ValueError: If the name is taken or cannot be written in a genotype.
    """
    if kind.name in KINDS:
        raise ValueError(f"there is an operation {kind.name!r} already: choose another name")
    if not kind.name.isidentifier():
        raise ValueError(f"{kind.name!r} is no name of an operation: use letters, digits and _")
    KINDS[kind.name] = kind
    return kind


def known() -> str:
    """Return in words how operations are written, and how to add one."""
    return (
        f"known: {', '.join(kind.usage or kind.name for kind in KINDS.values())}; dasvit.operations.register adds one"
    )


def _attention(dim: int, heads: int) -> nn.Module:
    return PreNorm("msa", Attention(dim, heads), dim, few="asked", lean=weighted_attention)


def _mlp(dim: int, ratio: float) -> nn.Module:
    return PreNorm("mlp", Mlp(dim, ratio), dim, few="each", lean=weighted_mlp)


def _mlp_parameters(dim: int, ratio: float) -> int:
    return 2 * dim + 2 * dim * int(dim * ratio) + int(dim * ratio) + dim


for _kind in (
    Kind("none", lambda d, _: Zero(), lambda d, _: 0, lambda n, d, _: 0, colour="#8a8f98", scale=0),
    Kind("skip", lambda d, _: nn.Identity(), lambda d, _: 0, lambda n, d, _: 0, colour="#3a9d5d", scale=1),
    Kind(
        "msa",
        _attention,
        lambda d, heads: 2 * d + 4 * d * (d + 1),
        lambda n, d, heads: 4 * n * d * d + 2 * n * n * d,
        usage=f"msa:HEADS (1-{MAX_HEADS})",
        read=_heads,
        colour="#3b82c4",
        type="msa",
        attends=True,
    ),
    Kind(
        "mlp",
        _mlp,
        _mlp_parameters,
        lambda n, d, ratio: 2 * n * d * int(d * ratio),
        usage=f"mlp:RATIO (above 0, at most {MAX_RATIO:g})",
        read=_ratio,
        colour="#d9722e",
        type="mlp",
    ),
):
    register(_kind)
