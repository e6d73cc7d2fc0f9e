"""What the steps of the GPU evidence share: a time budget, rows kept between calls, one JSON file, the ceilings.

A step is a command. It works until it is done or its minutes are over, saves its state, and writes what there is so
far; the same command goes on. ``--rehearse`` runs the same code on tiny shapes on the CPU.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of benchmarks, whose parts are reused

from measure import begin, interleaved, one_line, resumable, write

from dasvit.engine.hardware import Hardware
from dasvit.engine.loop import Interrupted, Signals
from dasvit.engine.runs import Run

RECORDED = Path("book/results/gpu")
"""Where results are recorded, once they are fetched."""


class Budget:
    """Minutes after which a step has to stop.

    dasvit's training loop is sent SIGTERM, which it turns into a saved state and an exception; whatever else a step
    does asks :meth:`check` where it can stop.

    Attributes:
        over: Whether the time is up.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds, self.over = 60 * minutes, False

    def __enter__(self) -> Budget:
        self._before = signal.signal(signal.SIGALRM, self._alarm)
        self._end = time.monotonic() + self.seconds
        # again and again: the first alarm may fall between two runs of the loop
        signal.setitimer(signal.ITIMER_REAL, max(self.seconds, 1e-3), 0.2)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def _alarm(self, _signum: int, _frame: FrameType | None) -> None:
        self.over = True
        if isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Signals):
            signal.raise_signal(signal.SIGTERM)

    def left(self) -> float:
        """Return the seconds left."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Stop here if the time is up.

        Raises:
            Interrupted: If it is.
        """
        if self.over:
            raise Interrupted(signal.SIGALRM)


@dataclass(frozen=True)
class Step(ABC):
    """One step of the GPU evidence."""

    minutes: float = 8.5
    """Stop after so many minutes, with the state saved; the same command goes on."""
    rehearse: bool = False
    """Run the same code on tiny shapes on the CPU, in seconds."""
    runs: Path = Path("runs/gpu")
    """Where the state is kept."""
    out: Path | None = None
    """Folder of the JSON file; by default results in the folder of the state, where fetch.py finds it."""
    data: str = "cifar10"
    """cifar10 in the folder that DASVIT_DATA names, folder:PATH or packed:FILE; steps on random images take none."""

    name: ClassVar[str]
    declared: ClassVar[tuple[str, ...]] = ()
    """Files that the result depends on beside the modules of this process."""
    looks_at_data: ClassVar[bool] = False
    """Whether the rows depend on the images given."""

    @abstractmethod
    def work(self, budget: Budget) -> None:
        """Do what is left to do."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Return what has been measured so far."""

    def lacks(self) -> str | None:
        """Return what another step has to give before this one can be complete."""
        return None

    @property
    def title(self) -> str:
        """What the step's files are called."""
        return self.name

    @property
    def folder(self) -> Path:
        """Where the state is kept; that of a rehearsal by itself."""
        return self.runs / "rehearsal" if self.rehearse else self.runs

    @property
    def state(self) -> Run:
        """The run directory with the step's rows and all that it works on; without it the step starts afresh."""
        return Run(self.folder / self.title)

    @property
    def depends(self) -> dict[str, Any]:
        """All that rows depend on beside the code; they are never mixed with those of others."""
        free = {"minutes", "runs", "out", *(() if self.looks_at_data else ("data",))}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        gpu = torch.cuda.get_device_name() if self.device.type == "cuda" else None
        return own | {"gpu": gpu, "torch": str(torch.__version__)}

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def hardware(self) -> Hardware:
        """The same for dasvit: bf16 on the GPU."""
        return Hardware("cpu", "32-true") if self.rehearse else Hardware("cuda", "bf16-mixed")

    @property
    def file(self) -> Path:
        """The JSON file."""
        return (self.out or self.folder / "results") / f"{self.title}.json"

    def run(self) -> bool:
        """Work within the budget and write the file; return whether all is done.

        A measurement that failed is told in the file, and is tried again by the next call.

        Raises:
            ValueError: If there is no GPU.
        """
        if not self.rehearse and not torch.cuda.is_available():
            raise ValueError("there is no GPU here: --rehearse runs the same code on tiny shapes on the CPU")
        start = begin(self.file if self.rehearse else RECORDED / self.file.name)  # it may be recorded there later
        os.environ.setdefault("DASVIT_CACHE", str(self.runs / "cache"))  # images are decoded once
        with resumable(self.state.path, self.title, self.depends, *self.declared) as state:
            clock, rows, lacks = state.path / "seconds", Rows(state), "time is up"
            before = float(clock.read_text()) if clock.exists() else 0.0
            with Budget(self.minutes) as budget:
                try:
                    self.work(budget)
                    failed = "failed: " + ", ".join(rows.failed) if rows.failed else None
                    lacks = failed or self.lacks()
                except Interrupted as stop:
                    if not (budget.over or stop.signum == signal.SIGALRM):  # a chapter runs out of time by itself
                        raise SystemExit(128 + stop.signum) from None
            complete = lacks is None
            told = {"step": self.title, "rehearsal": self.rehearse, "complete": complete, "failed": rows.failed}
            write(self.file, told | self.result(), start - before, *self.declared)
            clock.write_text(str(before + time.perf_counter() - start))
        again = shlex.join(["python", *sys.argv])
        print(f"{self.title}: done" if complete else f"{self.title}: {lacks}; saved, run again to go on: {again}")
        return complete

    def command(self) -> None:
        """Run as a command: a user's mistake is one line and exit code 2."""
        with one_line():
            self.run()


class Rows:
    """Rows of measurements by name, in the log of a run directory.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def _last(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.run.history()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What has been measured."""
        return [row for row in self._last.values() if "error" not in row]

    @property
    def failed(self) -> dict[str, str]:
        """What could not be measured when it was last tried, with the error."""
        return {name: row["error"] for name, row in self._last.items() if "error" in row}

    def measure(self, todo: Mapping[str, Callable[[], Mapping[str, Any]]], budget: Budget) -> None:
        """Measure what has no row yet, one after the other, while there is time.

        An error is told and noted, and the next one is measured.
        """
        done = {row["name"] for row in self.rows}
        for name, function in todo.items():
            if name not in done:
                budget.check()
                try:
                    row = {"name": name, **function()}
                except Exception as error:  # whatever one measurement fails by, the others can still be made
                    traceback.print_exc()
                    row = {"name": name, "error": " ".join(f"{type(error).__name__}: {error}".split())[:1000]}
                self.run.log(row)


def ceilings(device: torch.device) -> dict[str, float]:
    """Return what the machine can do at best: FLOPs a second of a large bf16 product, bytes a second of a copy."""
    side, size = (8192, 1 << 30) if device.type == "cuda" else (256, 1 << 20)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    seconds = interleaved({"matmul": lambda: a @ a, "copy": lambda: y.copy_(x)}, rounds=10)
    return {"matmul_flops": 2 * side**3 / seconds["matmul"], "copy_bytes": 2 * size / seconds["copy"]}


def waits(function: Callable[[], object]) -> int | None:
    """Return how often the host waited for the GPU in a call; ``None`` without a GPU."""
    if not torch.cuda.is_available():
        function()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)
