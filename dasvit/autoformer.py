"""AutoFormer's vision transformers: heads and MLP ratio layer by layer, 2-D relative position (chapters 8 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def relative_index(grid: int) -> Int[Tensor, "two n n"]:
    """Return which vertical and which horizontal vector belongs to each pair of tokens.

    Args:
        grid: Patches along one side; ``n = 1 + grid²`` tokens, the class token first.

    Returns:
        Indices from 1 to ``2 · MAX_DISTANCE + 1`` for offsets ``-MAX_DISTANCE … MAX_DISTANCE``; 0 for every pair with
        the class token.
    """
    place = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")).flatten(1)
    offset = place[:, None, :] - place[:, :, None]
    return F.pad(offset.clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE + 1, (1, 0, 1, 0))


class RelativePosition(nn.Module):
    """One learned vector ``r_ij`` for a pair of tokens: that of its vertical plus that of its horizontal offset.

    Args:
        grid: Patches along one side of the image.
        dim: Width of a vector, that of a head.
    """

    macs_kind = "relative position"  # what its products count as (chapter 8)

    def __init__(self, grid: int, dim: int) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.zeros(2, 2 * MAX_DISTANCE + 2, dim))
        self.register_buffer("index", relative_index(grid), persistent=False)
        self.index: Tensor
        nn.init.trunc_normal_(self.tables, std=0.02)

    def vectors(self) -> Float[Tensor, "n n d"]:
        """Return ``r_ij`` for all pairs."""
        return self.tables[0][self.index[0]] + self.tables[1][self.index[1]]

    def forward(self, x: Float[Tensor, "b h n x"], onto: str) -> Float[Tensor, "b h n y"]:
        """Return ``q_i · r_ij`` of queries (``onto="keys"``), or ``Σ_j a_ij r_ij`` of attention maps (``"values"``)."""
        if onto == "keys":
            return einsum(x, self.vectors(), "b h i d, i j d -> b h i j")
        return einsum(x, self.vectors(), "b h i j, i j d -> b h i d")


class RelativeAttention(Attention):
    """Attention that knows where tokens stand to each other: ``softmax((q_i·k_j + q_i·r_ij) / √d_k) (v_j + r'_ij)``.

    Args:
        dim: Width of a token.
        num_heads: Number of heads.
        grid: Patches along one side of the image.
        head_dim: Width d_k of a head.
    """

    def __init__(self, dim: int, num_heads: int, grid: int, head_dim: int = HEAD_DIM) -> None:
        super().__init__(dim, num_heads, head_dim)
        self.relative_keys = RelativePosition(grid, head_dim)
        self.relative_values = RelativePosition(grid, head_dim)

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
    relative_position: bool = True,
    **settings: Any,
) -> VisionTransformer:
    """Build a vision transformer as AutoFormer has them.

    Pre-norm layers of heads of width 64, so that the width of attention need not be that of a token; LayerNorm with
    epsilon 1e-5; the mean of the patch tokens is classified.

    Args:
        dim: Width D of a token.
        num_heads: Attention heads of each layer.
        mlp_ratios: Hidden width of each layer's MLP as a multiple of ``dim``.
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels.
        relative_position: Whether attention has relative position.
        **settings: ``in_channels``, ``num_classes``, ``init`` of :class:`~dasvit.vit.VisionTransformer`.

    Raises:
        ValueError: If the two lists differ in length, or the sizes do not fit together.
    """
    if len(num_heads) != len(mlp_ratios):
        raise ValueError(f"{len(num_heads)} layers by their heads, {len(mlp_ratios)} by their MLP ratios: give both")

    def attention(dim: int, num_heads: int) -> Attention:
        if relative_position:
            return RelativeAttention(dim, num_heads, grid=image_size // patch_size)
        return Attention(dim, num_heads, HEAD_DIM)

    layers = (EncoderLayer(dim, h, r, attention) for h, r in zip(num_heads, mlp_ratios, strict=True))
    settings |= {"image_size": image_size, "patch_size": patch_size, "pool": "mean"}
    model = VisionTransformer(lambda: next(layers), depth=len(num_heads), dim=dim, **settings)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    return model
