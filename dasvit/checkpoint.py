"""A tree of state as one file: tensors in safetensors, everything else as JSON in its header, nothing pickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def save_state(path: Path, state: Any) -> None:
    """Write a tree of dicts, lists, tuples, numbers, strings, arrays and tensors; whole or not at all.

    Raises:
        TypeError: If the tree holds anything else.
    """
    tensors: dict[str, torch.Tensor] = {}
    header = json.dumps(_encode(state, tensors))
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata={"state": header})
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def load_state(path: Path) -> Any:
    """Read what :func:`save_state` wrote, tensors on the CPU.

    Raises:
        ValueError: If the file is missing or is not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            return _decode(json.loads((file.metadata() or {})["state"]), tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({error}): remove it to go on from the one before"
        ) from None


def _encode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, torch.Tensor | np.ndarray):
        key = str(len(tensors))
        tensors[key] = torch.as_tensor(node).detach().cpu().clone().contiguous()
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
