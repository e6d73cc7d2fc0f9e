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
    """Coefficients of Eqs. (16)-(19); the paper prints none of their values (ledger A20).

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


class Fairness:
    """``R = λ₁ R_skip + λ₂ R_type``, Eq. (19), of the mixing weights of some candidates.

    What depends on the candidates alone is made once, and once sent to the device.

    Args:
        candidates: The operations the columns of the mixing weights stand for, by edge.
        settings: Coefficients; the defaults if not given.
        device: Where the mixing weights are.
    """

    def __init__(
        self, candidates: Candidates, settings: FairnessSettings | None = None, device: torch.device | None = None
    ) -> None:
        self.settings = settings or FairnessSettings()
        self._skip = kind_mask(candidates, *(name for name, kind in KINDS.items() if kind.scale == 1)).to(device)
        self._skips = self._skip.sum().clamp_min(1)
        in_play = {op.kind for operations in candidates for op in operations}
        types: dict[str, list[str]] = {}
        for name, kind in KINDS.items():
            if kind.type is not None and name in in_play:
                types.setdefault(kind.type, []).append(name)
        self._types = {t: kind_mask(candidates, *kinds).to(device) for t, kinds in types.items()}

    def skip_term(self, p: Float[Tensor, "edges operations"]) -> Float[Tensor, ""]:
        """Return ``R_skip``, Eq. (16): the mean weight of all skip-connects still in play (0 when none is; A49)."""
        return (p * self._skip).sum() / self._skips

    def type_weights(self, p: Float[Tensor, "edges operations"]) -> dict[str, Tensor]:
        """Return ``W_T``, Eq. (17), for each type still in play: its total on an edge, averaged over edges (A18)."""
        return {t: (p * mask).sum() / len(p) for t, mask in self._types.items()}

    def type_term(self, p: Float[Tensor, "edges operations"]) -> Float[Tensor, ""]:
        """Return ``R_type``, Eq. (18): a hinge above the upper limit and one below the lower limit, for each type.

        Both hinges are positive (ledger A19): as a loss, a reward written as a negative term would pay for starving a
        type.
        """
        total = p.new_zeros(())
        for weight in self.type_weights(p).values():
            total = total + self.settings.penalty * (weight - self.settings.upper).clamp_min(0)
            total = total + self.settings.reward * (self.settings.lower - weight).clamp_min(0)
        return total

    def __call__(self, p: Float[Tensor, "edges operations"]) -> Float[Tensor, ""]:
        """Return R for mixing weights ``softmax(α)``."""
        skip, types = self.skip_term(p), self.type_term(p)
        return self.settings.skip_weight * skip + self.settings.type_weight * types


def kind_mask(candidates: Candidates, *kinds: str) -> Bool[Tensor, "edges operations"]:
    """Return where the candidates are of one of the kinds (``skip``, ``msa``, …)."""
    return torch.tensor([[op.kind in kinds for op in operations] for operations in candidates])


def skip_term(p: Float[Tensor, "edges operations"], candidates: Candidates) -> Float[Tensor, ""]:
    """Return :meth:`Fairness.skip_term`, Eq. (16)."""
    return Fairness(candidates, device=p.device).skip_term(p)


def type_weights(p: Float[Tensor, "edges operations"], candidates: Candidates) -> dict[str, Tensor]:
    """Return :meth:`Fairness.type_weights`, Eq. (17)."""
    return Fairness(candidates, device=p.device).type_weights(p)


def type_term(
    p: Float[Tensor, "edges operations"], candidates: Candidates, settings: FairnessSettings
) -> Float[Tensor, ""]:
    """Return :meth:`Fairness.type_term`, Eq. (18)."""
    return Fairness(candidates, settings, p.device).type_term(p)


def fairness_term(
    p: Float[Tensor, "edges operations"], candidates: Candidates, settings: FairnessSettings | None = None
) -> Float[Tensor, ""]:
    """Return ``R``, Eq. (19), see :class:`Fairness`.

    Args:
        p: Mixing weights ``softmax(α)``.
        candidates: The operations the columns of ``p`` stand for, by edge.
        settings: Coefficients; the defaults if not given.
    """
    return Fairness(candidates, settings, p.device)(p)
