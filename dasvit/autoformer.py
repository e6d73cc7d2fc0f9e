"""AutoFormer's vision transformers: heads and MLP ratio layer by layer, 2-D relative position (chapters 8 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from .layers import Attention
from .vit import EncoderLayer, VisionTransformer

HEAD_DIM = 64
"""Width of a head, whatever the width of a token."""

MAX_DISTANCE = 14
"""Offsets beyond this many patches share one vector."""


def relative_index(grid: int, device: torch.device | str = "cpu") -> Int[Tensor, "g g"]:
    """Return which vector belongs to the offset from one row (or column) of patches to another.

    Args:
        grid: Patches along one side.
        device: Where the result is.

    Returns:
        Indices from 1 to ``2 · MAX_DISTANCE + 1`` for offsets ``-MAX_DISTANCE … MAX_DISTANCE``, further ones clamped; 0
        is left for pairs with the class token.
    """
    place = torch.arange(grid, device=device)
    return (place - place[:, None]).clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE + 1


class RelativePosition(nn.Module):
    """One learned vector ``r_ij`` for a pair of tokens: that of its vertical plus that of its horizontal offset.

    Args:
        grid: Patches along one side of the image.
        dim: Width of a vector, that of a head.
        gathered: Multiply with all ``r_ij``, a tensor ``[n, n, dim]``, as published; else by rows and columns, which is
            the same with a fraction of the products: the vector of a pair is known from two numbers of ``grid`` each.
    """

    macs_kind = "relative position"  # what its products count as (chapter 8)

    def __init__(self, grid: int, dim: int, gathered: bool = False) -> None:
        super().__init__()
        self.grid, self.gathered = grid, gathered
        self.tables = nn.Parameter(torch.zeros(2, 2 * MAX_DISTANCE + 2, dim))
        nn.init.trunc_normal_(self.tables, std=0.02)

    def _axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the vector of pairs with the class token, and those of pairs of rows and of columns ``[g, g, d]``."""
        index = relative_index(self.grid, self.tables.device)
        return self.tables[:, 0].sum(0), self.tables[0][index], self.tables[1][index]

    def vectors(self) -> Float[Tensor, "n n d"]:
        """Return ``r_ij`` for all pairs; the class token comes first."""
        token, rows, columns = self._axes()
        patches = rows[:, None, :, None] + columns[None, :, None, :]
        patches = rearrange(patches, "r c s t d -> (r c) (s t) d")
        framed = torch.cat([token.expand(len(patches), 1, -1), patches], dim=1)
        return torch.cat([token.expand_as(framed[:1]), framed])

    def forward(self, x: Float[Tensor, "b h n x"], onto: Literal["keys", "values"]) -> Float[Tensor, "b h n y"]:
        """Return ``q_i · r_ij`` of queries (onto keys), or ``Σ_j a_ij r_ij`` of attention maps (onto values)."""
        if self.gathered and onto == "keys":
            return einsum(x, self.vectors(), "b h i d, i j d -> b h i j")
        if self.gathered:
            return einsum(x, self.vectors(), "b h i j, i j d -> b h i d")
        return self._onto_keys(x) if onto == "keys" else self._onto_values(x)

    def _onto_keys(self, q: Tensor) -> Tensor:
        token, rows, columns = self._axes()
        patches = rearrange(q[:, :, 1:], "b h (r c) d -> b h r c d", r=self.grid)
        by_row = einsum(patches, rows, "b h r c d, r s d -> b h r c s")
        by_column = einsum(patches, columns, "b h r c d, c s d -> b h r c s")
        among = rearrange(by_row[..., None] + by_column[..., None, :], "b h r c s t -> b h (r c) (s t)")
        with_token = q @ token[:, None]
        return torch.cat([with_token, F.pad(among, (0, 0, 1, 0)) + _first(with_token)], dim=-1)

    def _onto_values(self, attention: Tensor) -> Tensor:
        token, rows, columns = self._axes()
        among = attention[:, :, 1:, 1:].unflatten(-1, (self.grid, self.grid)).unflatten(2, (self.grid, self.grid))
        by_row = einsum(among.sum(-1), rows, "b h r c s, r s d -> b h r c d")
        by_column = einsum(among.sum(-2), columns, "b h r c s, c s d -> b h r c d")
        patches = (by_row + by_column).flatten(2, 3) + attention[:, :, 1:, :1] * token
        return torch.cat([token.expand_as(patches[:, :, :1]), patches], dim=2)  # a row of attention sums to one


