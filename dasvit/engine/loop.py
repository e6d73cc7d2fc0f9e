"""The one training loop: epochs of steps with progress, a row of metrics each, checkpoints, clean interrupts."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from .checkpoint import expect
from .hardware import peak_bytes
from .runs import Run, RunFailedError, set_random_states

LOOK = 20  # steps between two looks whether losses are finite, where a look means to wait for a GPU
SAVE_SECONDS = 600.0  # between two checkpoints: a long epoch is saved on the way too
LARGE = 100e6  # bytes of a checkpoint: a larger one is not saved after every short epoch,
REST = 100.0  # but after so many times what the last one took: that is 1 % of the time


@runtime_checkable
class Job(Protocol):
    """What :func:`run_epochs` can run."""

    title: str
    epochs: int
    steps: int

    def train(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Do the steps of an epoch from step ``start``; yield scalars after each, to be averaged."""
        ...

    def end_epoch(self, epoch: int, means: dict[str, float]) -> dict[str, Any]:
        """Return the row of metrics for a finished epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes while the job runs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set what :meth:`state_dict` returned."""
        ...


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run after its state was saved.

    Args:
        signum: Number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return Interrupted, (self.signum,)


class TrainingDivergedError(RunFailedError):
    """A loss or a weight is not finite any more."""


class Signals:
    """Note SIGINT and SIGTERM instead of dying; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def stop(self) -> None:
        """Stop where everything is saved, if a signal came.

        Raises:
            Interrupted: If it did.
        """
        if (signum := self.agreed()) is not None:
            raise Interrupted(signum)

    def agreed(self) -> int | None:
        """Return the signal that came, if one did; with several processes all ask at once and get the same answer.

        One that stopped alone would leave the others waiting for its part of the next step.
        """
        if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            return self.received
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        signum = torch.tensor(self.received or 0, device=device)
        torch.distributed.all_reduce(signum, torch.distributed.ReduceOp.MAX)
        return int(signum) or None

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._restore()


@dataclass
class _Position:
    """Where a job is: in which epoch, after how many of its steps and seconds, and the sums of its scalars."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    totals: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._good: int | Tensor = self.step  # steps before the first with a scalar that is not finite

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Count a step. A sum that is not finite stays so: the first such step is known however late one looks."""
        self.totals = {k: self.totals[k] + v.detach() if k in self.totals else v.detach() for k, v in metrics.items()}
        self._good = self._good + torch.stack([v.isfinite() for v in self.totals.values()]).all().int()
        self.step += 1

    def due(self) -> bool:
        """Tell whether it is time to look at the scalars."""
        return self.step % LOOK == 0 or all(v.device.type == "cpu" for v in self.totals.values())

    def fault(self) -> str | None:
        """Return which scalar was not finite first, and when."""
        if (good := int(self._good)) == self.step:
            return None
        name, total = next((k, float(v)) for k, v in self.totals.items() if not v.isfinite())
        return f"{name} is {total} at step {good + 1} of epoch {self.epoch + 1}"

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint remembers of it."""
        return {"epoch": self.epoch, "step": self.step, "seconds": self.seconds, "totals": self.totals}


class _Keeper:
    """Saves where a job is, unless something is not finite any more.

    Attributes:
        again: When a large state may be saved again, unless the job stops or is done.
    """

    def __init__(self, job: Job, run: Run | None) -> None:
        self.job, self.run, self.again = job, run, 0.0

    def check(self, fault: str | None) -> None:
        """Stop here if something is not finite."""
        if fault is not None:
            advice = "start again with a lower lr (in a search also alpha_lr), or with precision 32-true"
            kept = f"; {self.run.last()}" if self.run is not None else ""
            raise TrainingDivergedError(f"{self.job.title}: {fault}: {advice}{kept}")

    def save(self, at: _Position) -> None:
        """Write a checkpoint."""
        if self.run is not None:
            began = time.perf_counter()
            size = self.run.save({**at.state_dict(), "job": self.job.state_dict()}).stat().st_size
            now = time.perf_counter()
            self.again = now + (REST * (now - began) if size > LARGE else 0)


def run_epochs(
    job: Job, run: Run | None = None, state: Mapping[str, Any] | None = None, *, progress: bool = False
) -> list[dict[str, Any]]:
    """Run the epochs of a job that are left.

    Args:
        job: What to run.
        run: Where rows and checkpoints go; without one nothing is written.
        state: A checkpoint of this job to go on from.
        progress: Show on stderr a line an epoch and, on a terminal, a bar with the time left.

    Returns:
        The rows of the epochs run here.

    Raises:
        Interrupted: On SIGINT or SIGTERM, after the state was saved.
        TrainingDivergedError: If a scalar or the state is not finite any more; such a state is not saved.
        RunFailedError: If the run directory cannot be written.
    """
    at, rows, keeper = _Position(), [], _Keeper(job, run)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # the job before had a peak of its own
    if state is not None:
        at = _Position(**{k: state[k] for k in ("epoch", "step", "seconds", "totals")})
        job.load_state_dict(state["job"])
        set_random_states(state["random"])
    done = at.epoch * job.steps + at.step
    bar = tqdm(total=job.epochs * job.steps, initial=done, desc=job.title, disable=None if progress else True)
    with bar, Signals() as signals:
        while at.epoch < job.epochs:
            _steps(job, at, keeper, signals, bar)
            means = {k: float(v) / at.step for k, v in at.totals.items()}
            row = {**job.end_epoch(at.epoch, means), "seconds": round(at.seconds, 3), "bytes": peak_bytes()}
            rows.append(row)
            if run is not None:
                run.log(row)
            if progress:
                bar.write(_line(job, at.epoch, row), file=sys.stderr)
            at = _Position(at.epoch + 1)
            if due := at.epoch == job.epochs or time.perf_counter() > keeper.again:
                keeper.save(at)
            if (signum := signals.agreed()) is not None:  # it came after the last step
                if not due:
                    keeper.save(at)
                raise Interrupted(signum)
    return rows


