"""AutoFormer's vision transformers: heads and MLP ratio layer by layer, 2-D relative position (chapters 8, 9; A26)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from .layers import Attention, layer_norm
from .vit import EncoderLayer, VisionTransformer

HEAD_DIM = 64
"""Width of a head, whatever the width of a token."""

MAX_DISTANCE = 14
"""Offsets beyond this many patches share one vector."""


def token_slots(grid: int, device: torch.device | str = "cpu") -> Int[Tensor, "n two"]:
    """Return in which row and which column of patches each token stands; the class token comes first, in slot ``grid``.

    Args:
        grid: Patches along one side; ``n = 1 + grid²`` tokens.
        device: Where the result is.
    """
    place = torch.arange(grid, device=device)
    patches = torch.stack([place.repeat_interleave(grid), place.repeat(grid)], dim=1)
    return torch.cat([torch.full_like(patches[:1], grid), patches])


def relative_index(slots: Int[Tensor, "n two"], grid: int) -> Int[Tensor, "n two slots"]:
    """Return, for each token, axis and slot, which vector belongs to the offset from the token to the slot.

    Returns:
        Indices from 1 to ``2 · MAX_DISTANCE + 1`` for offsets ``-MAX_DISTANCE … MAX_DISTANCE``, further ones clamped; 0
        wherever the class token is one of the two.
    """
    to = torch.arange(grid + 1, device=slots.device)
    index = (to - slots[..., None]).clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE + 1
    return index.masked_fill((to == grid) | (slots[..., None] == grid), 0)


class RelativePosition(nn.Module):
    """One learned vector ``r_ij`` for a pair of tokens: that of its vertical plus that of its horizontal offset.

    Args:
        dim: Width of a vector, that of a head.
    """

    macs_kind = "relative position"  # what its products count as (chapter 8)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.zeros(2, 2 * MAX_DISTANCE + 2, dim))
        nn.init.trunc_normal_(self.tables, std=0.02)

    def forward(self, x: Tensor, index: Tensor, use: Literal["keys", "values"], slots: Tensor | None = None) -> Tensor:
        """Multiply queries or attention with ``r_ij = Σ_axis table[axis][index[i, axis, slot of j]]``.

        Args:
            x: ``keys``: queries ``[b, h, n, d]``; ``values``: attention summed by slot ``[b, h, n, 2 slots]``.
            index: See :func:`relative_index`.
            use: ``keys`` returns the products of each query with the vectors of all slots ``[b, h, n, 2 slots]``;
                ``values`` the sum of the vectors weighted by attention ``[b, h, n, d]``.
            slots: Of the tokens; if given, ``r_ij`` is gathered for all pairs, and ``keys`` returns ``[b, h, n, n]``,
                ``values`` takes attention maps ``[b, h, n, n]``.
        """
        if slots is not None:
            row, column = index[:, 0, slots[:, 0]], index[:, 1, slots[:, 1]]
            vectors = self.tables[0][row] + self.tables[1][column]
            onto = "b h i d, i j d -> b h i j" if use == "keys" else "b h i j, i j d -> b h i d"
            return einsum(x, vectors, onto)
        if use == "keys":
            by_offset = einsum(x, self.tables, "b h n d, a o d -> b h n a o")
            return by_offset.gather(-1, index.expand(*x.shape[:2], -1, -1, -1)).flatten(-2)
        sums = x.unflatten(-1, (2, -1))
        by_offset = sums.new_zeros(*sums.shape[:-1], self.tables.shape[1])
        by_offset = by_offset.scatter_add(-1, index.expand_as(sums), sums)
        return einsum(by_offset, self.tables, "b h n a o, a o d -> b h n d")


class RelativeAttention(Attention):
    """Attention that knows where tokens stand to each other: ``softmax((q_i·k_j + q_i·r_ij) / √d_k) (v_j + r'_ij)``.

    A vector ``r_ij`` depends on j only by its row and its column. So ``q_i·r_ij`` is a product of the queries' products
    with all rows and columns and an indicator of j's; keys and values that carry this indicator make the whole of it
    one plain attention, and no tensor of all pairs' vectors is needed.

    Args:
        dim: Width of a token.
        num_heads: Number of heads.
        grid: Patches along one side of the image.
        head_dim: Width d_k of a head.
        gathered: Make the tensor of all pairs' vectors and multiply with it, as published: the same numbers, slower.
    """

    def __init__(self, dim: int, num_heads: int, grid: int, head_dim: int = HEAD_DIM, gathered: bool = False) -> None:
        super().__init__(dim, num_heads, head_dim)
        self.grid, self.gathered = grid, gathered
        self.relative_keys = RelativePosition(head_dim)
        self.relative_values = RelativePosition(head_dim)

    def forward(self, x: Float[Tensor, "b n d"], first: int | None = None) -> Float[Tensor, "b m d"]:
        """Let every token, or only the ``first`` ones, gather from all tokens, each seen from where it stands."""
        q, k, v = self.split(self.qkv(x))
        q = q[:, :, :first]
        slots = token_slots(self.grid, x.device)
        index = relative_index(slots[:first], self.grid)
        if self.gathered:
            attention = self._attention(q, k, slots, index)
            y = attention @ v + self.relative_values(attention, index, "values", slots)
        else:
            indicator = slots.unsqueeze(-1) == torch.arange(self.grid + 1, device=x.device)
            indicator = indicator.flatten(1).to(k).expand(*k.shape[:2], -1, -1)
            q_, k_ = torch.cat([q, self.relative_keys(q, index, "keys")], -1), torch.cat([k, indicator], -1)
            y = F.scaled_dot_product_attention(q_, k_, torch.cat([v, indicator], -1), scale=q.shape[-1] ** -0.5)
            y, sums = y.tensor_split([q.shape[-1]], dim=-1)
            y = y + self.relative_values(sums, index, "values")
        return self.proj(rearrange(y, "b h n d -> b n (h d)"))

    def _attention(self, q: Tensor, k: Tensor, slots: Tensor, index: Tensor) -> Tensor:
        logits = q @ k.transpose(-2, -1) + self.relative_keys(q, index, "keys", slots)
        return (logits / q.shape[-1] ** 0.5).softmax(dim=-1)

    def intermediates(self, x: Float[Tensor, "b n d"], first: int | None = None) -> dict[str, Tensor]:
        """Return the attention maps of input ``x``, shape ``[b, heads, n, n]``."""
        q, k, _ = self.split(self.qkv(x))
        slots = token_slots(self.grid, x.device)
        return {"attention": self._attention(q[:, :, :first], k, slots, relative_index(slots[:first], self.grid))}


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

    norm = partial(layer_norm, eps=1e-5)
    layers = (EncoderLayer(dim, h, r, attention, norm) for h, r in zip(num_heads, mlp_ratios, strict=True))
    settings |= {"image_size": image_size, "patch_size": patch_size, "pool": "mean", "norm": norm}
    return VisionTransformer(lambda: next(layers), depth=len(num_heads), dim=dim, **settings)
