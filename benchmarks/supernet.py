"""One search step, ours against the plain way: images a second, bytes saved for backward, use of the peak.

    python benchmarks/supernet.py --scale small
    python benchmarks/supernet.py --scale base --precision bf16 --layers 6 --operations 3

A step is one step of α and one of the weights, each on a batch. The plain way is plain_supernet.py. Both ways run the
same network on the same batches, interleaved; outputs are compared before anything is timed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from measure import write
from plain_supernet import PlainSupernet, plain_steps
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from dasvit.fairness import fairness_term
from dasvit.images import ImageSet
from dasvit.loop import Hardware, make_fabric
from dasvit.memory import saved_bytes
from dasvit.relaxation import prune
from dasvit.search import SearchSettings, SearchStage

Scale = Literal["tiny", "small", "base", "paper"]

SCALES: dict[str, dict[str, int]] = {
    "tiny": {"dim": 96, "image_size": 16, "patch_size": 4, "batch_size": 64},  # 17 tokens
    "small": {"dim": 192, "image_size": 32, "patch_size": 4, "batch_size": 16},  # 65 tokens
    "base": {"dim": 384, "image_size": 224, "patch_size": 16, "batch_size": 4},  # 197 tokens
    "paper": {"dim": 768, "image_size": 224, "patch_size": 16, "batch_size": 64},
}


@dataclass(frozen=True)
class SupernetBenchmark:
    """Time and weigh one search step, ours against the plain way."""

    scale: Scale = "small"
    """tiny, small, base or paper; paper needs 17 GB."""
    layers: int = 2
    """Layers of the supernet."""
    operations: int = 8
    """Operations an edge."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of both ways."""
    rounds: int = 5
    """Timed pairs."""
    threads: int = 1
    """Threads for torch."""
    out: Path | None = None
    """Where the JSON file goes; by default nothing is written."""


def stage_of(args: SupernetBenchmark) -> SearchStage:
    """Return a stage of ours on random images."""
    sizes = SCALES[args.scale]
    stages = (
        ((args.layers, 8, 1),) if args.operations == 8 else ((args.layers, 8, 1), (args.layers, args.operations, 1))
    )
    hardware = Hardware(precision=args.precision)
    settings = replace(SearchSettings(), **sizes, stages=stages, keep_ratio=1.0, hardware=hardware)
    count, side = 2 * sizes["batch_size"], sizes["image_size"]
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    data = ImageSet(images, torch.arange(count) % 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    candidates = (settings.space.operations,) * len(settings.space.edges)
    if args.operations < 8:
        candidates, _ = prune(torch.randn(len(candidates), 8), candidates, args.operations)
    fabric = make_fabric(settings.hardware)
    return SearchStage(settings, len(stages) - 1, candidates, data.to(fabric.device).halves(0), fabric)


def main(args: SupernetBenchmark) -> None:
    """Measure, print and write."""
    start = time.perf_counter()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    stage = stage_of(args)
    train, val = next(zip(*(stage._batches(part, 0, 0) for part in (0, 1)), strict=True))
    plain = PlainSupernet(stage.supernet).to(stage.fabric.device)
    torch.testing.assert_close(plain(val[0]), stage.supernet(val[0]), atol=1e-4, rtol=1e-3)

    def term(p: torch.Tensor) -> torch.Tensor:
        return fairness_term(p, stage.supernet.candidates, stage.settings.fairness)

    plain_alpha, plain_weight = plain_steps(plain, train, val, term, stage.fabric.autocast)
    ways: dict[str, dict[str, Callable[[], Any]]] = {
        "plain": {"alpha": plain_alpha, "weight": plain_weight},
        "ours": {"alpha": lambda: stage._alpha_step(train, val), "weight": lambda: stage._weight_step(train)},
    }
    result: dict[str, Any] = {"settings": {k: v for k, v in asdict(args).items() if k != "out"} | SCALES[args.scale]}
    for way, steps in ways.items():
        for step in steps.values():
            step()
        with FlopCounterMode(display=False) as counter:
            for step in steps.values():
                step()
        result[way] = {f"saved_{name}": saved_bytes(step) for name, step in steps.items()}
        result[way]["flops"] = counter.get_total_flops()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks = []
    for _ in tqdm(range(args.rounds), desc="pairs", leave=False, disable=None):
        for way, steps in ways.items():
            began = time.process_time()
            for step in steps.values():
                step()
            seconds[way].append(time.process_time() - began)
        peaks.append(matmul_peak(args))
    for way in ways:
        median = statistics.median(seconds[way])
        result[way] |= {"cpu_seconds": median, "images_per_second": 2 * SCALES[args.scale]["batch_size"] / median}
        result[way]["share_of_peak"] = result[way]["flops"] / median / statistics.median(peaks)
    ratio = statistics.median(a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True))
    for name, key in (("saved, w step", "saved_weight"), ("saved, α step", "saved_alpha")):
        a, b = result["plain"][key], result["ours"][key]
        print(f"{name:<14} {a / 1e6:>10.1f} MB plain {b / 1e6:>10.1f} MB ours  {b / a:.2f}×")
    for way in ways:
        r = result[way]
        print(f"{way:<14} {r['images_per_second']:>10.1f} images/s, {r['share_of_peak']:.0%} of the matmul peak")
    result["plain_over_ours"] = ratio
    print(f"ours is {ratio:.2f}× as fast as the plain way")
    if args.out is not None:
        write(args.out, result, start)


def matmul_peak(args: SupernetBenchmark) -> float:
    """Return the floating-point operations a second of one large matrix product."""
    a = torch.rand(1024, 1024, dtype=torch.bfloat16 if args.precision == "bf16-mixed" else torch.float32)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        a @ a
        seconds.append(time.process_time() - began)
    return 2 * 1024**3 / min(seconds)


if __name__ == "__main__":
    main(tyro.cli(SupernetBenchmark, args=sys.argv[1:]))
