"""Plan the GPU evidence before it is measured: bytes and kernels counted on fake tensors, and time by a roofline.

    python benchmarks/gpu/planned.py

Writes book/results/gpu/planned.json and the table in the README beside this file. A kernel takes what its products or
its bytes need at a share of the device's data sheet, and never less than a least time. Recorded steps are such kernels
one after the other; eager ones also wait for the host to start each. All of it is an expectation.
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
from tqdm import tqdm

from dasvit.counting import products_of
from dasvit.encoder import build
from dasvit.engine.hardware import Hardware
from dasvit.engine.kernels import Kernels
from dasvit.engine.memory import LiveBytes
from dasvit.landscape import LandscapeSettings
from dasvit.landscape.banks import Bank, losses, names_by_bank
from dasvit.layers import as_on_gpu
from dasvit.plan import count_kernels, plan, survivors
from dasvit.presets import RETRAIN, SEARCH
from dasvit.searching import METHODS, SearchSettings
from dasvit.space import SearchSpace

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- planned -->\n", "<!-- /planned -->\n"

DEVICES = {
    "H200": (989e12, 4.8e12, 141e9),
    "A100": (312e12, 2.04e12, 80e9),
    "RTX 3090": (71e12, 936e9, 24 * 2**30),
}
"""Rate of dense bf16 products in FLOP/s, of memory in bytes/s, and its size in bytes, by the data sheets."""

REACHED = (0.56, 0.72)
"""Assumed to be reached: of the rate of products, and of that of memory."""

FLOAT32 = {"H200": 67e12, "A100": 19.5e12, "RTX 3090": 35.6e12}
"""Rate of products in float32, without TF32, in FLOP/s, by the data sheets."""

LEAST = 2.5e-6
"""Seconds that a kernel takes at least, if nothing has to start it."""

LAUNCHES = (8e-6, 14e-6)
"""Seconds that the host takes for a kernel: by a report, and as measured on a CPU with nothing to compute."""

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
        kernels = count_kernels(settings, planned.stage, survivors(settings.space, operations))
        yield {
            "step": name,
            "what": f"{depth} layers × {operations} operations, {epochs} epochs",
            "peak_bytes": planned.peak_bytes,
            "disk_bytes": 2 * planned.held_bytes,  # the last two checkpoints
            **expected(kernels, steps * epochs),
        }


def expected(kernels: Kernels, steps: float, more: float = 0.0, *, float32: bool = False) -> dict[str, Any]:
    """Return what so many steps take: products, bytes moved, kernels, and seconds on each device.

    Args:
        kernels: Of one step.
        steps: How many.
        more: Products beside them, as a share of those of the steps.
        float32: Whether products are of float32, else of bf16.
    """
    flops = sum(f * n for (f, _), n in kernels.work.items())
    moved = sum(b * n for (_, b), n in kernels.work.items())
    seconds = {}
    for name, (rate, bandwidth, _) in DEVICES.items():
        rates = (FLOAT32[name] if float32 else rate) * REACHED[0], bandwidth * REACHED[1]
        recorded = kernels.seconds(*rates, LEAST) + more * flops / rates[0]
        parts = {"products": flops / rates[0], "bytes": moved / rates[1], "recorded": recorded}
        eager = [max(recorded, kernels.count * launch) for launch in LAUNCHES]
        seconds[name] = {key: value * steps for key, value in parts.items()}
        seconds[name]["eager"] = [value * steps for value in eager]
    return {
        "kernels": kernels.count,
        "steps": round(steps),
        "flops": int(flops * steps * (1 + more)),
        "seconds": seconds,
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

        step()
        held = alive.peak = alive.now
        step()
        peak = alive.peak
        with as_on_gpu(), Kernels(products_of) as kernels:
            step()
    tests = TESTED / 3 / IMAGES  # a forward pass is a third of a step
    told = {"step": "retrain", "what": f"{network}, {epochs} epochs", "peak_bytes": peak, "disk_bytes": 2 * held}
    return told | expected(kernels, IMAGES // settings.batch_size * epochs, tests)


def landscape_row(bank: int = 343) -> dict[str, Any]:
    """Return the row of the truth table: every name trained once, a bank at a time, counted on fake tensors."""
    space, settings, classes = SearchSpace(), LandscapeSettings(), 10
    recipe = settings.recipe
    names = names_by_bank(space)
    sizes = {"image_size": recipe.image_size, "patch_size": recipe.patch_size, "depth": recipe.depth, "dim": recipe.dim}
    with FakeTensorMode(), LiveBytes() as alive:
        own = [build(space[n], num_classes=classes, class_token_last=True, init=None, **sizes) for n in names[:bank]]
        model = Bank(own, space, names[:bank])
        optimizer = torch.optim.AdamW(model.weight_groups(recipe.weight_decay), fused=True)
        images = torch.zeros(recipe.batch_size, 3, recipe.image_size, recipe.image_size)
        labels = torch.zeros(recipe.batch_size, dtype=torch.long)

        def step() -> None:
            losses(model(images), labels).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        held = alive.now
        with as_on_gpu(), Kernels(products_of) as kernels:
            step()
    given = recipe.data.train_images or IMAGES
    trained, val = round(given * (1 - recipe.val_share)), round(given * recipe.val_share)
    looked = 2 * settings.curve_images * (recipe.epochs - 1) + val + TESTED
    steps = trained // recipe.batch_size * recipe.epochs
    more = looked / 3 / (steps * recipe.batch_size)  # a forward pass is a third of a step
    told = {"step": "landscape", "what": f"{len(names):,} names, {bank} at once", "peak_bytes": alive.peak}
    return told | {"disk_bytes": held} | expected(kernels, steps * len(names) / bank, more, float32=True)


def planned_rows(epochs: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of all steps that can be planned."""
    paper = replace(SEARCH["paper"], hardware=Hardware(precision="bf16-mixed"))
    paper = replace(paper, stages=tuple((depth, operations, epochs) for depth, operations, _ in paper.stages))
    joint = replace(paper, joint="on")
    yield from search_rows("search", joint)
    yield from search_rows("search --joint off", paper)
    yield from search_rows("search --recompute", replace(paper, recompute=True))
    yield from search_rows("darts", METHODS["darts"](joint))
    yield from search_rows("darts --joint off", METHODS["darts"](paper))
    for network in ("vit_b16", "dasvit-cifar10"):
        yield retrain_row(network, epochs)
    yield landscape_row()


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, with a search's stages followed by their sum."""
    told = []
    for name in dict.fromkeys(row["step"] for row in rows):
        own = [row for row in rows if row["step"] == name]
        told += own
        if name.startswith("search"):
            most = {key: max(row[key] for row in own) for key in ("peak_bytes", "disk_bytes")}
            all_ = {key: sum(row[key] for row in own) for key in ("flops", "steps")}
            all_["kernels"] = sum(row["kernels"] * row["steps"] for row in own) // all_["steps"]
            told.append({"step": name, "what": "all stages", **most, **all_, "seconds": added(own)})
    return told


