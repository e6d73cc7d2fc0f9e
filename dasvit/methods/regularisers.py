"""Terms of the objective that look at α alone (chapter 12); the fairness of DASViT is in chapter 5."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .mixing import concentration
from .settings import RelaxationSettings


def zero_one(p: Float[Tensor, "edges operations"]) -> Float[Tensor, ""]:
    """Return ``−mean((p − ½)²)`` of sigmoids: least where each is zero or one (FairDARTS, Chu et al. 2020)."""
    return -(p - 0.5).square().mean()


def beta_decay(alpha: Float[Tensor, "edges operations"]) -> Float[Tensor, ""]:
    """Return the mean over edges of ``log Σ_o exp(α_o)`` (β-DARTS, Ye et al. 2022)."""
    return alpha.logsumexp(dim=-1).mean()


def anchor(alpha: Float[Tensor, "edges operations"]) -> Float[Tensor, ""]:
    """Return ``Σ (c − 1)²`` for the concentrations c of α: the distance from the flat distribution.

    The penalty of DrNAS (Chen et al. 2021). Where α is positive ``c − 1`` is α, and half the sum acts as weight decay.
    """
    return (concentration(alpha) - 1).square().sum()


def alpha_term(
    alpha: Float[Tensor, "edges columns"], settings: RelaxationSettings, progress: float
) -> Float[Tensor, ""] | None:
    """Return the sum of all terms that are switched on; nothing if none is.

    Args:
        alpha: Architecture parameters; with partial channels the last column is that of the edges.
        settings: The relaxation.
        progress: How much of the stage is over, from 0 to 1.
    """
    own = alpha[:, :-1] if settings.partial > 1 else alpha
    terms: list[Tensor] = []
    if settings.zero_one:
        terms.append(settings.zero_one * zero_one(own.sigmoid()))
    if settings.beta:
        terms.append(settings.beta * progress * beta_decay(own))
    if settings.anchor:
        terms.append(settings.anchor * anchor(own))
    return torch.stack(terms).sum() if terms else None
