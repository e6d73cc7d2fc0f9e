"""What a vision transformer is made of: patches, attention, multi-layer perceptron (chapter 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

Affine = tuple[Tensor, Tensor]
"""Scale γ and shift β of a LayerNorm."""

_as_on_gpu = ContextVar("as_on_gpu", default=False)


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Compute attention inside the block as on a GPU, in one kernel, to count there what a GPU will do."""
    token = _as_on_gpu.set(True)
    try:
        yield
    finally:
        _as_on_gpu.reset(token)


def attend(
    q: Float[Tensor, "b h m k"], k: Float[Tensor, "b h n k"], v: Float[Tensor, "b h n k"]
) -> Float[Tensor, "b m width"]:
    """Return ``softmax(Q Kᵀ / √d_k) V``, heads side by side."""
    # torch's fused attention is slow there: ten times in the backward pass
    slow = q.is_cpu and q.dtype == torch.bfloat16 and not _as_on_gpu.get()
    y = attention_map(q, k) @ v if slow else F.scaled_dot_product_attention(q, k, v)
    return rearrange(y, "b h m k -> b m (h k)")


def attention_map(q: Float[Tensor, "b h m k"], k: Float[Tensor, "b h n k"]) -> Float[Tensor, "b h m n"]:
    """Return ``softmax(Q Kᵀ / √d_k)``."""
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)


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

    def split(self, qkv: Float[Tensor, "b n three_width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each ``[b, heads, n, d_k]``, from what ``qkv`` returned."""
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.num_heads) for x in qkv.chunk(3, dim=-1))
        return q, k, v

    def forward(self, x: Float[Tensor, "b n d"], first: int | None = None) -> Float[Tensor, "b m d"]:
        """Let every token gather from all tokens, or only the ``first`` ones."""
        if first is not None:
            return self.proj(self.gather(x, first))
        return self.proj(attend(*self.split(self.qkv(x))))

    def gather(
        self, x: Float[Tensor, "b n d"], first: int, affine: Affine | None = None
    ) -> Float[Tensor, "b first width"]:
        """Return what the heads of the ``first`` tokens gather, before it is projected; no keys or values are made.

        With few queries it is less work to bring the queries to the tokens than the tokens to keys and values:
        ``q·(W_k x) = (W_kᵀ q)·x`` and ``Σ_j a_j W_v x_j = W_v Σ_j a_j x_j``. Biases of keys add the same to all scores
        of a query, which the softmax does not see.

        Args:
            x: Tokens.
            first: How many of them gather.
            affine: Scale γ and shift β that ``x`` has not had yet; it is not made for all tokens then either.
        """
        width = self.proj.in_features
        (w_q, w_k, w_v), (b_q, _, b_v) = self.qkv.weight.split(width), self.qkv.bias.split(width)
        asking = x[:, :first] if affine is None else x[:, :first] * affine[0] + affine[1]
        q = rearrange(F.linear(asking, w_q, b_q), "b f (h k) -> b f h k", h=self.num_heads)
        onto_tokens = einsum(q, rearrange(w_k, "(h k) d -> h k d", h=self.num_heads), "b f h k, h k d -> b f h d")
        if affine is not None:
            onto_tokens = onto_tokens * affine[0]
        scores = onto_tokens.flatten(1, 2) @ x.transpose(-2, -1) / q.shape[-1] ** 0.5
        mean = scores.softmax(dim=-1).to(x.dtype) @ x
        if affine is not None:
            mean = mean * affine[0] + affine[1]
        mean = rearrange(mean, "b (f h) d -> b f h d", h=self.num_heads)
        values = einsum(mean, rearrange(w_v, "(h k) d -> h k d", h=self.num_heads), "b f h d, h k d -> b f h k")
        return values.flatten(-2) + b_v.to(values.dtype)

    def intermediates(self, x: Float[Tensor, "b n d"], first: int | None = None) -> dict[str, Tensor]:
        """Return the attention maps ``softmax(Q Kᵀ / √d_k)`` of input ``x``, shape ``[b, heads, n, n]``."""
        q, k, _ = self.split(self.qkv(x))
        return {"attention": attention_map(q[:, :, :first], k)}


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

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Transform every token by itself."""
        return self.fc2(self.act(self.fc1(x)))


LAYER_NORM_EPS = 1e-6
"""Epsilon of the LayerNorm used throughout, that of the published ViT."""


def layer_norm(dim: int, eps: float = LAYER_NORM_EPS) -> nn.LayerNorm:
    """Return the LayerNorm used throughout."""
    return nn.LayerNorm(dim, eps=eps)