def _first(x: Tensor) -> Tensor:
    """Return ``x`` with all but its first row zero."""
    return F.pad(x[:, :, :1], (0, 0, 0, x.shape[2] - 1))


class RelativeAttention(Attention):
    """Attention that knows where tokens stand to each other: ``softmax((q_i·k_j + q_i·r_ij) / √d_k) (v_j + r'_ij)``.

    Args:
        dim: Width of a token.
        num_heads: Number of heads.
        grid: Patches along one side of the image.
        head_dim: Width d_k of a head.
        gathered: See :class:`RelativePosition`.
    """

    def __init__(self, dim: int, num_heads: int, grid: int, head_dim: int = HEAD_DIM, gathered: bool = False) -> None:
        super().__init__(dim, num_heads, head_dim)
        self.relative_keys = RelativePosition(grid, head_dim, gathered)
        self.relative_values = RelativePosition(grid, head_dim, gathered)

    def _attention(self, q: Tensor, k: Tensor) -> Tensor:
        logits = q @ k.transpose(-2, -1) + self.relative_keys(q, "keys")
        return (logits / q.shape[-1] ** 0.5).softmax(dim=-1)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Let every token gather from all tokens, each seen from where it stands."""
        q, k, v = self._split(x)
        attention = self._attention(q, k)
        y = attention @ v + self.relative_values(attention, "values")
        return self.proj(rearrange(y, "b h n d -> b n (h d)"))

    def intermediates(self, x: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        """Return the attention maps of input ``x``, shape ``[b, heads, n, n]``."""
        q, k, _ = self._split(x)
        return {"attention": self._attention(q, k)}


def build_autoformer(
    dim: int,
    num_heads: Sequence[int],
    mlp_ratios: Sequence[float],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    head_dim: int = HEAD_DIM,
    relative_position: bool = True,
    gathered: bool = False,
    **settings: Any,
) -> VisionTransformer:
    """Build a vision transformer as AutoFormer has them.

    Pre-norm layers of heads of one width, so that the width of attention need not be that of a token; LayerNorm with
    epsilon 1e-5; the mean of the patch tokens is classified.

    Args:
        dim: Width D of a token.
        num_heads: Attention heads of each layer.
        mlp_ratios: Hidden width of each layer's MLP as a multiple of ``dim``.
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels.
        head_dim: Width of a head.
        relative_position: Whether attention has relative position.
        gathered: See :class:`RelativePosition`.
        **settings: ``in_channels``, ``num_classes``, ``init`` of :class:`~dasvit.vit.VisionTransformer`.

    Raises:
        ValueError: If the two lists differ in length, or the sizes do not fit together.
    """
    if len(num_heads) != len(mlp_ratios):
        raise ValueError(f"{len(num_heads)} layers by their heads, {len(mlp_ratios)} by their MLP ratios: give both")

    def attention(dim: int, num_heads: int) -> Attention:
        if relative_position:
            return RelativeAttention(dim, num_heads, image_size // patch_size, head_dim, gathered)
        return Attention(dim, num_heads, head_dim)

    layers = (EncoderLayer(dim, h, r, attention) for h, r in zip(num_heads, mlp_ratios, strict=True))
    settings |= {"image_size": image_size, "patch_size": patch_size, "pool": "mean"}
    model = VisionTransformer(lambda: next(layers), depth=len(num_heads), dim=dim, **settings)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    return model
