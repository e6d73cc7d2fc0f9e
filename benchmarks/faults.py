"""Searches killed at random instants: does each one go on to the same end, bit for bit?

    python benchmarks/faults.py 200 --out book/results/faults.json

Every search is ``tiny`` with one epoch a stage and 400 of the images. It is killed once (SIGKILL), at an instant drawn
evenly over the time that it takes undisturbed, and resumed until it is done. Then the encoder, the log and the last
checkpoint (weights, α, optimisers, schedule, random states) are compared with those of an undisturbed search.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro
from measure import begin, write
from tqdm import tqdm

from dasvit import cli
from dasvit.engine.runs import Run

SEARCH = "search --preset tiny --train-images 400 --stages 2 8 1 4 5 1 6 3 1 --device cpu"

FORKS = multiprocessing.get_context("forkserver")  # what is imported once need not be imported by each process
FORKS.set_forkserver_preload(
    [
        "dasvit.plan",
        "dasvit.plot",
        "dasvit.presets",
        "dasvit.retraining",
        "dasvit.searching",
        "dasvit.training_free.search",
        "einops.layers",
        "pydantic.dataclasses",
        "sklearn.datasets",
        "sklearn.model_selection",
    ]
)


@dataclass(frozen=True)
class Faults:
    """Kill searches at random instants and resume them."""

    kills: tyro.conf.Positional[int]
    """How many, each of a search of its own."""
    seed: int = 0
    """Draws the instants."""
    out: Path | None = None
    """Where the JSON file goes; by default it is not written."""


def dasvit(arguments: Sequence[str], log: Path) -> None:
    """Run the command line in this process, on one thread, with what it prints in a file."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a shell starts
    tqdm.set_lock(threading.RLock())  # its usual lock is known to other processes, and left there by a kill
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    cli.main(arguments)


def start(arguments: Sequence[str], log: Path) -> ForkServerProcess:
    """Run the command line in a process of its own."""
    process = FORKS.Process(target=dasvit, args=(list(arguments), log))
    process.start()
    return process


def finish(arguments: Sequence[str], run: Path, log: Path) -> int:
    """Start or resume a run, wait for its end, and return the exit code."""
    process = start([*arguments, "--out", str(run), "--resume"], log)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def content(run: Path) -> dict[str, Any]:
    """Return all of a run that must not depend on whether it was interrupted."""
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in Run(run).history()]
    last = {k: v for k, v in Run(run).peek().items() if k != "seconds"}
    return {"log": rows, "genotype": (run / "genotype.json").read_text(), "last": last}


def difference(a: Any, b: Any, name: str = "run") -> str | None:
    """Return the name of the first part that differs in a bit, and ``None`` where nothing does."""
    if type(a) is not type(b):
        return name
    if isinstance(a, torch.Tensor | np.ndarray):
        x, y = np.asarray(a), np.asarray(b)
        return None if (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()) else name
    if isinstance(a, dict):
        parts = [(f"{name}.{key}", a.get(key), b.get(key)) for key in a | b]
    elif isinstance(a, list | tuple) and len(a) == len(b):
        parts = [(f"{name}.{i}", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else name
    return next(filter(None, (difference(x, y, part) for part, x, y in parts)), None)


def killed(folder: Path, seconds: float, expected: dict[str, Any]) -> dict[str, Any] | None:
    """Kill a search after so many seconds, resume it, and return what became of it; nothing, if it had ended before."""
    run, log = folder / "run", folder / "log"
    process = start([*SEARCH.split(), "--out", str(run)], log)
    process.join(seconds)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return None
    assert process.exitcode == -signal.SIGKILL, log.read_text()
    row = {"seconds": round(seconds, 3), "rows": len(Run(run).history())}
    code = finish(SEARCH.split(), run, log)
    fault = difference(content(run), expected) if code == 0 else log.read_text().splitlines()[-1]
    return {**row, "survived": fault is None, "fault": fault}


def main(args: Faults) -> None:
    """Kill, resume, compare, and tell how many came to the same end."""
    began = begin(args.out)
    rng, rows = random.Random(args.seed), []
    with TemporaryDirectory() as folder:
        for name in ("warm", "undisturbed"):
            start_ = time.perf_counter()
            if code := finish(SEARCH.split(), Path(folder) / name, Path(folder) / "log"):
                sys.exit(f"the undisturbed search ended with {code}: {(Path(folder) / 'log').read_text()}")
            length = time.perf_counter() - start_
        expected = content(Path(folder) / "undisturbed")
        bar = tqdm(total=args.kills, desc="kills", disable=None)
        while len(rows) < args.kills:
            trial = Path(folder) / "trial"
            trial.mkdir()
            if row := killed(trial, rng.uniform(0, length), expected):  # a kill that came too late is no kill
                rows.append(row)
                bar.update()
            shutil.rmtree(trial)
    survived = sum(row["survived"] for row in rows)
    print(f"{survived}/{args.kills} survived; undisturbed {length:.1f} s")
    if args.out is not None:
        told = {"seed": args.seed, "search": SEARCH, "undisturbed_seconds": length, "kills": args.kills}
        write(args.out, {**told, "survived": survived, "rows": rows}, began, "dasvit/**/*.py")  # others do the work
    for row in rows:
        if not row["survived"]:
            print(json.dumps(row))
    sys.exit(survived < args.kills)


if __name__ == "__main__":
    main(tyro.cli(Faults, description=__doc__))
