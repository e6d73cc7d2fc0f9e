"""Attention and MLP as terms of a mixed edge, computed so that little is kept for the backward pass (page on memory).

All candidates on a node read one normalised tensor: scale and shift of each candidate's LayerNorm become part of the
linear layer behind it. The mixing weight becomes part of the last linear layer, so that no candidate's output is kept.
GELU, and weights that were put together, are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from .layers import LAYER_NORM_EPS, Attention, Mlp, attend

LeanTerm = Callable[[nn.LayerNorm, Any, Tensor, Tensor, int | None], Tensor]
"""``weight · module(norm(x))`` from norm, module, normalised tokens, weight, and how many tokens are wanted.

First derivatives only. Modules inside ``module`` are not called, so hooks on them see nothing.
"""


def normalise(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Return tokens with mean 0 and variance 1, as LayerNorm has them before it scales and shifts."""
    x_hat = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
    if torch.is_autocast_enabled(x.device.type):  # once, and not by each of the layers that read it
        x_hat = x_hat.to(torch.get_autocast_dtype(x.device.type))
    return x_hat


def weighted_attention(
    norm: nn.LayerNorm,
    module: Attention,
    x_hat: Float[Tensor, "b n d"],
    weight: Float[Tensor, ""],
    first: int | None = None,
) -> Float[Tensor, "b m d"]:
    """Return ``weight · module(norm(x))`` from tokens that are normalised, but not yet scaled and shifted.

    Args:
        norm: The LayerNorm; its scale and shift are used.
        module: Attention.
        x_hat: See :func:`normalise`.
        weight: Mixing weight p.
        first: Only so many tokens are wanted; by default all.
    """
    if first is not None:
        gathered = module.gather(x_hat, first, (norm.weight, norm.bias))
    else:
        gathered = attend(*module.split(_affine_linear(x_hat, module.qkv, norm)))
    return _weighted_linear(gathered, module.proj, weight)


def weighted_mlp(
    norm: nn.LayerNorm,
    module: Mlp,
    x_hat: Float[Tensor, "b n d"],
    weight: Float[Tensor, ""],
    first: int | None = None,
) -> Float[Tensor, "b m d"]:
    """Return the same for an MLP; its arguments are those of :func:`weighted_attention`."""
    return _weighted_linear(_affine_linear(x_hat[:, :first], module.fc1, norm), module.fc2, weight, gelu=True)


def _affine_linear(x: Tensor, linear: nn.Linear, norm: nn.LayerNorm) -> Tensor:
    """Return ``W (γ x + β) + b`` as ``(Wγ) x + (Wβ + b)``."""
    return _AffineLinear.apply(x, linear.weight, linear.bias, norm.weight, norm.bias)


class _AffineLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, scale, shift)
        shifted = (weight * shift).sum(dim=-1) + bias  # autocast would round a product with the matrix, and keep a copy
        return F.linear(x, (weight * scale).to(x.dtype), shifted.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, shift = ctx.saved_tensors
        dx = dy @ (weight * scale).to(dy.dtype) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dx, None, None, None, None
        outer, total = outer_and_sum(dy, x, weight.dtype)
        return dx, torch.addr(outer * scale, total, shift), total, (outer * weight).sum(dim=0), total @ weight


def _weighted_linear(x: Tensor, linear: nn.Linear, weight: Tensor, *, gelu: bool = False) -> Tensor:
    """Return ``p · (W x + b)``, with ``gelu`` of GELU(x)."""
    if x.requires_grad or linear.weight.requires_grad:
        return _WeightedLinear.apply(x, linear.weight, linear.bias, weight, gelu)
    # the gradient of p alone needs no product with W, if the output is kept
    return weight.to(x.dtype) * F.linear(F.gelu(x) if gelu else x, linear.weight, linear.bias)


class _WeightedLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, p: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, w, b, p)
        ctx.gelu = gelu
        return F.linear(F.gelu(x) if gelu else x, (p * w).to(x.dtype), (p * b).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, b, p = ctx.saved_tensors
        needs_x, needs_w, needs_b, needs_p, _ = ctx.needs_input_grad
        z = F.gelu(x) if ctx.gelu and (needs_w or needs_p) else x
        dx = dw = db = dp = None
        if needs_w or needs_b:
            outer, total = outer_and_sum(dy, z, w.dtype)
            dw, db = outer * p, total * p
        if needs_p:
            dz = dy @ w.to(dy.dtype)
            dp = (dz * z).sum(dtype=p.dtype) + dy.flatten(0, -2).sum(dim=0, dtype=p.dtype) @ b.to(p.dtype)
            dz = dz * p.to(dz.dtype)
        elif needs_x:
            dz = dy @ (p * w).to(dy.dtype)
        if needs_x:
            dx = torch.ops.aten.gelu_backward(dz, x) if ctx.gelu else dz
        return dx, dw, db, dp, None


def outer_and_sum(dy: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the gradients of a linear layer's weight and bias."""
    rows = dy.flatten(0, -2)
    return (rows.T @ x.flatten(0, -2)).to(dtype), rows.sum(dim=0, dtype=dtype)
