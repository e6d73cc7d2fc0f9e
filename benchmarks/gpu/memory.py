"""Figure 1 on the GPU: bytes of a search step by batch size, plain DARTS and ours, for every stage.

    python benchmarks/gpu/memory.py

Plain DARTS is plain_supernet.py, in float32 and in bf16. Ours keeps all tokens or a share ρ of them, and computes again
nothing or the inside of operations; joint is ours in few large products. A batch that does not fit is recorded as such.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import tyro
from common import Budget, Rows, Step
from stages import Steps, our_stage, our_steps, plain_model, plain_steps_of, settings_of
from torch import nn

from dasvit.engine.hardware import Hardware, out_of_memory
from dasvit.engine.memory import peak_live_bytes
from dasvit.searching import METHODS, SearchSettings

Way = Literal["plain", "ours", "joint"]

BATCHES = (16, 32, 64, 128, 256)
KEEP_RATIOS = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Memory(Step):
    """Weigh search steps by batch size: Figure 1."""

    name: ClassVar[str] = "memory"

    def rows_of(self) -> Iterator[tuple[Way, SearchSettings, int]]:
        """Yield what is weighed: way, settings, number of the stage; what the paper's figure shows comes first."""
        ours = replace(settings_of(self.rehearse), hardware=self.hardware)
        plain = replace(ours, keep_ratio=1.0)
        keep_ratios = KEEP_RATIOS[::2] if self.rehearse else KEEP_RATIOS
        single = replace(ours, hardware=Hardware(self.hardware.device, "32-true"))
        yield "plain", METHODS["darts"](single), 0
        for keep_ratio in keep_ratios:
            yield from (("ours", replace(ours, keep_ratio=keep_ratio), number) for number in range(len(ours.stages)))
        yield from (("joint", replace(ours, joint="on"), number) for number in range(len(ours.stages)))
        for settings in (single, plain):
            yield from (("plain", replace(settings, keep_ratio=1.0), number) for number in range(len(ours.stages)))
        yield "plain", METHODS["darts"](plain), 0
        yield "ours", METHODS["darts"](plain), 0
        for keep_ratio in keep_ratios:
            changed = replace(ours, keep_ratio=keep_ratio, recompute=True)
            yield from (("ours", changed, number) for number in range(len(ours.stages)))

    def work(self, budget: Budget) -> None:
        """Weigh what has not been weighed yet."""
        batches = (2,) if self.rehearse else BATCHES
        todo = {}
        for way, settings, number in self.rows_of():
            name = " ".join(map(str, tell(way, settings, number).values()))
            todo[name] = partial(weigh, way, settings, number, batches)
        Rows(self.state).measure(todo, budget)

    def result(self) -> dict[str, Any]:
        """Return the rows."""
        total = torch.cuda.get_device_properties(0).total_memory if self.device.type == "cuda" else None
        tf32 = {"tf32": torch.backends.cuda.matmul.allow_tf32, "tf32_convolutions": torch.backends.cudnn.allow_tf32}
        return {"seed": 0, "device_bytes": total, **tf32, "rows": Rows(self.state).rows}


def tell(way: Way, settings: SearchSettings, number: int) -> dict[str, Any]:
    """Return a row without its measurements."""
    depth, operations, _ = settings.stages[number]
    told = {"way": way, "depth": depth, "operations": operations, "keep_ratio": settings.keep_ratio}
    return told | {"recompute": settings.recompute, "precision": settings.hardware.precision}


def weigh(way: Way, settings: SearchSettings, number: int, batches: tuple[int, ...]) -> dict[str, Any]:
    """Return the row of a stage: the bytes of its steps for each batch size. The stage is built once."""
    found = []
    stage = our_stage(settings, number) if way != "plain" else None
    model = plain_model(settings, number) if stage is None else stage.supernet
    for size in batches:
        row: dict[str, Any] = {"batch": size, "out_of_memory": False}
        try:
            steps = our_steps(stage, size) if stage else plain_steps_of(model, settings, size)
            row |= peaks(steps, model)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            row["out_of_memory"] = True
        steps = None  # and with them the plain way's optimisers
        model.zero_grad()
        found.append(row)
    return {**tell(way, settings, number), "batches": found}


def peaks(steps: Steps, model: nn.Module) -> dict[str, Any]:
    """Return peak and reserved bytes of both steps, once the optimisers have their state; on a CPU the live bytes."""

    def both() -> None:
        for step in steps.values():
            step()

    if next(model.parameters()).device.type == "cpu":
        return {"allocated_bytes": peak_live_bytes(both, model), "reserved_bytes": None}
    both()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    both()
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"allocated_bytes": allocated, "reserved_bytes": reserved}


if __name__ == "__main__":
    tyro.cli(Memory, description=__doc__).command()
