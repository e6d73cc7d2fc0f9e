"""What a vision transformer is made of: patches, attention, multi-layer perceptron (chapter 1)."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Affine = tuple[Tensor, Tensor]
"""Weight and bias of a linear layer."""


class PatchEmbed(nn.Module):
    """Cut an image into square patches and map each one linearly to a token.

    Args:
        patch_size: Side of a patch in pixels.
        in_channels: Number of image channels.
        dim: Width D of a token.
    """

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the ``n = h·w / patch_size²`` tokens of each image, in row-major order."""
        return rearrange(self.proj(images), "b d h w -> b (h w) d")


class Attention(nn.Module):
    """Multi-head self-attention, Eqs. (1)-(3): ``softmax(Q Kᵀ / √d_k) V``, heads concatenated, projected.

    Args:
        dim: Width D of a token.
        num_heads: Number of heads.
        head_dim: Width d_k of a head; by default ``dim / num_heads``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim`` and no ``head_dim`` is given.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by {num_heads} heads: choose a multiple of {num_heads}")
        self.num_heads = num_heads
        width = num_heads * (head_dim or dim // num_heads)
        self.qkv = nn.Linear(dim, 3 * width)
        self.proj = nn.Linear(width, dim)

    def _split(
        self, x: Tensor, first: int | None = None, affine: Affine | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (of the ``first`` tokens), keys and values, each ``[b, heads, n, d_k]``."""
        if first is None:
            qkv = self.qkv(x) if affine is None else F.linear(x, *affine)
            q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
            return q, k, v
        weight, bias = affine or (self.qkv.weight, self.qkv.bias)
        width = self.proj.in_features
        q = F.linear(x[:, :first], weight[:width], bias[:width])
        kv = F.linear(x, weight[width:], bias[width:])
        k, v = rearrange(kv, "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        return rearrange(q, "b n (h d) -> b h n d", h=self.num_heads), k, v

    def forward(
        self, x: Float[Tensor, "b n d"], first: int | None = None, affine: Affine | None = None
    ) -> Float[Tensor, "b m d"]:
        """Let every token gather from all tokens.

        Args:
            x: Tokens.
            first: Only so many tokens gather; by default all.
            affine: Weight and bias that take the place of those of ``qkv``.
        """
        q, k, v = self._split(x, first, affine)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))

    def intermediates(
        self, x: Float[Tensor, "b n d"], first: int | None = None, affine: Affine | None = None
    ) -> dict[str, Tensor]:
        """Return the attention maps ``softmax(Q Kᵀ / √d_k)`` of input ``x``, shape ``[b, heads, n, n]``."""
        q, k, _ = self._split(x, first, affine)
        return {"attention": (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)}


class Mlp(nn.Module):
    """Position-wise perceptron, Eq. (4): ``GELU(x W₁ + b₁) W₂ + b₂``.

    Args:
        dim: Width D of a token.
        ratio: Hidden width as a multiple of ``dim`` (rounded down).

    Raises:
        ValueError: If the hidden width is below one.
    """

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        if hidden < 1:
            raise ValueError(f"MLP ratio {ratio:g} of dim {dim} leaves no hidden unit: choose a larger ratio")
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n d"], affine: Affine | None = None) -> Float[Tensor, "b n d"]:
        """Transform every token by itself; ``affine``, weight and bias, takes the place of those of ``fc1``."""
        return self.fc2(self.act(self.fc1(x) if affine is None else F.linear(x, *affine)))


LAYER_NORM_EPS = 1e-6
"""Epsilon of the LayerNorm used throughout, that of the published ViT."""


def layer_norm(dim: int) -> nn.LayerNorm:
    """Return the LayerNorm used throughout; epsilon 1e-6, as the published ViT has it."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
