"""Images a second and memory of rows of Table I, side by side, since FLOPs are not speed.

    python benchmarks/speed.py
    python benchmarks/speed.py --batch 128 --precision bf16      # on a GPU

Inference and one training step (forward, backward, AdamW) at 224 pixels, 10 classes, interleaved, medians.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from measure import begin, interleaved, write
from torch import nn

from dasvit.counting import complexity
from dasvit.engine.memory import peak_live_bytes
from dasvit.zoo import IMAGE_SIZE, TABLE_1


@dataclass(frozen=True)
class Speed:
    """Measure images a second and memory of rows of Table I."""

    rows: tuple[str, ...] = ("ViT-B/16", "DASViT", "ResNet-152", "RegNetY-12GF")
    """Rows of Table I."""
    batch: int = 8
    """Images a step."""
    rounds: int = 5
    """Timed rounds; each runs every row once."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: autocast."""
    threads: int = 1
    """Threads for torch."""
    out: Path | None = None
    """Where the JSON file goes; by default book/results/speed_cpu.json or speed_gpu.json."""


def steps_of(model: nn.Module, args: Speed, device: torch.device) -> tuple[dict[str, Callable[[], Any]], Any]:
    """Return inference and training step of a network, and its optimiser."""
    images = torch.randn(args.batch, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    labels = torch.arange(args.batch, device=device) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")

    def infer() -> None:
        model.eval()
        with torch.inference_mode(), autocast:
            model(images)

    def train() -> None:
        model.train()
        with autocast:
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"inference": infer, "training": train}, optimizer


def main(args: Speed) -> None:
    """Measure and write."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = args.out or Path(f"book/results/speed_{'gpu' if device.type == 'cuda' else 'cpu'}.json")
    start = begin(out)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    functions = {}
    for name in args.rows:
        model = TABLE_1[name].make(num_classes=10).to(device)
        counted = complexity(model, IMAGE_SIZE)
        results[name] = {"parameters": counted.parameters, "macs": counted.macs}
        steps, optimizer = steps_of(model, args, device)
        steps["training"]()  # the optimiser's state exists from the first step on
        for what, step in steps.items():
            functions[f"{name}|{what}"] = step
            held = (model,) if what == "inference" else (model, optimizer)
            results[name][f"{what}_live_bytes"] = peak_live_bytes(step, *held)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                step()
                results[name][f"{what}_allocated_bytes"] = torch.cuda.max_memory_allocated()
    for name, seconds in interleaved(functions, args.rounds).items():
        row, what = name.split("|")
        results[row][f"{what}_images_per_second"] = args.batch / seconds
    settings = {k: v for k, v in asdict(args).items() if k not in ("rows", "out")}
    write(out, {"seed": 0, "settings": settings, "rows": results}, start)


if __name__ == "__main__":
    main(tyro.cli(Speed, args=sys.argv[1:]))
