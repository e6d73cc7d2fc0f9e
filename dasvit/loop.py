"""The one training loop: epochs of steps with progress, a row of metrics each, checkpoints, clean interrupts."""

from __future__ import annotations

import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from .runs import Run, set_random_states

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Hardware:
    """Where and how exactly to compute."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes a GPU if there is one."""
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    """auto: bf16-mixed on a GPU that has it, else 32-true."""
    devices: int = 1
    """Processes, each on a device of its own, that divide every batch; torchrun and SLURM may start them."""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices {self.devices} is below one")


def make_fabric(hardware: Hardware) -> Fabric:
    """Return a Fabric on the device and with the precision asked for.

    Raises:
        ValueError: If there is no such device here.
    """
    cuda = torch.cuda.is_available()
    if (hardware.device == "cuda" and not cuda) or (hardware.device == "mps" and not torch.mps.is_available()):
        raise ValueError(f"device {hardware.device} is not available here: use --device auto or cpu")
    on_gpu = cuda and hardware.device in ("auto", "cuda")
    precision = hardware.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    if on_gpu and hardware.devices > torch.cuda.device_count():
        raise ValueError(f"devices {hardware.devices}: this machine has {torch.cuda.device_count()}")
    return Fabric(accelerator=hardware.device, devices=hardware.devices, precision=precision)


def place(module: M, fabric: Fabric) -> M:
    """Return a module in the precision and on the device of ``fabric``; averaging gradients is left to the caller."""
    return cast(M, fabric.to_device(fabric.strategy.precision.convert_module(module)))


def average(x: Tensor, fabric: Fabric) -> Tensor:
    """Return the mean over all devices; with one device ``x`` itself."""
    return cast(Tensor, fabric.all_reduce(x, reduce_op="mean"))


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


class TrainingDivergedError(RuntimeError):
    """The loss is not finite any more."""


class Signals:
    """Note SIGINT and SIGTERM instead of dying; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

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
        TrainingDivergedError: If a mean is not finite at the end of an epoch; the last checkpoint is from before.
    """
    epoch, step, seconds, totals = 0, 0, 0.0, {}
    if state is not None:
        epoch, step, seconds, totals = state["epoch"], state["step"], state["seconds"], dict(state["totals"])
        job.load_state_dict(state["job"])
        set_random_states(state["random"])

    def save() -> None:
        if run is not None:
            position = {"epoch": epoch, "step": step, "seconds": seconds, "totals": totals}
            run.save({**position, "job": job.state_dict()})

    rows = []
    done = epoch * job.steps + step
    bar = tqdm(total=job.epochs * job.steps, initial=done, desc=job.title, disable=None if progress else True)
    with bar, Signals() as signals:
        while epoch < job.epochs:
            began = time.perf_counter()
            for metrics in job.train(epoch, step):
                totals = {k: totals[k] + v.detach() if k in totals else v.detach() for k, v in metrics.items()}
                step += 1
                bar.update()
                if signals.received is not None:
                    seconds += time.perf_counter() - began
                    save()
                    raise Interrupted(signals.received)
            seconds += time.perf_counter() - began
            means = {k: float(v) / step for k, v in totals.items()}
            _check_finite(job.title, epoch, means)
            row = {**job.end_epoch(epoch, means), "seconds": round(seconds, 3), "bytes": peak_bytes()}
            rows.append(row)
            if run is not None:
                run.log(row)
            if progress:
                bar.write(_line(job, epoch, row), file=sys.stderr)
            epoch, step, seconds, totals = epoch + 1, 0, 0.0, {}
            save()
            if signals.received is not None:  # it came after the last step
                raise Interrupted(signals.received)
    return rows


def _check_finite(title: str, epoch: int, means: Mapping[str, float]) -> None:
    for name, mean in means.items():
        if not math.isfinite(mean):
            raise TrainingDivergedError(f"{title}: {name} is {mean} in epoch {epoch + 1}: try a lower --lr")


def _line(job: Job, epoch: int, row: Mapping[str, Any]) -> str:
    numbers = (f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
    return f"{job.title} epoch {epoch + 1}/{job.epochs}: {', '.join(numbers)}"


def peak_bytes() -> int:
    """Return the peak memory so far: allocated on the GPU if there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cosine_schedule(optimizer: Optimizer, steps: int, warmup: int = 0) -> LambdaLR:
    """Return a schedule over ``steps`` steps: linear from zero over ``warmup``, then a half cosine to zero."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return LambdaLR(optimizer, factor)
