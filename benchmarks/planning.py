"""How near the planner comes: planned bytes and seconds of a step against those of a real one.

    python benchmarks/planning.py

Bytes are planned on fake tensors and counted on real ones. Seconds are planned from a part of the batch, as for a stage
that is too large to be timed whole, and measured on the whole batch; both in each round, medians of several.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import begin, write
from supernet import SCALES
from tqdm import tqdm

from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.memory import LiveBytes
from dasvit.plan import plan_stage, step_seconds, survivors, unseen
from dasvit.searching import SearchSettings, SearchStage

SIZES = {scale: SCALES[scale] | {"batch_size": batch} for scale, batch in (("tiny", 64), ("small", 32), ("base", 8))}
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "recomputed": {"recompute": True},
    "half the tokens": {"keep_ratio": 0.5},
    "in two parts": {"accumulate": 2},
    "bf16": {"hardware": Hardware("cpu", "bf16-mixed")},
}


@dataclass(frozen=True)
class Planning:
    """Hold the planner against real steps."""

    scales: tuple[str, ...] = ("tiny", "small", "base")
    """Of tiny, small, base."""
    part: float = 0.25
    """Share of the batch that is timed to plan the seconds."""
    rounds: int = 5
    """Rounds, each planned and measured once."""
    threads: int = 1
    """Threads for torch."""
    out: Path = Path("book/results/planning_cpu.json")
    """Where the JSON file goes."""


def alive(settings: SearchSettings, number: int, operations: int) -> int:
    """Return the most bytes alive in a pair of steps, of real tensors."""
    with LiveBytes() as count:
        halves, batch = unseen(settings)
        fabric = make_fabric(settings.hardware)
        stage = SearchStage(settings, number, survivors(settings.space, operations), halves, fabric)
        for _ in range(2):  # the optimiser's state is made in the first
            count.peak = count.now
            stage.alpha_step(batch, batch)
            stage.weight_step(batch)
        return count.peak


def rows_of(scale: str, args: Planning) -> list[dict[str, Any]]:
    """Return a row for each way of each stage."""
    usual = replace(
        SearchSettings(),
        **SIZES[scale],
        stages=((2, 8, 1), (6, 3, 1)),
        keep_ratio=1.0,
        hardware=Hardware("cpu", "32-true"),
    )
    rows = []
    for number, (depth, operations, _) in enumerate(usual.stages):
        for way, change in tqdm(WAYS.items(), desc=f"{scale} {depth}x{operations}", leave=False, disable=None):
            settings = replace(usual, **change)
            planned = plan_stage(settings, number, survivors(settings.space, operations))
            real = alive(settings, number, operations)
            seconds: dict[str, list[float]] = {"planned": [], "measured": []}
            for _ in range(args.rounds):
                for name, share in (("planned", args.part), ("measured", 1.0)):
                    seconds[name].append(step_seconds(settings, planned, work=share * planned.flops))
            row = {"scale": scale, "layers": depth, "operations": operations, "way": way}
            row |= {"planned_bytes": planned.peak_bytes, "counted_bytes": real}
            row |= {f"{name}_seconds": statistics.median(found) for name, found in seconds.items()}
            row["bytes_ratio"] = planned.peak_bytes / real
            row["seconds_ratio"] = statistics.median(
                p / m for p, m in zip(seconds["planned"], seconds["measured"], strict=True)
            )
            sizes = f"{scale:<6} {depth} x {operations}  {way:<16} {planned.peak_bytes / 1e6:>8.1f} MB"
            ratios = f"{row['bytes_ratio']:>8.4f} {row['measured_seconds']:>8.3f} s {row['seconds_ratio']:>6.2f}"
            print(sizes, ratios, flush=True)
            rows.append(row)
    return rows


def main(args: Planning) -> None:
    """Plan, measure, print and write."""
    start = begin(args.out)
    torch.set_num_threads(args.threads)
    rows = [row for scale in args.scales for row in rows_of(scale, args)]
    settings = {k: v for k, v in asdict(args).items() if k != "out"} | {"sizes": SIZES}
    write(args.out, {"seed": 0, "settings": settings, "rows": rows}, start)


if __name__ == "__main__":
    main(tyro.cli(Planning, args=sys.argv[1:]))
