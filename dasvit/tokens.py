"""Attention-based partial token selection: search on the tokens that receive attention (chapter 4)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class TokenSelection(nn.Module):
    """Keep the patch tokens that receive the most attention, Eqs. (13)-(15).

    With ``Q = X W_q``, ``K = X W_k`` and ``A = softmax(Q Kᵀ / √d)``, token i scores the mean of the attention it
    receives, ``s_i = (1/N) Σ_j A_ji`` (ledger A13). Of the N - 1 patch tokens the top ``⌈ρ·(N - 1)⌉`` stay, in their
    original order, and the class token always does (A14). An index selection passes no gradient to its scores, so the
    kept tokens are multiplied by ``s_i / stopgrad(s_i)``: forward unchanged, backward the gradient that trains W_q and
    W_k (A16). What calls it, once after the embedding, is the supernet (A15).

    Args:
        dim: Width D of a token.
        keep_ratio: Share ρ of the patch tokens to keep, in (0, 1]; 1 is the identity (ledger A17).

    Raises:
        ValueError: If ``keep_ratio`` is outside (0, 1].
    """

    def __init__(self, dim: int, keep_ratio: float) -> None:
        super().__init__()
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio {keep_ratio:g} is outside (0, 1]: 1 keeps every token, 0.5 half of them")
        self.keep_ratio = keep_ratio
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)

    def attention(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n n"]:
        """Return ``A``; every row sums to one."""
        q, k = self.query(x), self.key(x)
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)

    def scores(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Return the mean attention each token receives: the mean over a column of ``A``, summing to one."""
        return self.attention(x).mean(dim=-2)

    def select(self, scores: Float[Tensor, "b n"]) -> Int[Tensor, "b m"]:
        """Return the indices to keep in ascending order, the class token (index 0) first."""
        count = max(1, math.ceil(self.keep_ratio * (scores.shape[1] - 1) - 1e-9))  # 0.07 · 100 is 7, not 8
        patches = 1 + scores[:, 1:].topk(count, dim=1).indices.sort(dim=1).values
        return torch.cat([patches.new_zeros(len(patches), 1), patches], dim=1)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Return the kept tokens, ``m = 1 + ⌈ρ·(n - 1)⌉``."""
        if self.keep_ratio == 1:
            return x
        scores = self.scores(x)
        kept = self.select(scores)
        s = scores.gather(1, kept)
        tiny = torch.finfo(s.dtype).tiny
        gate = 1 + (s - s.detach()) / s.detach().clamp_min(tiny)  # s / stopgrad(s), exactly one also where s is 0
        return x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])) * gate.unsqueeze(-1).to(x.dtype)

    def intermediates(self, x: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        """Return ``scores`` ``[b, n]`` and the indices ``kept`` ``[b, m]`` for input ``x``."""
        scores = self.scores(x)
        return {"scores": scores, "kept": self.select(scores)}