def _steps(job: Job, at: _Position, keeper: _Keeper, signals: Signals, bar: tqdm) -> None:
    """Do the steps that are left of an epoch; on a signal save the state and stop."""
    began = time.perf_counter()
    for metrics in job.train(at.epoch, at.step):
        at.add(metrics)
        bar.update()
        if at.due():
            keeper.check(at.fault())
        signum = signals.agreed()
        elapsed = time.perf_counter() - began
        if signum is not None or (elapsed > SAVE_SECONDS and time.perf_counter() > keeper.again):
            keeper.check(at.fault() or _not_finite(job, at))
            at.seconds += elapsed
            keeper.save(at)
            if signum is not None:
                raise Interrupted(signum)
            began = time.perf_counter()
    at.seconds += time.perf_counter() - began
    keeper.check(at.fault() or _not_finite(job, at))


def check_state(state: Mapping[str, Any], job: Mapping[str, Any], *, epochs: int, steps: int, rows: int = 0) -> None:
    """Check that a checkpoint is one that :func:`run_epochs` may have saved for a job.

    Args:
        state: The checkpoint.
        job: The pattern of what the job saves, see :func:`~dasvit.engine.checkpoint.expect`; its schedule counts
            the steps.
        epochs: Of the job.
        steps: Of an epoch.
        rows: Logged before the job began.

    Raises:
        ValueError: If it is not, or else an error for what its parts lack.
    """
    totals = dict.fromkeys(state["totals"], torch.zeros(()))
    at = {"epoch": range(epochs + 1), "step": range(steps + 1), "seconds": float, "totals": totals}
    expect({k: state[k] for k in at}, at, "position")
    for name in totals:
        expect(name, str, "position.totals")
    rows, done = rows + state["epoch"], state["epoch"] * steps + state["step"]
    expect(state["rows"], range(rows, rows + 1), "rows")
    expect(state["job"], job, "job")
    step = f"job.schedule.last_epoch (an epoch has {steps} steps)"
    expect(state["job"]["schedule"]["last_epoch"], range(done, done + 1), step)


def check_row(
    positions: Sequence[Mapping[str, int]], parts: Mapping[str, Any], number: int, row: Mapping[str, Any]
) -> None:
    """Check that a row is one that :func:`run_epochs` may have logged, see :meth:`~dasvit.engine.runs.Run.load`.

    Args:
        positions: What each row of the run must count, e.g. its ``epoch``.
        parts: The pattern of what else a row must hold, see :func:`~dasvit.engine.checkpoint.expect`; it may hold more.
        number: Of the row, from 0.
        row: The row.

    Raises:
        ValueError: If it is not, or else an error for what it lacks.
    """
    counts = {name: range(count, count + 1) for name, count in positions[number].items()}
    for name, pattern in {**counts, **parts, "seconds": float, "bytes": int}.items():
        expect(row.get(name), pattern, name)


def _not_finite(job: Job, at: _Position) -> str | None:
    """Return which part of a job's state is not finite: a loss can be when the step that follows it was too long."""

    def find(node: Any, name: str) -> str | None:
        if isinstance(node, Tensor):
            return None if bool(node.isfinite().all()) else name.removeprefix(".")
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
        return next(filter(None, (find(value, f"{name}.{key}") for key, value in items)), None)

    name = find(job.state_dict(), "")
    return name and f"{name} is not finite after step {at.step} of epoch {at.epoch + 1}"


def _line(job: Job, epoch: int, row: Mapping[str, Any]) -> str:
    numbers = (f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
    return f"{job.title} epoch {epoch + 1}/{job.epochs}: {', '.join(numbers)}"


def cosine_schedule(optimizer: Optimizer, steps: int, warmup: int = 0) -> LambdaLR:
    """Return a schedule over ``steps`` steps: linear over ``warmup`` from one step above zero (A33), then cosine."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return LambdaLR(optimizer, factor)


def rates_in_place(optimizer: Optimizer, device: torch.device) -> None:
    """Make tensors of the learning rates, which a schedule fills anew: a recorded step reads them where they are."""
    dtype = torch.float32 if device.type == "cuda" else torch.float64  # which the fused kernels read
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=dtype, device=device)


def load_schedule(schedule: LambdaLR, state: Mapping[str, Any]) -> None:
    """Bring a schedule and its optimiser to the step of a ``state_dict``; the rates follow from the settings alone."""
    step = state["last_epoch"]
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):  # recorded steps know it by its place
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    schedule.load_state_dict(schedule.state_dict() | {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates})


def load_moments(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Set what an optimiser has gathered; everything else in a ``state_dict`` follows from the settings."""
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def moments(groups: Iterable[Mapping[str, Any]], state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pattern of the ``state_dict`` of Adam or AdamW: it has gathered something for what has had a gradient.

    Args:
        groups: What the optimiser was made of.
        state: The ``state_dict``.
    """
    found, parameters = state["state"], (p for group in groups for p in group["params"])
    kept = ({"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p} for p in parameters)
    return {"state": {i: pattern for i, pattern in enumerate(kept) if i in found}, "param_groups": object}
