"""Decoded images kept from one start to the next, where the environment variable ``DASVIT_CACHE`` names a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..engine.checkpoint import settle

FOLDER = "DASVIT_CACHE"
"""The environment variable that names the folder; without it nothing is kept."""


def kept(files: Sequence[Path | bytes], how: str, decode: Callable[[], Tensor | None]) -> Tensor | None:
    """Return decoded images, kept from before if every file still is what it was then.

    Args:
        files: Paths, of which place, size and time of change count, or contents.
        how: All else that the pixels depend on: which size was asked for, and how it is reached.
        decode: Returns the images, or nothing if they are too many to be held.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return decode()
    try:
        path = Path(os.path.expanduser(folder)) / f"{_key(files, how)}.safetensors"
    except OSError:
        return decode()  # which names the file that cannot be read
    try:
        images = load_file(path)["images"]
        if images.dtype == torch.uint8 and images.ndim == 4 and len(images) == len(files):
            return images
    except (OSError, SafetensorError, KeyError):  # not there yet, or damaged: then it is written anew
        pass
    decoded = decode()
    if decoded is not None:
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file({"images": decoded.contiguous()}, part)
                settle(part, path)
            finally:
                part.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot keep images in {folder} ({FOLDER}): {' '.join(str(error).split())}") from None
    return decoded


def _key(files: Sequence[Path | bytes], how: str) -> str:
    told = hashlib.sha256(f"2 {how} {len(files)}".encode())
    for file in files:
        if isinstance(file, bytes):
            told.update(hashlib.sha256(file).digest())
        else:
            status = os.stat(file)
            state = f"\0{os.path.abspath(file)}\0{status.st_size}\0{status.st_mtime_ns}"
            told.update(state.encode("utf-8", "surrogateescape"))
    return told.hexdigest()
