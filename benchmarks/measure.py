"""What every benchmark shares: timing side by side, one JSON file with its provenance."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dasvit.runs import provenance


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each function; one call of each a round, after one to warm up.

    Whatever else the machine does then falls on all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in tqdm(range(rounds + 1), desc="rounds", leave=False, disable=None):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def source() -> dict[str, Any]:
    """Return where a result comes from, with the command as it is to be typed, less the place of its file."""
    words = list(sys.argv[1:])
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    script, here = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parent
    name = script.relative_to(here) if script.is_relative_to(here) else script.name
    return provenance() | {"command": shlex.join(["python", f"benchmarks/{name}", *words])}


def write(path: Path, result: Mapping[str, Any], start: float) -> None:
    """Write a result with where it comes from and how long it took since ``start`` (``time.perf_counter()``)."""
    told = {"provenance": source() | {"wall_seconds": time.perf_counter() - start}, **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")
    print(path)
