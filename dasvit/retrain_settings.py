"""Everything that a retraining depends on (chapter 7)."""

from __future__ import annotations

from dataclasses import dataclass, field

from .checks import check_image, check_sizes, check_training
from .data.sizes import ImageSize, read_size
from .data.sources import DataSettings
from .engine.hardware import Hardware
from .engine.seeds import check_seed
from .vit import Init


@dataclass(frozen=True)
class RetrainSettings:
    """Everything a retraining depends on. The defaults are the preset ``tiny``."""

    genotype: str = "dasvit-cifar10"
    """The name of a published encoder or of the baseline, vit_b16, or a genotype as JSON; flags also take its file."""
    data: DataSettings = field(default_factory=DataSettings)
    """The images."""
    image_size: ImageSize = field(default=8, metadata={"read": read_size})
    """Side in pixels that images are resized to, or height and width: 64 or 48,64."""
    patch_size: int = 2
    """Side of a patch in pixels."""
    dim: int = 48
    """Width of a token."""
    depth: int = 6
    """Number of encoder layers."""
    init: Init = "xavier"
    """How matrices start."""
    epochs: int = 20
    """Times that every training image is seen."""
    warmup_epochs: int = 2
    """Epochs in which the learning rate rises."""
    batch_size: int = 64
    """Images in a batch."""
    lr: float = 8e-3
    """Highest learning rate; annealed to zero."""
    weight_decay: float = 0.05
    """Weight decay."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    mixup: float = 0.0
    """Mixup's α; 0 is off."""
    cutmix: float = 0.0
    """CutMix's α; 0 is off."""
    erase: float = 0.0
    """Probability of erasing a rectangle."""
    drop_path: float = 0.0
    """Probability of leaving out what an operation computes for an image, in the last layer; it grows with depth."""
    ema: float = 0.0
    """Decay of a moving average of the weights, e.g. 0.9999, which is then what is evaluated and kept; 0 is off."""
    teacher: str | None = None
    """A timm model to learn from: its name, whose weights timm fetches, or local-dir:FOLDER, which is there."""
    distill: float = 0.5
    """Weight of the teacher's answers beside the labels, with --teacher."""
    distill_temperature: float = 1.0
    """Temperature at which the answers of both are compared."""
    init_from: str | None = None
    """Start from the weights that the encoder has in the supernet of this search run."""
    val_share: float = 0.1
    """Share of the training images set apart for validation, unless there are such; 0 trains on all."""
    seed: int = 0
    """Seed of the weights, and of what --order-seed draws unless it is given."""
    order_seed: int | None = None
    """Seed of the order of the images and of their distortions."""
    hardware: Hardware = field(default_factory=Hardware)
    """Device and precision."""

    def __post_init__(self) -> None:
        if self.hardware.capture == "on":
            raise ValueError("capture on: only the steps of a search are recorded, use --capture auto")
        check_training(self.batch_size, self.lr, self.weight_decay)
        check_seed(self.seed)
        check_seed(self.ordering, "order_seed")
        check_image(self.image_size, self.patch_size)
        check_sizes(dim=self.dim, depth=self.depth)
        if self.batch_size % self.hardware.devices:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided among {self.hardware.devices} devices")
        if self.epochs < 1 or not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"epochs {self.epochs}, warmup_epochs {self.warmup_epochs}: fewer warm-up epochs than epochs"
            )
        for name in ("label_smoothing", "erase", "val_share", "drop_path", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is outside [0, 1)")
        if not (0 <= self.mixup < float("inf") and 0 <= self.cutmix < float("inf")):
            raise ValueError(f"mixup {self.mixup}, cutmix {self.cutmix}: 0 is off, above 0 is on")
        if not 0 <= self.distill <= 1 or not 0 < self.distill_temperature < float("inf"):
            told = f"distill {self.distill}, distill_temperature {self.distill_temperature}"
            raise ValueError(f"{told}: a share in [0, 1], and above zero")
        share = self.batch_size // self.hardware.devices
        if (self.mixup or self.cutmix) and share % 2:
            each = f" ({share} on each device)" if self.hardware.devices > 1 else ""
            raise ValueError(f"batch_size {self.batch_size}{each} is odd: mixup and cutmix pair the images of a batch")

    @property
    def ordering(self) -> int:
        """The seed of order and distortions."""
        return self.seed if self.order_seed is None else self.order_seed
