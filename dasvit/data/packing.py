"""A folder of images as one small file, to be carried to another machine: ``packed:FILE`` (chapter 7).

The images stay as they are, byte for byte; put behind one another they are compressed once, since small ones have most
of their bytes in common. Nothing in the file is executed when it is read.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "dasvit images 1"
LIMIT = 64 << 30  # bytes of images in one file: more is no such file


class Packed(NamedTuple):
    """A part of a data set: contents of image files, labels, class names."""

    images: list[bytes]
    labels: np.ndarray
    classes: tuple[str, ...]


def pack(parts: Mapping[str, tuple[Sequence[Path], np.ndarray]], classes: Sequence[str], path: Path) -> None:
    """Write image files of several parts of a data set into one file.

    Args:
        parts: By name (``train``, ``test``): the files, and their labels from 0.
        classes: Name of each class.
        path: The file to write.
    """
    tensors = {}
    for name, (files, labels) in parts.items():
        contents = [file.read_bytes() for file in files]
        tensors[f"{name}.files"] = torch.frombuffer(bytearray(lzma.compress(b"".join(contents))), dtype=torch.uint8)
        tensors[f"{name}.sizes"] = torch.tensor([len(content) for content in contents], dtype=torch.int64)
        tensors[f"{name}.labels"] = torch.from_numpy(labels.astype(np.int64))
    save_file(tensors, path, metadata={"format": FORMAT, "classes": json.dumps(list(classes))})


def unpack(path: Path) -> tuple[Packed, Packed]:
    """Return the training and the test part of what :func:`pack` wrote.

    Raises:
        ValueError: If the file is missing or holds anything else.
    """
    try:
        with safe_open(path, framework="np") as file:
            told = file.metadata() or {}
            if told.get("format") != FORMAT:
                raise ValueError("it does not hold packed images")
            classes = tuple(map(str, json.loads(told["classes"])))
            parts = {n: [file.get_tensor(f"{n}.{k}") for k in ("files", "sizes", "labels")] for n in ("train", "test")}
        train, test = (_part(files, sizes, labels, classes) for files, sizes, labels in parts.values())
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"packed images {path} cannot be used: {reason:.200}: pack them again") from None
    return train, test


def _part(files: np.ndarray, sizes: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Packed:
    """Return one part, after a look at whether its numbers can be believed."""
    if not (sizes.ndim == labels.ndim == 1 and sizes.dtype == labels.dtype == np.int64 and len(sizes) == len(labels)):
        raise ValueError("sizes and labels do not go together")
    if not len(sizes) or not len(classes) or labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError("a label is of no class")
    if sizes.min() < 0 or sizes.max() > LIMIT or sizes.sum() > LIMIT:
        raise ValueError("an image is too large")
    total = int(sizes.sum())
    content = lzma.LZMADecompressor().decompress(files.tobytes(), max_length=total + 1)
    if len(content) != total:
        raise ValueError("it is not complete")
    ends = np.cumsum(sizes).tolist()
    return Packed([content[end - size : end] for size, end in zip(sizes.tolist(), ends, strict=True)], labels, classes)
