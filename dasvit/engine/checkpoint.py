"""A tree of state as one file: tensors in safetensors, everything else as JSON in its header, nothing pickled.

A file's name ends in the SHA-256 of its content. So content and digest appear together, in one rename, and a file that
is torn, damaged or something else altogether is told from a whole one before it is opened. Who forges a file can name
it rightly too: what is in it is held against a pattern before it is believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

VERSION = "2"
"""Of what :func:`save_state` writes; another one is refused by name."""


def save_state(stem: Path, state: Any) -> Path:
    """Write a tree of dicts, lists, tuples, numbers, strings, arrays and tensors; whole or not at all.

    Args:
        stem: The file without the digest and suffix that are added to its name.
        state: The tree.

    Returns:
        The file.

    Raises:
        TypeError: If the tree holds anything else.
        OSError: If it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    header = json.dumps(_encode(state, tensors))
    owners = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    for key, tensor in tensors.items():  # the format has no shared memory
        if owners[tensor.untyped_storage().data_ptr()] > 1:
            tensors[key] = tensor.clone()
    part = stem.with_name(stem.name + ".part")
    try:
        part.touch()  # a place that cannot be written is an error of Python's own kind
        try:  # straight to the file: as bytes first, a gigabyte takes twenty times as long
            save_file(tensors, part, metadata={"version": VERSION, "state": header})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error)) from None
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return settle(part, stem.with_name(f"{stem.name}-{digest}.safetensors"))
    finally:
        part.unlink(missing_ok=True)


def load_state(path: Path) -> Any:
    """Read what :func:`save_state` wrote, tensors on the CPU.

    Raises:
        ValueError: If the file is missing, damaged, of another version or no such file.
    """
    with refusing(f"checkpoint {path}"):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem.rpartition("-")[2]:
            raise ValueError("its content has not the SHA-256 in its name")
        # read from these bytes, once: nobody changes them in between, and safe_open leaks some bytes a tensor
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
        if (version := metadata.get("version")) != VERSION:
            raise ValueError(f"it is of version {version}, this dasvit reads version {VERSION}")
        return _decode(json.loads(metadata["state"]), tensors)


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Tell in one line that something stored cannot be used, whatever its content made reading stumble over.

    Args:
        name: What it goes by in the message.

    Raises:
        ValueError: If reading fails.
    """
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"{name} cannot be used: {reason}") from None
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:  # also RecursionError
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{name} cannot be used: it holds something else ({reason:.200})") from None


def expect(found: Any, pattern: Any, name: str) -> None:
    """Check that a part of a state is of the kind that is expected there.

    Args:
        found: The part.
        pattern: A mapping stands for one with the same keys, a tensor for one of the same shape with float32 or float64
            numbers (if its own are no floats, of its own type), a range for an integer in it, a type for what is of
            this type, a float for a finite one.
        name: What the part goes by in the message.

    Raises:
        ValueError: If it is of another kind.
    """
    if isinstance(pattern, Mapping):
        fits = isinstance(found, dict) and found.keys() == pattern.keys()
    elif isinstance(pattern, torch.Tensor):
        fits = isinstance(found, torch.Tensor) and found.shape == pattern.shape
        floats = (torch.float32, torch.float64) if pattern.is_floating_point() else (pattern.dtype,)
        fits = fits and found.dtype in floats
    elif isinstance(pattern, range):
        fits = type(found) is int and found in pattern
    else:
        fits = isinstance(found, pattern) and not (isinstance(found, float) and not math.isfinite(found))
    if not fits:
        raise ValueError(f"it is not of this run: {name} is not what the run would have saved there")
    for key in pattern if isinstance(pattern, Mapping) else ():
        expect(found[key], pattern[key], f"{name}.{key}")


def settle(part: Path, path: Path) -> Path:
    """Give a file its final name once its content is on the disk, where the name then is too; return the name."""
    sync(part)
    part.replace(path)
    sync(path.parent)
    return path


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, torch.Tensor | np.ndarray):
        key = str(len(tensors))
        tensors[key] = torch.as_tensor(node).detach().cpu().contiguous()
        return {"tensor" if isinstance(node, torch.Tensor) else "array": key}
    if isinstance(node, dict):
        return {"dict": [[_encode(k, tensors), _encode(v, tensors)] for k, v in node.items()]}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [_encode(item, tensors) for item in node]}
    raise TypeError(f"a {type(node).__name__} cannot be saved in a checkpoint")


def _decode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value}
    items = [_decode(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items
