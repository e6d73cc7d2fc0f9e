"""Operation fairness regularisation: no operation type may win by default (chapter 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .operations import KINDS
from .relaxation import Candidates


@dataclass(frozen=True)
class FairnessSettings:
    """Coefficients of Eqs. (16)-(19); the paper prints none of their values (ledger).

    Raises:
        ValueError: If a coefficient is negative or infinite, or the limits are not ``0 <= lower <= upper <= 1``.
    """

    skip_weight: float = 1.0
    """λ₁, the weight of the skip term."""
    type_weight: float = 1.0
    """λ₂, the weight of the type term."""
    lower: float = 0.3
    """L, the total weight below which a type is helped."""
    upper: float = 0.6
    """U, the total weight above which a type is penalised."""
    penalty: float = 1.0
    """γ_p, the slope above the upper limit."""
    reward: float = 1.0
    """γ_r, the slope below the lower limit."""

    def __post_init__(self) -> None:
        for name in ("skip_weight", "type_weight", "penalty", "reward"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"fairness {name} {getattr(self, name)} is negative or infinite: it scales a penalty, use 0 or more"
                )
        if not 0 <= self.lower <= self.upper <= 1:
            raise ValueError(f"fairness limits {self.lower} and {self.upper}: need 0 <= lower <= upper <= 1")


def kind_mask(
    candidates: Candidates, *kinds: str, device: torch.device | None = None
) -> Bool[Tensor, "edges operations"]:
    """Return where the candidates are of one of the kinds (``skip``, ``msa``, …)."""
    mask = torch.tensor([[op.kind in kinds for op in operations] for operations in candidates])
    return mask.to(device, non_blocking=True)  # made on a GPU, it would wait for all that the GPU has to do


def skip_term(p: Float[Tensor, "edges operations"], candidates: Candidates) -> Float[Tensor, ""]:
    """Return ``R_skip``, Eq. (16): the mean weight of all skip-connects still in play (0 when none is)."""
    mask = kind_mask(candidates, *(name for name, kind in KINDS.items() if kind.scale == 1), device=p.device)
    return (p * mask).sum() / mask.sum().clamp_min(1)


def type_weights(p: Float[Tensor, "edges operations"], candidates: Candidates) -> dict[str, Tensor]:
    """Return ``W_T``, Eq. (17), for each type still in play: its total weight on an edge, averaged over edges."""
    in_play = {op.kind for operations in candidates for op in operations}
    types: dict[str, list[str]] = {}
    for name, kind in KINDS.items():
        if kind.type is not None and name in in_play:
            types.setdefault(kind.type, []).append(name)
    return {t: (p * kind_mask(candidates, *kinds, device=p.device)).sum() / len(p) for t, kinds in types.items()}


def type_term(
    p: Float[Tensor, "edges operations"], candidates: Candidates, settings: FairnessSettings
) -> Float[Tensor, ""]:
    """Return ``R_type``, Eq. (18): a hinge above the upper limit and one below the lower limit, for each type.

    Both hinges are positive: as a loss, a reward written as a negative term would pay for starving a type.
    """
    total = p.new_zeros(())
    for weight in type_weights(p, candidates).values():
        total = total + settings.penalty * (weight - settings.upper).clamp_min(0)
        total = total + settings.reward * (settings.lower - weight).clamp_min(0)
    return total


def fairness_term(
    p: Float[Tensor, "edges operations"], candidates: Candidates, settings: FairnessSettings | None = None
) -> Float[Tensor, ""]:
    """Return ``R = λ₁ R_skip + λ₂ R_type``, Eq. (19).

    Args:
        p: Mixing weights ``softmax(α)``.
        candidates: The operations the columns of ``p`` stand for, by edge.
        settings: Coefficients; the defaults if not given.
    """
    settings = settings or FairnessSettings()
    skip, types = skip_term(p, candidates), type_term(p, candidates, settings)
    return settings.skip_weight * skip + settings.type_weight * types
