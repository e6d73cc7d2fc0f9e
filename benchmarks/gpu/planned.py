"""Plan the GPU evidence before it is measured: bytes counted on fake tensors, time from counted products.

    python benchmarks/gpu/planned.py

Writes book/results/gpu/planned.json and the table in the README beside this file. Time is products over the rate of a
device's data sheet times a share of it; both shares are assumptions, the higher one is the project's aim.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from common import begin, write
from stages import CLASSES
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from dasvit.encoder import build
from dasvit.engine.hardware import Hardware
from dasvit.engine.memory import LiveBytes
from dasvit.plan import plan
from dasvit.presets import RETRAIN, SEARCH
from dasvit.searching import METHODS, SearchSettings

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- planned -->\n", "<!-- /planned -->\n"

DEVICES = {"H200": (989e12, 141e9), "A100": (312e12, 80e9), "RTX 3090": (71e12, 24 * 2**30)}
"""Rate of dense bf16 products in FLOP/s and memory in bytes, by the data sheets."""

SHARES = (0.35, 0.2)
"""Of that rate: the project's aim, and what an estimate with memory-bound kernels comes to."""

IMAGES = 50_000  # of CIFAR-10's training set
TESTED = 10_000  # of its test set


@dataclass(frozen=True)
class Planned:
    """Plan every step of the GPU evidence."""

    out: Path = Path("book/results/gpu/planned.json")
    """Where the JSON file goes."""
    readme: Path = README
    """The page with the table."""
    epochs: int = 30
    """Epochs of a search stage and of retraining."""


def search_rows(name: str, settings: SearchSettings) -> Iterator[dict[str, Any]]:
    """Yield a row for each stage of a search."""
    steps = IMAGES // 2 // settings.batch_size
    for planned, (depth, operations, epochs) in zip(plan(settings), settings.stages, strict=True):
        yield {
            "step": name,
            "what": f"{depth} layers × {operations} operations, {epochs} epochs",
            "peak_bytes": planned.peak_bytes,
            "disk_bytes": 2 * planned.held_bytes,  # the last two checkpoints
            "flops": planned.flops * steps * epochs,
        }


def retrain_row(network: str, epochs: int) -> dict[str, Any]:
    """Return the row of a retraining: a step's bytes and products, counted on fake tensors."""
    settings = RETRAIN["paper"]
    with FakeTensorMode(), LiveBytes() as alive:
        model = build(network, num_classes=CLASSES, class_token_last=True, init=None)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        images = torch.zeros(settings.batch_size, 3, settings.image_size, settings.image_size)
        labels = torch.zeros(settings.batch_size, dtype=torch.long)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(images).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        with FlopCounterMode(display=False) as counter:
            step()
        held = alive.peak = alive.now
        step()
        peak = alive.peak
    steps = IMAGES // settings.batch_size * epochs
    tests = counter.get_total_flops() / 3 / settings.batch_size * TESTED * epochs  # a forward pass is a third of a step
    flops = counter.get_total_flops() * steps + int(tests)
    what = f"{network}, {epochs} epochs"
    return {"step": "retrain", "what": what, "peak_bytes": peak, "disk_bytes": 2 * held, "flops": flops}


def planned_rows(epochs: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of all steps that can be planned."""
    paper = replace(SEARCH["paper"], hardware=Hardware(precision="bf16-mixed"))
    paper = replace(paper, stages=tuple((depth, operations, epochs) for depth, operations, _ in paper.stages))
    yield from search_rows("search", paper)
    yield from search_rows("search --recompute", replace(paper, recompute=True))
    yield from search_rows("darts", METHODS["darts"](paper))
    for network in ("vit_b16", "dasvit-cifar10"):
        yield retrain_row(network, epochs)


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, with a search's stages followed by their sum."""
    told = []
    for name in dict.fromkeys(row["step"] for row in rows):
        own = [row for row in rows if row["step"] == name]
        told += own
        if name.startswith("search"):
            most = {key: max(row[key] for row in own) for key in ("peak_bytes", "disk_bytes")}
            told.append({"step": name, "what": "all stages", **most, "flops": sum(row["flops"] for row in own)})
    return told


def minutes(flops: float, device: str, share: float) -> float:
    """Return the planned minutes on a device."""
    return flops / (DEVICES[device][0] * share) / 60


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown: memory, and minutes on each device at both shares."""
    header = ["step", "what", "GB", "GB on disk", "10¹⁵ FLOPs", *(f"{name}, minutes" for name in DEVICES)]
    lines = [header, ["---"] * len(header)]
    for row in totals(rows):
        numbers = [f"{row[key] / 1e9:.1f}" for key in ("peak_bytes", "disk_bytes")]
        times = []
        for name, (_, memory) in DEVICES.items():
            low, high = (minutes(row["flops"], name, share) for share in SHARES)
            times.append(f"{low:.0f} to {high:.0f}" if row["peak_bytes"] < memory else "does not fit")
        lines.append([f"`{row['step']}`", row["what"], *numbers, f"{row['flops'] / 1e15:.0f}", *times])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(args: Planned) -> None:
    """Plan and write."""
    start = begin(args.out)
    rows = list(tqdm(planned_rows(args.epochs), desc="rows", leave=False, disable=None))
    devices = {name: {"bf16_flops": rate, "bytes": size} for name, (rate, size) in DEVICES.items()}
    write(args.out, {"seed": 0, "devices": devices, "shares": SHARES, "epochs": args.epochs, "rows": rows}, start)
    before, _, rest = args.readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    args.readme.write_text(before + BEGIN + "\n" + table(rows) + "\n" + END + after)


if __name__ == "__main__":
    main(tyro.cli(Planned, description=__doc__, args=sys.argv[1:]))
