"""What every benchmark shares: timing side by side, rows that are kept, one JSON file with its provenance."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dasvit.engine.loop import Interrupted
from dasvit.engine.provenance import all_code, changed, modules, provenance
from dasvit.engine.runs import Run

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ("book/results", "tests/fixtures")  # what is written there is committed
MODULES = "modules.json"


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


@contextmanager
def one_line() -> Iterator[None]:
    """A user's mistake is one line and exit code 2."""
    try:
        yield
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


@cache
def _begun() -> dict[str, Any]:
    """Return commit, date and the content of all code, as they are when they are first asked for."""
    now = provenance()
    return {"commit": now["commit"], "date": now["date"], "modules": all_code()}


def begin(out: Path | None) -> float:
    """Note where a result will come from and return the time now; to be called before any work, see :func:`write`.

    A result that is recorded comes from a commit. If it could not, this ends the process with one line, before hours
    are spent on it.

    Args:
        out: Where the result is to go.
    """
    made = _begun()["commit"]
    with one_line():
        if out is not None and any(out.resolve().is_relative_to(ROOT / place) for place in RECORDED):
            if made is None:
                raise ValueError(f"{out}: no commit is known here: name it in DASVIT_COMMIT, or give another --out")
            if made.endswith("-dirty"):
                raise ValueError(f"{out}: the code has changes without a commit: commit first, or give another --out")
    return time.perf_counter()


def placeless(value: Any) -> Any:
    """Return what is recorded, with ``folder:PATH`` for a folder of images and ``PATH/NAME`` for a file elsewhere.

    Where they lie says nothing to others.
    """
    if isinstance(value, str):
        known = re.sub(r"^((?:--data=)?(?:folder|packed):).*", r"\1PATH", value, flags=re.DOTALL)
        return re.sub(r"^/.*/(?=[^/]+$)", "PATH/", known)
    if isinstance(value, Mapping):
        return {name: placeless(inner) for name, inner in value.items()}
    return [placeless(inner) for inner in value] if isinstance(value, list | tuple) else value


def source(*declared: str) -> dict[str, Any]:
    """Return where a result comes from, with the command as it is to be typed, less the place of its file.

    Commit, date and the content of modules are those at the beginning, whatever has been edited since.

    Args:
        declared: What the result depends on beside the modules of this process, as for
            :func:`dasvit.engine.provenance.modules`.
    """
    words = placeless([word for word in sys.argv[1:] if not word.startswith("--out=")])
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    script, here = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parent
    name = script.relative_to(here) if script.is_relative_to(here) else script.name
    begun = _begun()
    known = {path: begun["modules"].get(path, content) for path, content in modules(*declared).items()}
    return provenance() | begun | {"command": shlex.join(["python", f"benchmarks/{name}", *words]), "modules": known}


def write(path: Path, result: Mapping[str, Any], start: float, *declared: str) -> None:
    """Write a result with where it comes from and how long it took since ``start``, which :func:`begin` returned.

    Args:
        path: The file.
        result: What has been measured.
        start: By ``time.perf_counter()``.
        declared: What it depends on beside the modules of this process, as for
            :func:`dasvit.engine.provenance.modules`.
    """
    told = {"provenance": source(*declared) | {"wall_seconds": time.perf_counter() - start}, **placeless(result)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")
    print(path)


def resumable(path: Path, command: str, settings: Any, *declared: str) -> Run:
    """Open the run directory of a benchmark: a new one, or the same to go on.

    Rows logged there are never mixed with those of other settings or of code that has changed since: then this ends the
    process with one line.

    Args:
        path: The directory.
        command: What runs in it.
        settings: All that its rows depend on; a settings dataclass or a mapping.
        declared: Code that they depend on beside the modules of this process, as for
            :func:`dasvit.engine.provenance.modules`.
    """
    with one_line():
        run = Run.open(path, command, settings, resume=True)
        if not (path / MODULES).exists():
            run.write(MODULES, modules(*declared))
        if old := changed(json.loads((path / MODULES).read_text())):
            run.close()
            raise ValueError(f"{path} was started before {', '.join(old)} changed: remove it to start afresh")
        run.resume_rows()
    return run


@contextmanager
def stopped_after(minutes: float | None) -> Iterator[None]:
    """Send this process SIGTERM after so many minutes, and take being interrupted for an end."""
    stop = threading.Timer(60 * (minutes or 0), partial(os.kill, os.getpid(), signal.SIGTERM))
    stop.daemon = True
    if minutes is not None:
        stop.start()
    try:
        yield
    except Interrupted:
        print("time is over")
    finally:
        stop.cancel()
