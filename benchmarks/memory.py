"""Memory of one search step at the paper's shapes, ours against plain DARTS: the paper's Figure 1, counted.

    python benchmarks/memory.py

Bytes are those of tensors that are alive, weights, optimisers' states and batch included. They are counted on fake
tensors, which have sizes and no values, so no GPU is needed; with one, the same steps also run for real where they
fit, and what the allocator handed out is recorded beside.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from lightning_fabric import Fabric
from measure import begin, write
from plain_supernet import PlainSupernet, plain_steps
from torch import Tensor
from torch._subclasses import FakeTensorMode
from tqdm import tqdm

from dasvit.engine.hardware import Hardware, make_fabric, place
from dasvit.engine.memory import LiveBytes, saved_bytes
from dasvit.fairness import fairness_term
from dasvit.plan import Choice, survivors, unseen
from dasvit.presets import SEARCH
from dasvit.searching import SearchSettings, SearchStage, make_supernet

CLASSES = 10


@dataclass(frozen=True)
class Memory:
    """Count the bytes of a search step, ours against plain DARTS."""

    out: Path = Path("book/results/memory.json")
    """Where the JSON file goes."""


@dataclass(frozen=True)
class Case:
    """A supernet and how its steps are computed; sizes that are not here are those of the settings."""

    layers: int
    operations: int
    way: Literal["plain", "ours"] = "ours"
    recompute: bool = False
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    keep_ratio: float = 1.0
    batch: int = 64
    choice: Choice = "even"


WAYS: tuple[dict[str, Any], ...] = (
    {"way": "plain"},
    {},
    {"recompute": True},
    {"recompute": True, "precision": "bf16-mixed"},
    {"recompute": True, "keep_ratio": 0.5},
)
STAGES = tuple((layers, operations) for layers, operations, _ in SEARCH["paper"].stages)
FULL = STAGES[-1][0]  # layers that plain DARTS searches with, all operations on every edge
BATCHES = (16, 32, 64, 128, 256)
KEEP_RATIOS = (0.25, 0.5, 0.75, 1.0)


def cases() -> list[Case]:
    """Return what is weighed, each once."""
    longest = STAGES[1]  # most operations in all
    found = [Case(*stage, **way) for stage in STAGES for way in WAYS]
    found += [Case(*longest, **way, batch=batch) for way in WAYS for batch in BATCHES]
    found += [Case(FULL, 8, way="plain", batch=batch) for batch in BATCHES]
    found += [Case(FULL, operations, **way) for operations in (3, 5, 8) for way in WAYS[:3]]
    found += [Case(*longest, recompute=r, keep_ratio=k) for r in (False, True) for k in KEEP_RATIOS]
    found += [Case(*stage, **way, choice="heaviest") for stage in STAGES[1:] for way in (WAYS[1], WAYS[2], WAYS[3])]
    return list(dict.fromkeys(found))


def steps_of(case: Case, settings: SearchSettings, fabric: Fabric) -> dict[str, Callable[[], Any]]:
    """Return the step of α and that of the weights."""
    space = settings.space
    every, some = (case.layers, len(space.operations), 1), (case.layers, case.operations, 1)
    settings = replace(
        settings,
        stages=(every, some),
        batch_size=case.batch,
        keep_ratio=case.keep_ratio,
        recompute=case.recompute,
        hardware=Hardware(precision=case.precision),
    )
    candidates = survivors(space, case.operations, case.choice)
    halves, batch = unseen(settings, fabric.device, classes=CLASSES)
    if case.way == "ours":
        stage = SearchStage(settings, 1, candidates, halves, fabric)
        return {"alpha": lambda: stage.alpha_step(batch, batch), "weight": lambda: stage.weight_step(batch)}
    plain = PlainSupernet(make_supernet(settings, 1, candidates, halves[0]))
    place(plain, fabric)

    def term(p: Tensor) -> Tensor:
        return fairness_term(p, candidates, settings.fairness)

    return dict(zip(("alpha", "weight"), plain_steps(plain, batch, batch, term, fabric.autocast), strict=True))


def weigh(case: Case, settings: SearchSettings, fabric: Fabric) -> dict[str, int]:
    """Return, for both steps, the bytes saved for backward and the most bytes alive; on a GPU also those allocated."""
    on_gpu = fabric.device.type == "cuda"
    with LiveBytes() as alive:
        steps = steps_of(case, settings, fabric)
        # the first steps also make the optimisers' states; the second ones are weighed
        row = {f"{name}_saved_bytes": saved_bytes(step) for name, step in steps.items()}
        for name, step in steps.items():
            alive.peak = alive.now
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            step()
            row[f"{name}_peak_bytes"] = alive.peak
            if on_gpu:
                row[f"{name}_allocated_bytes"] = torch.cuda.max_memory_allocated()
    return row


def counted(case: Case, settings: SearchSettings) -> dict[str, int]:
    """Weigh on fake tensors."""
    fabric = make_fabric(Hardware("cpu", case.precision))
    with FakeTensorMode():
        return weigh(case, replace(settings, init=None), fabric)  # no values, nothing to draw


def measured(case: Case, settings: SearchSettings) -> dict[str, int] | None:
    """Weigh on the GPU; ``None`` if its memory does not suffice."""
    gc.collect()  # optimiser and hooks of the case before refer to each other
    torch.cuda.empty_cache()
    try:
        return weigh(case, settings, make_fabric(Hardware("cuda", case.precision)))
    except torch.OutOfMemoryError:
        return None


def main(args: Memory) -> None:
    """Count, measure where there is a GPU, and write."""
    start = begin(args.out)
    settings = SEARCH["paper"]
    rows = []
    for case in tqdm(cases(), desc="cases", leave=False, disable=None):
        row: dict[str, Any] = asdict(case) | counted(case, settings)
        if torch.cuda.is_available():
            row["gpu"] = measured(case, settings)
        rows.append(row)
    sizes = {name: getattr(settings, name) for name in ("dim", "image_size", "patch_size")}
    write(args.out, {"seed": settings.seed, "settings": sizes | {"classes": CLASSES}, "rows": rows}, start)


if __name__ == "__main__":
    main(tyro.cli(Memory, args=sys.argv[1:]))
