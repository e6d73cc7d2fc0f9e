"""What the DARTS family varies; the defaults are those of DARTS and of DASViT (chapter 12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mix = Literal["softmax", "sigmoid", "dirichlet", "uniform"]
"""How α becomes mixing weights p."""


@dataclass(frozen=True)
class RelaxationSettings:
    """How α becomes mixing weights, what they mix, and the terms of the objective that look at α alone.

    Raises:
        ValueError: If a value is out of range, or two do not go together.
    """

    mix: Mix = "softmax"
    """softmax; sigmoid (FairDARTS); dirichlet (DrNAS); uniform: one random path a step, without α (single path)."""
    partial: int = 1
    """Operate on one of so many parts of the channels and learn weights of edges (PC-DARTS); 1 operates on all."""
    entangled: bool = False
    """Let candidates of one kind share their weights (TangleNAS)."""
    skip_bonus: float = 0.0
    """Weight β of an auxiliary skip beside each identity, decaying to zero in a stage (DARTS−)."""
    skip_dropout: tuple[float, ...] = ()
    """Rate by stage at which identities are dropped, decaying to zero in a stage (P-DARTS); the last one holds on."""
    zero_one: float = 0.0
    """Weight of the zero-one loss, which pulls sigmoids away from one half (FairDARTS)."""
    beta: float = 0.0
    """Weight at the end of a stage of the mean of logsumexp(α), growing from zero (β-DARTS)."""
    anchor: float = 0.0
    """Weight of the squared distance of Dirichlet concentrations from one (DrNAS)."""

    def __post_init__(self) -> None:
        for name in ("skip_bonus", "zero_one", "beta", "anchor"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)} is negative or infinite: use 0 or more")
        if not all(0 <= rate < 1 for rate in self.skip_dropout):
            raise ValueError(f"skip_dropout {self.skip_dropout} is outside [0, 1): 0 drops nothing")
        if self.partial < 1:
            raise ValueError(f"partial {self.partial} parts of the channels: 1 operates on all of them")
        if self.partial > 1 and self.entangled:
            raise ValueError("entangled with partial channels: choose one of the two")
        if self.mix == "uniform":
            other = {"partial": self.partial > 1, "entangled": self.entangled, "skip_bonus": self.skip_bonus}
            other |= {"skip_dropout": any(self.skip_dropout), "zero_one": self.zero_one}
            other |= {"beta": self.beta, "anchor": self.anchor}
            if wrong := [name for name, given in other.items() if given]:
                raise ValueError(f"{wrong[0]} with mix uniform: one random path has no α, leave it out")
        if self.zero_one and self.mix != "sigmoid":
            raise ValueError(f"zero_one with mix {self.mix}: it is a loss of sigmoids, use --mix sigmoid")
        if self.anchor and self.mix != "dirichlet":
            raise ValueError(f"anchor with mix {self.mix}: it anchors concentrations, use --mix dirichlet")

    @property
    def own_edges(self) -> bool:
        """Whether edges compute otherwise than each operation by itself on all channels."""
        return self.partial > 1 or self.entangled or self.mix == "uniform"

    @property
    def steps_differ(self) -> bool:
        """Whether a step depends on when it is taken, so that it cannot be recorded once for all."""
        drawn = self.mix in ("dirichlet", "uniform")
        return drawn or bool(self.skip_bonus or any(self.skip_dropout) or self.beta)

    def dropout(self, stage: int) -> float:
        """Return the rate at which identities are dropped at the start of a stage."""
        return self.skip_dropout[min(stage, len(self.skip_dropout) - 1)] if self.skip_dropout else 0.0


@dataclass(frozen=True)
class ScheduleSettings:
    """When α is moved, when a stage ends, how an encoder is derived, and what is watched.

    Raises:
        ValueError: If a value is out of range.
    """

    alpha_warmup: float = 0.0
    """Share of a stage's epochs, from the first on, in which the weights alone are trained; not in its last one."""
    stop_skips: int | None = None
    """End the stage when the derived encoder has so many identities (DARTS+)."""
    max_skips: int | None = None
    """Derive an encoder with at most so many identities (P-DARTS)."""
    paths: int = 1000
    """Encoders that mix uniform looks at with inherited weights in the end."""
    hessian: bool = False
    """Log the dominant eigenvalue of the Hessian of the validation loss in α after each epoch; takes some steps."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha_warmup < 1:
            raise ValueError(f"alpha_warmup {self.alpha_warmup:g} is outside [0, 1): α needs an epoch to move in")
        for name in ("stop_skips", "max_skips"):
            least = int(name == "stop_skips")
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} {value}: use {least} or more, or leave it out")
        if self.paths < 1:
            raise ValueError(f"paths {self.paths}: look at one encoder or more")
