"""What the steps of the GPU evidence share: a time budget, rows kept between calls, one JSON file, the ceilings.

A step is a command. It works until it is done or its minutes are over, saves its state, and writes what there is so
far; the same command goes on. ``--rehearse`` runs the same code on tiny shapes on the CPU.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of benchmarks, whose parts are reused

from measure import interleaved, write

from dasvit.hardware import Hardware
from dasvit.loop import Interrupted, Signals


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
    """Folder of the JSON file; by default book/results/gpu, in a rehearsal the folder of the state."""

    name: ClassVar[str]

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
        return (self.out or (self.folder if self.rehearse else Path("book/results/gpu"))) / f"{self.title}.json"

    def run(self) -> bool:
        """Work within the budget and write the file; return whether all is done.

        Raises:
            ValueError: If there is no GPU.
        """
        if not self.rehearse and not torch.cuda.is_available():
            raise ValueError("there is no GPU here: --rehearse runs the same code on tiny shapes on the CPU")
        start = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        clock = self.folder / f"{self.title}.seconds"
        before = float(clock.read_text()) if clock.exists() else 0.0
        complete = False
        with Budget(self.minutes) as budget:
            try:
                self.work(budget)
                complete = self.lacks() is None
            except Interrupted as stop:
                if not (budget.over or stop.signum == signal.SIGALRM):  # a chapter runs out of time by itself
                    raise SystemExit(128 + stop.signum) from None
        told = {"step": self.title, "rehearsal": self.rehearse, "complete": complete}
        write(self.file, told | self.result(), start - before)
        clock.write_text(str(before + time.perf_counter() - start))
        why = "time is up" if budget.over else self.lacks()
        again = shlex.join(["python", *sys.argv])
        print(f"{self.title}: done" if complete else f"{self.title}: {why}; saved, run again to go on: {again}")
        return complete

    def command(self) -> None:
        """Run as a command: a user's mistake is one line and exit code 2."""
        try:
            self.run()
        except ValueError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None


class Rows:
    """Rows of measurements by name, in a file that is added to.

    Args:
        path: The file, one JSON object a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def measure(self, todo: Mapping[str, Callable[[], Mapping[str, Any]]], budget: Budget) -> None:
        """Measure what has no row yet, one after the other, while there is time."""
        for name, function in todo.items():
            if name not in {row["name"] for row in self.rows}:
                budget.check()
                self.rows.append({"name": name, **function()})
                with self.path.open("a") as file:
                    file.write(json.dumps(self.rows[-1]) + "\n")


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
