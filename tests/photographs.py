"""Folders of real photographs: pieces of the two that scikit-learn ships, a temple and a flower."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def take(root, counts, *, size=(120, 160), seed=0, suffix="jpg"):
    """Write ``counts`` pieces of each photograph, of ``size`` (height, width), as a folder a class; return the root."""
    rng = np.random.default_rng(seed)
    for (name, count), whole in zip(counts.items(), load_sample_images().images, strict=True):
        (Path(root) / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            top, left = (rng.integers(0, whole.shape[axis] - size[axis] + 1) for axis in (0, 1))
            piece = whole[top : top + size[0], left : left + size[1]]
            Image.fromarray(piece).save(Path(root) / name / f"{number:03}.{suffix}")
    return Path(root)
