"""Everything that a search depends on (chapter 6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .checks import check_image, check_sizes, check_training
from .costs import Target
from .data.sizes import ImageSize, read_size
from .data.sources import DataSettings
from .engine.hardware import Hardware
from .engine.seeds import check_seed
from .fairness import FairnessSettings
from .methods.settings import RelaxationSettings, ScheduleSettings
from .space import SearchSpace
from .vit import Init

Stage = tuple[int, int, int]
"""Depth in layers, operations kept on each edge, epochs."""


@dataclass(frozen=True)
class SearchSettings:
    """Everything a search depends on. The defaults are the preset ``tiny``."""

    data: DataSettings = field(default_factory=DataSettings)
    """The images."""
    image_size: ImageSize = field(default=8, metadata={"read": read_size})
    """Side in pixels that images are resized to, or height and width: 64 or 48,64."""
    patch_size: int = 2
    """Side of a patch in pixels."""
    dim: int = 48
    """Width of a token."""
    init: Init | None = "xavier"
    """How matrices start; without it nothing is drawn, which is for planning."""
    space: SearchSpace = field(default_factory=SearchSpace)
    """What is searched."""
    stages: tuple[Stage, ...] = ((2, 8, 6), (4, 5, 6), (6, 3, 6))
    """Depth, operations an edge and epochs of each stage."""
    keep_ratio: float = 0.5
    """Share of patch tokens kept in the search."""
    recompute: bool = False
    """Compute operations again in the backward pass: less memory, more time, the same result."""
    joint: Literal["auto", "on", "off"] = "auto"
    """Compute a layer's operations in few large products: the same to rounding; auto: where a GPU has the memory."""
    fairness: FairnessSettings = field(default_factory=FairnessSettings)
    """Operation fairness regularisation."""
    target: Target = field(default_factory=Target)
    """What the network found should cost."""
    attends: bool = False
    """Find the likeliest encoder that has attention: without any, the class token sees no image."""
    relaxation: RelaxationSettings = field(default_factory=RelaxationSettings)
    """What methods of the family vary: how α becomes mixing weights, and terms of α alone."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """When α is moved, when a stage ends, how an encoder is derived."""
    order: Literal[1, 2] = 1
    """Order of the architecture gradient."""
    carry_alpha: bool = False
    """Carry α of the surviving operations into the next stage; otherwise it starts anew."""
    batch_size: int = 32
    """Images in a batch."""
    accumulate: int = 1
    """Compute a batch in so many parts, one after the other: less memory, the same steps."""
    lr: float = 4e-3
    """Learning rate of the weights, annealed to zero in each stage."""
    weight_decay: float = 0.05
    """Weight decay of the weights' matrices."""
    alpha_lr: float = 1e-2
    """Learning rate of α."""
    alpha_weight_decay: float = 1e-3
    """Coefficient of α in its own gradient, as in DARTS."""
    seed: int = 0
    """Seed of the weights, and of what --order-seed draws unless it is given."""
    order_seed: int | None = None
    """Seed of the two halves, of the order of the images and of their distortions."""
    hardware: Hardware = field(default_factory=Hardware)
    """Device and precision."""

    def __post_init__(self) -> None:
        check_training(self.batch_size, self.lr, self.weight_decay)
        check_training(self.batch_size, self.alpha_lr, self.alpha_weight_decay)
        check_seed(self.seed)
        check_seed(self.ordering, "order_seed")
        check_image(self.image_size, self.patch_size)
        check_sizes(dim=self.dim)
        if not self.stages or min(min(stage) for stage in self.stages) < 1:
            raise ValueError(f"stages {self.stages}: each is depth, operations, epochs, all at least one")
        check_sizes(depth=max(depth for depth, *_ in self.stages))
        kept = [operations for _, operations, _ in self.stages]
        if kept[0] != len(self.space.operations) or kept != sorted(kept, reverse=True) or kept[-1] < 2:
            raise ValueError(
                f"stages keep {kept} operations: start with all {len(self.space.operations)}, "
                "never grow, end with 2 or more"
            )
        if not 1 <= self.accumulate <= self.batch_size:
            raise ValueError(
                f"accumulate {self.accumulate} parts of a batch of {self.batch_size}: take 1 to {self.batch_size}"
            )
        if self.batch_size % self.hardware.devices:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided among {self.hardware.devices} devices")
        if self.joint == "on" and self.recompute:
            raise ValueError("joint on with recompute: what is computed in few products is kept, use --joint auto")
        if self.order == 2 and self.hardware.capture == "on":
            raise ValueError("capture on with order 2: only steps of order 1 can be recorded, use --capture auto")
        self._check_method()
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio {self.keep_ratio:g} is outside (0, 1]: 1 keeps every token, 0.5 half of them")

    def _check_method(self) -> None:
        """Check that what methods vary goes together with the rest."""
        how, edges = self.relaxation, None
        if how.partial > 1 and self.dim % how.partial:
            raise ValueError(f"partial {how.partial} does not divide dim {self.dim}")
        if how.own_edges:
            edges = "mix uniform" if how.mix == "uniform" else "entangled" if how.entangled else "partial channels"
        for name, given in {"joint on": self.joint == "on", "recompute": self.recompute}.items():
            if edges and given:
                raise ValueError(f"{name} with {edges}: these edges are computed as they are written, leave it out")
        if edges and self.hardware.compile:
            raise ValueError(f"compile with {edges}: these edges are computed as they are written, leave it out")
        if self.hardware.capture == "on" and (how.steps_differ or self.schedule.alpha_warmup):
            raise ValueError("capture on with steps that differ: what is recorded stays as it is, use --capture auto")
        limited = (
            "mix uniform" if how.mix == "uniform" else "max_skips" if self.schedule.max_skips is not None else None
        )
        if self.attends and limited:
            raise ValueError(f"attends with {limited}: each chooses the encoder in its own way, use --no-attends")
        if self.target.unit is not None and (limited or how.mix != "softmax" or how.partial > 1):
            raise ValueError("a target with weights other than softmax(α), or max_skips: costs follow from softmax(α)")
        own = {"order 2": self.order == 2, "hessian": self.schedule.hessian}
        own |= {name: getattr(self.schedule, name) is not None for name in ("stop_skips", "max_skips")}
        if how.mix == "uniform" and (wrong := [name for name, given in own.items() if given]):
            raise ValueError(f"{wrong[0]} with mix uniform: one random path has no α, leave it out")
        if len(self.stages) > 1 and (self.schedule.stop_skips is not None or how.mix == "uniform"):
            name = "mix uniform" if how.mix == "uniform" else "stop_skips"
            raise ValueError(f"{name} with {len(self.stages)} stages: it is for a search of one stage, see --stages")

    @property
    def ordering(self) -> int:
        """The seed of halves, order and distortions."""
        return self.seed if self.order_seed is None else self.order_seed