def added(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the seconds of all rows together, by device."""
    told: dict[str, dict[str, Any]] = {}
    for device in DEVICES:
        each = [row["seconds"][device] for row in rows]
        told[device] = {key: sum(row[key] for row in each) for key in ("products", "bytes", "recorded")}
        told[device]["eager"] = [sum(row["eager"][i] for row in each) for i in range(len(LAUNCHES))]
    return told


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown: memory, kernels, and minutes on each device, recorded and eager."""
    header = ["step", "what", "GB", "GB on disk", "10¹⁵ FLOPs", "kernels a step"]
    header += [f"{name}, minutes recorded; eager" for name in DEVICES]
    lines = [header, ["---"] * len(header)]
    for row in totals(rows):
        numbers = [f"{row[key] / 1e9:.1f}" for key in ("peak_bytes", "disk_bytes")]
        times = []
        for name, (*_, memory) in DEVICES.items():
            seconds = row["seconds"][name]
            low, high = (value / 60 for value in seconds["eager"])
            told = f"{seconds['recorded'] / 60:.0f}; {low:.0f} to {high:.0f}"
            times.append(told if row["peak_bytes"] < memory else "does not fit")
        counts = [f"{row['flops'] / 1e15:.0f}", f"{row['kernels']:,}"]
        lines.append([f"`{row['step']}`", row["what"], *numbers, *counts, *times])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(args: Planned) -> None:
    """Plan and write."""
    start = begin(args.out)
    rows = list(tqdm(planned_rows(args.epochs), desc="rows", leave=False, disable=None))
    names = ("bf16_flops", "bytes_a_second", "bytes")
    devices = {name: dict(zip(names, values, strict=True)) for name, values in DEVICES.items()}
    assumed = {"reached": REACHED, "least_seconds": LEAST, "launch_seconds": LAUNCHES}
    write(args.out, {"seed": 0, "devices": devices, **assumed, "epochs": args.epochs, "rows": rows}, start)
    before, _, rest = args.readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    args.readme.write_text(before + BEGIN + "\n" + table(rows) + "\n" + END + after)


if __name__ == "__main__":
    main(tyro.cli(Planned, description=__doc__, args=sys.argv[1:]))
