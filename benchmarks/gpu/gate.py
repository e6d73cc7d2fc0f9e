"""The gate: a minute that tells whether the GPU computes rightly, and how long the search will take on it.

    python benchmarks/gpu/gate.py

Logits and gradients are compared with the CPU's in float32; the loss has to fall; every stage is timed eager and
recorded, and from that follows how many epochs fit the time that is left. Nothing else is worth starting before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import tyro
from common import Budget, Rows, Step, ceilings, waits
from stages import CLASSES, our_stage, random_batch, settings_of
from torch.autograd import profiler

from dasvit.plan import survivors
from dasvit.relaxation import Supernet
from dasvit.search_settings import SearchSettings
from dasvit.search_stage import SearchStage

AGREES = 1e-3
"""Relative error in float32 that sums in another order explain."""

IMAGES = 50_000  # of CIFAR-10's training set


@dataclass(frozen=True)
class Gate(Step):
    """Look whether the GPU computes rightly, and how fast."""

    name: ClassVar[str] = "gate"

    rounds: int = 10
    """Timed pairs of steps."""
    search_minutes: float = 20.0
    """Minutes that the search may take."""

    def work(self, budget: Budget) -> None:
        """Check, then time."""
        settings = replace(settings_of(self.rehearse), hardware=self.hardware)
        todo = {"ceilings": partial(ceilings, self.device), "agreement": partial(agreement, self.device)}
        todo |= {"loss": partial(loss_falls, settings)}
        for number, (depth, operations, _) in enumerate(settings.stages):
            todo[f"search {depth}x{operations}"] = partial(pair_row, settings, number, self.rounds)
        Rows(self.state).measure(todo, budget)

    def result(self) -> dict[str, Any]:
        """Return the rows, and how many epochs a stage fit."""
        rows = {row["name"]: row for row in Rows(self.state).rows}
        timed = [row for name, row in rows.items() if name.startswith("search")]
        passed = [rows[name]["passed"] for name in ("agreement", "loss") if name in rows]
        settings = settings_of(self.rehearse)
        told = {"passed": len(passed) == 2 and all(passed), "hardware": hardware_told()}
        if len(timed) == len(settings.stages):
            steps = IMAGES // 2 // settings.batch_size
            told["epochs_that_fit"] = epochs_that_fit(timed, steps, 60 * self.search_minutes)
        return {"seed": 0, **told, "rows": list(rows.values())}

    def lacks(self) -> str | None:
        """Return what does not agree."""
        failed = [row["name"] for row in Rows(self.state).rows if row.get("passed") is False]
        return f"NOT PASSED: {', '.join(failed)}: look at the rows before anything is started" if failed else None


def agreement(device: torch.device) -> dict[str, Any]:
    """Return the largest relative errors of logits and gradients on a device against the CPU's, float32, both ways."""
    worst: dict[str, float] = {}
    torch.backends.cudnn.allow_tf32 = False  # by default the convolution that embeds patches is in TF32
    for joint in (False, True):
        settings = SearchSettings(dim=96, image_size=32, patch_size=4, stages=((2, 8, 1),))
        candidates = survivors(settings.space, 8)
        torch.manual_seed(0)
        net = Supernet(settings.space, candidates=candidates, depth=2, dim=96, image_size=32, patch_size=4, joint=joint,
                       num_classes=CLASSES, keep_ratio=1.0, class_token_last=True)  # fmt: skip
        images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % CLASSES
        found = []
        for where in (torch.device("cpu"), device):
            net.to(where)
            logits = net(images.to(where))
            gradients = torch.autograd.grad(F.cross_entropy(logits, labels.to(where)), list(net.parameters()))
            found.append([logits.detach().cpu(), *(g.cpu() for g in gradients)])
        names = ["logits", *(name for name, _ in net.named_parameters())]
        typical = sum(float(x.norm()) for x in found[0][1:]) / len(found[0][1:])
        for name, one, other in zip(names, *found, strict=True):
            least = 0.01 * typical if name != "logits" else 0.0  # of a gradient that is nothing but rounding
            error = float((one - other).norm()) / max(float(one.norm()), least)
            kind = ("joint " if joint else "") + ("logits" if name == "logits" else "gradients")
            worst[kind] = max(worst.get(kind, 0.0), error)
    torch.backends.cudnn.allow_tf32 = True
    return {"relative_errors": worst, "passed": max(worst.values()) <= AGREES}


def loss_falls(settings: SearchSettings, steps: int = 20) -> dict[str, Any]:
    """Return the loss of the weights on one batch, before and after some steps on it."""
    stage = made(settings, 0)
    batch = random_batch(settings, settings.batch_size, stage.fabric.device)
    losses = []
    for _ in range(steps):
        stage.alpha_step(batch, batch)
        losses.append(float(stage.weight_step(batch)["train_loss"]))
    return {"losses": losses, "passed": losses[-1] < 0.9 * losses[0]}


def made(settings: SearchSettings, number: int, capture: bool = False) -> SearchStage:
    """Return a stage as a search has it where there is room."""
    hardware = replace(settings.hardware, capture="auto" if capture else "off")
    return our_stage(replace(settings, joint="on", hardware=hardware), number)


def pair_row(settings: SearchSettings, number: int, rounds: int) -> dict[str, Any]:
    """Return the milliseconds of a pair of steps, eager and recorded, how often the host waits, and who attends."""
    stage = made(settings, number, capture=True)
    batch = random_batch(settings, settings.batch_size, stage.fabric.device)

    def pair() -> None:
        stage.alpha_step(batch, batch)
        stage.weight_step(batch)

    pair()
    row: dict[str, Any] = {"eager_ms": milliseconds(pair, rounds, stage.fabric.device), "waits": waits(pair)}
    row["attention"] = sorted(attention_kernels(pair))
    row["refused"] = stage.shorten(batch, batch) if stage.recorder is not None else "nothing records here"
    row["recorded_ms"] = milliseconds(pair, rounds, stage.fabric.device) if row["refused"] is None else None
    row["peak_bytes"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return row


def milliseconds(function: Any, rounds: int, device: torch.device) -> float:
    """Return the mean milliseconds of a call, of several after one another as in a search."""
    function()
    synchronise(device)
    start = time.perf_counter()
    for _ in range(rounds):
        function()
    synchronise(device)
    return 1e3 * (time.perf_counter() - start) / rounds


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def attention_kernels(function: Any) -> Iterator[str]:
    """Yield the names of the operators that computed attention."""
    with profiler.profile(use_kineto=False) as profile:
        function()
    yield from {event.name for event in profile.function_events if event.name.startswith("aten::_scaled_dot_product")}


def epochs_that_fit(rows: list[dict[str, Any]], steps: int, seconds: float) -> dict[str, int]:
    """Return the epochs of each stage that fit some seconds, with eager and with recorded steps.

    Args:
        rows: Of all stages.
        steps: Pairs of steps in an epoch.
        seconds: For all stages together.
    """
    found = {}
    for way in ("eager_ms", "recorded_ms"):
        if all(row[way] is not None for row in rows):
            epoch = steps * sum(row[way] for row in rows) / 1e3
            found[way.removesuffix("_ms")] = int(seconds / epoch)
    return found


def hardware_told() -> dict[str, Any]:
    """Return what of a GPU's settings changes results."""
    if not torch.cuda.is_available():
        return {}
    return {
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "capability": torch.cuda.get_device_capability(),
    }


if __name__ == "__main__":
    tyro.cli(Gate, description=__doc__).command()
