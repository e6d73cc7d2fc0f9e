"""Settings proposed for images of one's own, from their sizes, number and classes (own images)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from .data.images import Augmentation
from .data.looking import Look, look
from .data.sizes import ImageSize, as_size, pair, told
from .data.sources import DataSettings
from .retraining import RetrainSettings
from .search_settings import SearchSettings

PATCHES = 64  # of an image: attention over more costs more, and few photographs train no more
LARGEST = 8  # side of a patch in pixels
ROOMY = 1.2  # width by height, or height by width, from which images are not treated as squares


class _Scale(NamedTuple):
    """What is proposed below a number of training images."""

    below: float
    dim: int
    depths: tuple[int, int, int]
    lr: float
    retrain_lr: float


SCALES = (
    _Scale(2_000, 48, (1, 2, 4), 2e-3, 2e-3),
    _Scale(20_000, 96, (2, 4, 6), 1e-3, 2e-3),
    _Scale(math.inf, 192, (2, 4, 6), 5e-4, 1e-3),
)
SEARCH_STEPS, RETRAIN_STEPS = 120, 1500  # at least, of a stage and of a retraining


@dataclass(frozen=True)
class Proposal:
    """Settings for a search and a retraining, and why they are these.

    Args:
        search: For :func:`~dasvit.searching.search`.
        retrain: For :func:`~dasvit.retraining.retrain`; the genotype is still to be found.
        reasons: Lines that say what was seen and what follows from it.
    """

    search: SearchSettings
    retrain: RetrainSettings
    reasons: tuple[str, ...]


def propose(
    data: DataSettings | str, *, image_size: ImageSize | None = None, patch_size: int | None = None
) -> Proposal:
    """Propose settings for images in files, so that a CPU trains on a few hundred of them in minutes.

    Args:
        data: The images, ``folder:PATH`` or ``packed:FILE``.
        image_size: If it is settled already.
        patch_size: If it is settled already.

    Raises:
        ValueError: If the images cannot be used.
    """
    settings = DataSettings(data) if isinstance(data, str) else data
    if settings.augmentation == Augmentation():
        settings = DataSettings(**{**vars(settings), "augmentation": Augmentation(flip=True, min_crop=0.5)})
    seen = look(settings)
    count = seen.train if settings.train_images is None else min(seen.train, settings.train_images)
    size, patch = _size(seen, image_size, patch_size)
    _, dim, depths, lr, retrain_lr = next(scale for scale in SCALES if count < scale.below)
    batch = _batch(count // 2)
    epochs = min(20, max(2, math.ceil(SEARCH_STEPS / max(1, count // 2 // batch))))
    search = SearchSettings(
        data=settings,
        image_size=size,
        patch_size=patch,
        dim=dim,
        stages=tuple((depth, kept, epochs) for depth, kept in zip(depths, (8, 5, 3), strict=True)),
        batch_size=batch,
        lr=lr,
        attends=True,
    )
    trained = count - max(round(0.1 * count), len(seen.counts))  # without those for validation
    batch = _batch(trained)
    epochs = min(100, max(15, math.ceil(RETRAIN_STEPS / max(1, trained // batch))))
    retrain = RetrainSettings(
        data=settings,
        image_size=size,
        patch_size=patch,
        dim=dim,
        depth=depths[-1],
        epochs=epochs,
        warmup_epochs=max(1, epochs // 20),
        batch_size=batch,
        lr=retrain_lr,
    )
    return Proposal(search, retrain, tuple(_reasons(seen, search, retrain)))


def _size(seen: Look, image_size: ImageSize | None, patch_size: int | None) -> tuple[ImageSize, int]:
    """Return the size of an image and of a patch: some 64 patches, no pixel that a photograph does not have."""
    if image_size is not None:
        if patch_size is None:
            height, width = pair(image_size)
            sides = [side for side in range(1, min(height, width) + 1) if height % side == width % side == 0]
            patch_size = min(sides, key=lambda side: abs(math.log(height * width / side**2 / PATCHES)))
        return image_size, patch_size
    oblong = seen.alike >= 0.8 and max(seen.aspect, 1 / seen.aspect) >= ROOMY
    aspect = min(4.0, max(0.25, seen.aspect)) if oblong else 1.0
    rows = round(math.sqrt(PATCHES / aspect))
    columns = round(rows * aspect)
    side = patch_size or max(1, min(LARGEST, seen.short // min(rows, columns)))
    return as_size(rows * side, columns * side), side


def _batch(count: int) -> int:
    """Return the images in a batch: a power of two, at most 32, and at least four batches an epoch if it can be."""
    return 2 ** int(math.log2(min(32, max(1, count // 4))))


def _reasons(seen: Look, search: SearchSettings, retrain: RetrainSettings) -> list[str]:
    least, most = (pick(seen.counts, key=seen.counts.__getitem__) for pick in (min, max))
    lines = [
        f"{seen.train:,} training and {seen.test:,} test images of {len(seen.counts):,} classes; "
        f"median short side {seen.short} pixels, width by height {seen.aspect:.2f}"
        + (", grey" if seen.grey == 1 else f", {seen.grey:.0%} of them grey" if seen.grey else ""),
        f"--image-size {told(search.image_size)} --patch-size {search.patch_size}: some {PATCHES} patches"
        + (", the shape that most images have" if isinstance(search.image_size, tuple) else ""),
        f"--dim {search.dim}, {search.stages[-1][0]} layers: for so many images",
        f"search: {len(search.stages)} stages of {search.stages[0][2]} epochs; retraining: {retrain.epochs} epochs",
        "training images are mirrored and cropped; if left and right matter, add --no-flip",
    ]
    if seen.counts[most] > 2 * seen.counts[least]:
        told_counts = f"{seen.counts[least]:,} ({least}) to {seen.counts[most]:,} ({most})"
        lines.append(f"unbalanced: {told_counts} images a class; judge by the balanced accuracy")
    if seen.ignored:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(seen.ignored.items())[:5])
        lines.append(f"left out, as they are no images that can be read: {kinds}")
    return lines
