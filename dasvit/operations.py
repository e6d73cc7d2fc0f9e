"""The table of operations: all that the library knows of a kind of candidate, and how to add another (chapter 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import Attention, Mlp, attend, layer_norm
from .lean import LeanTerm, weighted_attention, weighted_mlp
from .options import MODULES

Piece = TypeVar("Piece")
Made = TypeVar("Made")

MAX_HEADS, MAX_RATIO = 1024, 64.0

Size = int | float | None
"""What an operation is told by what follows its colon: heads, hidden ratio, width of a kernel, …"""

Few = Literal["each", "asked", "cut"]
"""How few tokens are computed where only the first ones are wanted.

``"each"``: the module transforms each token by itself and is given those alone. ``"asked"``: it takes them as an
argument, ``module(x, first=…)``. ``"cut"``: it computes all, and the others are thrown away.
"""

Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(frozen=True)
class Halves:
    """An operation as two linear layers with something between them; those of many can be computed in one product.

    Args:
        first: Name of the layer that reads the tokens, in the module.
        second: Name of the layer whose output is the module's.
        between: From the module, what the first layer returned, and how many tokens are wanted (by default all):
            what the second layer reads, ``[b, m, inputs]``.
        sees_all: Whether it needs the first layer's output of all tokens, however few are wanted.
    """

    first: str
    second: str
    between: Callable[[Any, Tensor, int | None], Tensor]
    sees_all: bool = False


def _attended(module: Attention, qkv: Tensor, first: int | None) -> Tensor:
    q, k, v = module.split(qkv)
    return attend(q[:, :, :first], k, v)


def _activated(module: Mlp, y: Tensor, first: int | None) -> Tensor:
    return F.gelu(y[:, :first])


class Zero(nn.Module):
    """The operation that cuts an edge; called as any operation is, see :class:`PreNorm`."""

    def forward(
        self, x: Float[Tensor, "b n d"], first: int | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "b m d"]:
        """Return zeros."""
        return torch.zeros_like(x[:, :first])


class Skip(nn.Module):
    """Identity, called as any operation is."""

    def forward(
        self, x: Float[Tensor, "b n d"], first: int | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "b m d"]:
        """Return the tokens, or the ``first`` ones."""
        return x[:, :first]


class PreNorm(nn.Module):
    """The module of an operation on a LayerNorm of its input, without a residual: identity is a candidate (ledger A5).

    Args:
        kind: Of the operation; the module goes by its name.
        module: Maps tokens ``[b, n, dim]`` to such.
        dim: Width of a token.
    """

    def __init__(self, kind: Kind, module: nn.Module, dim: int) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.add_module(kind.name, module)
        self._name, self.few, self.needs_grid, self.lean = kind.name, kind.few, kind.needs_grid, kind.lean
        self.halves = kind.halves

    @property
    def module(self) -> nn.Module:
        """The module behind the LayerNorm."""
        return self.get_submodule(self._name)

    def forward(
        self, x: Float[Tensor, "b n d"], first: int | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "b m d"]:
        """Transform all tokens, or only the ``first`` ones; ``grid`` is that of the patch tokens."""
        how: dict[str, Any] = {"grid": grid} if self.needs_grid else {}
        if self.few == "each":
            return self.module(self.norm(x[:, :first]), **how)
        if self.few == "asked" and first is not None:
            how["first"] = first
        return self.module(self.norm(x), **how)[:, :first]


def _no_size(text: str) -> Size:
    raise ValueError(f"{text!r} where nothing is said")


@dataclass(frozen=True)
class Kind:
    """A kind of operation, and all that the library asks of it.

    Args:
        name: What it is written as, before the colon.
        module: Called as ``module(dim, size)``, on the ``meta`` device too; returns a module on tokens ``[b, n, dim]``,
            which gets a LayerNorm in front of it. Nothing for an operation without weights, which has a ``scale``.
        parameters: Called as ``parameters(dim, size)``; those of the module. By default they are counted.
        macs: Called as ``macs(tokens, dim, size)``; multiply-accumulates for one image, every matrix product counted.
        usage: How it is written, for messages.
        read: Reads what follows the colon; raises :class:`ValueError` if it is no size. Without it there is no colon.
        colour: In figures.
        type: What it counts as in the fairness term; nothing if it is of no type.
        attends: Whether each token sees all others in it; without such an operation the class token sees no image.
        few: How few tokens are computed where only the first ones are wanted.
        needs_grid: Whether it needs the patch tokens where they stand: the module is called as
            ``module(x, grid=(rows, columns))``, with the class token first. Where such a candidate is in play, tokens
            are not selected.
        lean: Its term of a mixed edge in the lean way, if it has one.
        halves: How it falls into two linear layers, if it does; it can then be computed with others in one product.
        scale: 0 for the operation that returns nothing, 1 for the one that returns its input.
    """

    name: str
    module: Callable[[int, Any], nn.Module] | None = None
    parameters: Callable[[int, Any], int] | None = None
    macs: Callable[[int, int, Any], int] | None = None
    usage: str = ""
    read: Callable[[str], Size] = _no_size
    colour: str = "#b65fb0"
    type: str | None = None
    attends: bool = False
    few: Few = "cut"
    needs_grid: bool = False
    lean: LeanTerm | None = None
    halves: Halves | None = None
    scale: Literal[0, 1] | None = None

    @property
    def sized(self) -> bool:
        """Whether it is written with a colon and a size."""
        return self.read is not _no_size

    def make(self, dim: int, size: Size) -> nn.Module:
        """Return an operation of this kind as a module on tokens ``[b, n, dim]``.

        Raises:
            ValueError: If the size does not fit ``dim``.
        """
        if self.module is None:
            return Skip() if self.scale else Zero()
        return PreNorm(self, self.module(dim, size), dim)

    def count(self, dim: int, size: Size) -> int:
        """Return the number of parameters of what :meth:`make` returns, in closed form if there is one."""
        if self.module is None:
            return 0
        if self.parameters is not None:
            return 2 * dim + self.parameters(dim, size)
        with torch.device("meta"):
            return sum(p.numel() for p in self.make(dim, size).parameters())


def _heads(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_HEADS):
        raise ValueError(f"{text!r} is no number of heads")
    return int(text)


def _ratio(text: str) -> float:
    if not 0 < (ratio := float(text)) <= MAX_RATIO:
        raise ValueError(f"{text!r} is no hidden ratio")
    return ratio


TAKEN = {
    "norm",
    "module",
    "few",
    "needs_grid",
    "lean",
    "halves",
}  # in PreNorm, whose module goes by the operation's name
KINDS: dict[str, Kind] = {}
"""Every kind of operation by its name, in the order in which candidates are listed."""


def register(kind: Kind) -> Kind:
    """Add a kind of operation to the table; it can be searched, written in genotypes, built, counted and drawn then.

    Raises:
        ValueError: If the name is taken or cannot be used, or what the kind says does not go together.
    """
    if kind.name in KINDS:
        raise ValueError(f"there is an operation {kind.name!r} already: choose another name")
    if not kind.name.isidentifier() or kind.name in TAKEN or hasattr(nn.Module(), kind.name):
        raise ValueError(f"{kind.name!r} cannot name an operation: use letters, digits and _, and no name of torch's")
    if (kind.module is None) == (kind.scale is None):
        raise ValueError(f"operation {kind.name!r} needs a module or a scale, and not both")
    if kind.scale == 0 and any(other.scale == 0 for other in KINDS.values()):
        raise ValueError(f"operation {kind.name!r} has scale 0: there is a zero operation already")
    if kind.few == "each" and kind.needs_grid:
        raise ValueError(f"operation {kind.name!r} cannot transform each token by itself and need the grid: few='cut'")
    KINDS[kind.name] = kind
    return kind


def known() -> str:
    """Return in words how operations are written, and how to add one."""
    written = ", ".join(kind.usage or kind.name for kind in KINDS.values())
    return f"known: {written}; dasvit.operations.register adds one, for commands in a module that {MODULES} names"


for _kind in (
    Kind("none", colour="#8a8f98", scale=0),
    Kind("skip", colour="#3a9d5d", scale=1),
    Kind(
        "msa",
        Attention,
        lambda d, heads: 4 * d * (d + 1),
        lambda n, d, heads: 4 * n * d * d + 2 * n * n * d,
        usage=f"msa:HEADS (1-{MAX_HEADS})",
        read=_heads,
        colour="#3b82c4",
        type="msa",
        attends=True,
        few="asked",
        lean=weighted_attention,
        halves=Halves("qkv", "proj", _attended, sees_all=True),
    ),
    Kind(
        "mlp",
        Mlp,
        lambda d, ratio: (2 * d + 1) * int(d * ratio) + d,
        lambda n, d, ratio: 2 * n * d * int(d * ratio),
        usage=f"mlp:RATIO (above 0, at most {MAX_RATIO:g})",
        read=_ratio,
        colour="#d9722e",
        type="mlp",
        few="each",
        lean=weighted_mlp,
        halves=Halves("fc1", "fc2", _activated),
    ),
):
    register(_kind)

_LIBRARYS = frozenset(KINDS)


def portable(work: Callable[[Piece], Made]) -> Callable[[Piece], Made]:
    """Return the same work for another process, which first learns the kinds that were registered in this one."""
    return partial(_informed, [kind for name, kind in KINDS.items() if name not in _LIBRARYS], work)


def _informed(kinds: Sequence[Kind], work: Callable[[Piece], Made], piece: Piece) -> Made:
    for kind in kinds:
        KINDS.setdefault(kind.name, kind)
    return work(piece)
