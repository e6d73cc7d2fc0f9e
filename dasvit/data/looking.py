"""What a folder of images looks like before they are decoded: sizes, shapes, classes (own images)."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .images import opened, upright_size
from .sources import DataSettings, folder_of, is_image, read_sources

LOOKED_AT = 2000  # files whose headers are read, spread evenly; more would tell the same


@dataclass(frozen=True)
class Look:
    """What is seen of images in files.

    Args:
        train: Number of training images.
        test: Number of test images.
        counts: Training images of each class by name.
        short: Median of their shorter sides in pixels.
        aspect: Median of width by height.
        alike: Share of the images whose width by height is within a tenth of the median.
        grey: Share of the images without colour.
        ignored: Files by suffix that lie among them and are no images that can be read.
    """

    train: int
    test: int
    counts: dict[str, int]
    short: int
    aspect: float
    alike: float
    grey: float
    ignored: dict[str, int]


def look(settings: DataSettings) -> Look:
    """Look at the files of ``folder:PATH`` or ``packed:FILE``; only their headers are read.

    Raises:
        ValueError: If they cannot be used; the message says what to do.
    """
    train, test, *val = read_sources(settings)
    if not isinstance(train.images, list):
        raise ValueError(f"data {settings.data} are no files to look at: use folder:PATH or packed:FILE")
    files = [file for source in (train, test, *val) for file in source.images]
    picked = np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).astype(int)

    def seen(file: Path | bytes) -> tuple[int, int, bool]:
        with opened(file) as image:
            return *upright_size(image), image.mode in ("1", "L", "LA") or image.mode.startswith("I;16")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        widths, heights, grey = map(np.array, zip(*pool.map(seen, [files[i] for i in picked]), strict=True))
    aspect = float(np.median(widths / heights))
    counts = np.bincount(train.labels, minlength=len(train.classes)).tolist()
    return Look(
        train=len(train.labels),
        test=len(test.labels),
        counts=dict(zip(train.classes, counts, strict=True)),
        short=int(np.median(np.minimum(widths, heights))),
        aspect=aspect,
        alike=float(np.mean(np.abs(widths / heights / aspect - 1) <= 0.1)),
        grey=float(grey.mean()),
        ignored=_ignored(settings),
    )


def _ignored(settings: DataSettings) -> dict[str, int]:
    root = folder_of(settings)
    if root is None:
        return {}
    names = (Path(name) for _, _, names in os.walk(root) for name in names if not name.startswith("."))
    return dict(Counter(path.suffix or path.name for path in names if not is_image(path.name)))
