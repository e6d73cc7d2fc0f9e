"""What checkpoints cost: seconds of a save at the paper's size, and the share of a run's time that saves take.

    python benchmarks/checkpoints.py

The state is that of each stage of the paper's search, with random numbers; the steps of the run do nothing but wait.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import begin, write
from torch import Tensor

from dasvit.engine.hardware import Hardware
from dasvit.engine.loop import REST, run_epochs
from dasvit.engine.runs import Run
from dasvit.plan import survivors
from dasvit.presets import SEARCH
from dasvit.relaxation import Supernet


@dataclass(frozen=True)
class Checkpoints:
    """Save states of the paper's size."""

    out: Path | None = None
    """The JSON file."""
    folder: Path | None = None
    """Where the checkpoints are written; by default where temporary files are."""
    seconds: float = 1800.0
    """How long the run goes on."""
    epoch_seconds: float = 1.0
    """Of an epoch of the run."""


class Wait:
    """A job with a large state whose epochs only wait."""

    title, steps = "wait", 1

    def __init__(self, state: dict[str, Tensor], epochs: int, seconds: float) -> None:
        self.state, self.epochs, self.seconds = state, epochs, seconds

    def train(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Wait."""
        time.sleep(self.seconds)
        yield {"loss": torch.zeros(())}

    def end_epoch(self, epoch: int, means: dict[str, float]) -> dict[str, Any]:
        """Return no more than the epoch."""
        return {"epoch": epoch}

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"tensors": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing back: the state never changes."""


def paper_state(stage: int) -> dict[str, Tensor]:
    """Return weights and both moments of the weights, as many as a stage of the paper's search has."""
    settings = SEARCH["paper"]
    depth, operations, _ = settings.stages[stage]
    candidates = survivors(settings.space, operations)
    with torch.device("meta"):
        supernet = Supernet(settings.space, candidates=candidates, depth=depth, dim=settings.dim, num_classes=10)
    parts = ("weight", "exp_avg", "exp_avg_sq")
    return {f"{part} {n}": torch.randn(p.shape) for part in parts for n, p in supernet.named_parameters()}


def timed(run: Run, state: dict[str, Tensor]) -> dict[str, float]:
    """Return bytes and seconds of a save and of a load."""
    start = time.perf_counter()
    size = run.save(state).stat().st_size
    saved = time.perf_counter()
    run.peek()
    return {"bytes": size, "save_seconds": saved - start, "load_seconds": time.perf_counter() - saved}


def share(run: Run, job: Wait) -> dict[str, float]:
    """Return the share of a run's time that saves took, less the one at its end."""
    spent: list[float] = []
    save = run.save

    def counted(state: Mapping[str, Any]) -> Path:
        start = time.perf_counter()
        path = save(state)
        spent.append(time.perf_counter() - start)
        return path

    run.save = counted  # type: ignore[method-assign]
    start = time.perf_counter()
    run_epochs(job, run)
    whole = time.perf_counter() - start - spent[-1]
    return {"saves": len(spent) - 1, "seconds": whole, "share": sum(spent[:-1]) / whole}


def main(args: Checkpoints) -> None:
    """Measure and write."""
    start = begin(args.out)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for stage, (depth, operations, _) in enumerate(SEARCH["paper"].stages):
            state = paper_state(stage)
            with Run.open(Path(folder) / f"{stage}", "checkpoints", Hardware()) as run:
                rows.append({"depth": depth, "operations": operations, **timed(run, {"tensors": state})})
        job = Wait(state, int(args.seconds / args.epoch_seconds), args.epoch_seconds)
        with Run.open(Path(folder) / "run", "checkpoints", Hardware()) as run:
            found = {"rest": REST, "epoch_seconds": args.epoch_seconds, **share(run, job)}
    print(rows, found)
    if args.out is not None:
        write(args.out, {"seed": 0, "rows": rows, "run": found}, start)


if __name__ == "__main__":
    main(tyro.cli(Checkpoints, description=__doc__))
