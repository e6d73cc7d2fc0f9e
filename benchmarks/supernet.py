"""One search step, ours against the plain way: images a second, bytes saved for backward, peak bytes, use of the peak.

    python benchmarks/supernet.py
    python benchmarks/supernet.py --cases base:2x8 --rounds 3

A step is one step of α and one of the weights, each on a batch. The plain way is plain_supernet.py. All ways run the
same network on the same batches, interleaved; outputs are compared before anything is timed. Seconds are those of the
process, so that other work on the machine counts little.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import begin, write
from plain_supernet import PlainSupernet, plain_steps
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from dasvit.data.images import ImageSet
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.memory import peak_live_bytes, saved_bytes
from dasvit.fairness import fairness_term
from dasvit.plan import survivors
from dasvit.searching import SearchSettings, SearchStage

SCALES: dict[str, dict[str, int]] = {
    "tiny": {"dim": 96, "image_size": 16, "patch_size": 4, "batch_size": 64},  # 17 tokens
    "small": {"dim": 192, "image_size": 32, "patch_size": 4, "batch_size": 16},  # 65 tokens
    "base": {"dim": 384, "image_size": 224, "patch_size": 16, "batch_size": 4},  # 197 tokens
    "paper": {"dim": 768, "image_size": 224, "patch_size": 16, "batch_size": 4},  # 197 tokens; the paper's batch is 64
}
OURS: dict[str, tuple[str, bool]] = {
    "ours": ("32-true", False),
    "ours, recomputed": ("32-true", True),
    "ours, bf16": ("bf16-mixed", False),
}
Steps = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class SupernetBenchmark:
    """Time and weigh one search step, ours against the plain way."""

    cases: tuple[str, ...] = ("tiny:2x8", "small:2x8", "small:6x3", "base:2x8", "paper:2x8")
    """SCALE:LAYERSxOPERATIONS; scales are tiny, small, base, paper."""
    rounds: int = 5
    """Timed rounds, each way once in each."""
    threads: int = 1
    """Threads for torch."""
    out: Path = Path("book/results/supernet_cpu.json")
    """Where the JSON file goes."""


def stage_of(case: str, precision: Any = "32-true", recompute: bool = False) -> SearchStage:
    """Return a stage of ours on random images, always with the same weights."""
    scale, _, shape = case.partition(":")
    layers, operations = map(int, shape.split("x"))
    sizes, space = SCALES[scale], SearchSettings().space
    stages = tuple((layers, count, 1) for count in sorted({8, operations}, reverse=True))
    settings = replace(SearchSettings(), **sizes, stages=stages, keep_ratio=1.0, recompute=recompute)
    settings = replace(settings, hardware=Hardware(precision=precision))
    count, side = 2 * sizes["batch_size"], sizes["image_size"]
    images = torch.randint(256, (count, 3, side, side), generator=torch.manual_seed(0)).to(torch.uint8)
    data = ImageSet(images, torch.arange(count) % 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    fabric = make_fabric(settings.hardware)
    halves = data.to(fabric.device).halves(0)
    return SearchStage(settings, len(stages) - 1, survivors(space, operations), halves, fabric)


def ways_of(case: str) -> dict[str, tuple[Steps, tuple[Any, ...]]]:
    """Return the steps of every way, and the tensors each holds; they start from the same weights."""
    stage = stage_of(case)
    train, val = next(zip(*(stage.batches(part, 0, 0) for part in (0, 1)), strict=True))

    def term(p: torch.Tensor) -> torch.Tensor:
        return fairness_term(p, stage.supernet.candidates, stage.settings.fairness)

    ways: dict[str, tuple[Steps, tuple[Any, ...]]] = {}
    for name, precision in (("plain", "32-true"), ("plain, bf16", "bf16-mixed")):
        plain = PlainSupernet(stage.supernet).to(stage.fabric.device)
        torch.testing.assert_close(plain(val[0]), stage.supernet(val[0]), atol=1e-4, rtol=1e-3)
        fabric = make_fabric(Hardware(precision=precision))  # type: ignore[arg-type]
        alpha, weight = plain_steps(plain, train, val, term, fabric.autocast)
        ways[name] = {"alpha": alpha, "weight": weight}, (plain,)
    for name, how in OURS.items():
        ours = stage if name == "ours" else stage_of(case, *how)
        ours.supernet.load_state_dict(stage.supernet.state_dict())

        def steps(ours: SearchStage = ours) -> Steps:
            return {"alpha": lambda: ours.alpha_step(train, val), "weight": lambda: ours.weight_step(train)}

        ways[name] = steps(), (ours.supernet, ours.weight_optimizer.optimizer, ours.alpha_optimizer.optimizer)
    return ways


def measured(case: str, rounds: int) -> dict[str, Any]:
    """Return what every way needs: saved and peak bytes, operations, seconds."""
    ways = ways_of(case)
    images = 2 * SCALES[case.partition(":")[0]]["batch_size"]
    rows: dict[str, Any] = {}
    for way, (steps, held) in ways.items():
        for step in steps.values():
            step()
        with FlopCounterMode(display=False) as counter:
            for step in steps.values():
                step()
        rows[way] = {f"saved_{name}": saved_bytes(step) for name, step in steps.items()}
        if not way.startswith("plain"):  # the optimisers of the plain way are its own; benchmarks/memory.py weighs them
            rows[way] |= {f"peak_{name}": peak_live_bytes(step, *held) for name, step in steps.items()}
        rows[way]["flops"] = counter.get_total_flops()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in tqdm(range(rounds), desc=case, leave=False, disable=None):
        for way, (steps, _) in ways.items():
            began = time.process_time()
            for step in steps.values():
                step()
            seconds[way].append(time.process_time() - began)
        for dtype, found in peaks.items():
            found.append(matmul_peak(dtype))
    for way, row in rows.items():
        median = statistics.median(seconds[way])
        peak = statistics.median(peaks[torch.bfloat16 if "bf16" in way else torch.float32])
        row |= {"cpu_seconds": median, "images_per_second": images / median}
        row["share_of_peak"] = row["flops"] / median / peak
        row["speed_over_plain"] = statistics.median(a / b for a, b in zip(seconds["plain"], seconds[way], strict=True))
        for name in ("alpha", "weight"):
            row[f"saved_{name}_over_plain"] = row[f"saved_{name}"] / rows["plain"][f"saved_{name}"]
    return rows


def matmul_peak(dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of one large matrix product."""
    a = torch.rand(1024, 1024).to(dtype)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        a @ a
        seconds.append(time.process_time() - began)
    return 2 * 1024**3 / min(seconds)


def main(args: SupernetBenchmark) -> None:
    """Measure, print and write."""
    start = begin(args.out)
    torch.set_num_threads(args.threads)
    cases: dict[str, Any] = {}
    for case in args.cases:
        cases[case] = measured(case, args.rounds)
        print(f"{case:<24}{'images/s':>10}{'to plain':>10}{'of peak':>9}{'saved w':>9}{'saved α':>9}")
        for way, row in cases[case].items():
            numbers = f"{row['images_per_second']:>10.1f}{row['speed_over_plain']:>9.2f}×{row['share_of_peak']:>9.0%}"
            saved = "".join(f"{row[f'saved_{name}_over_plain']:>8.3f}×" for name in ("weight", "alpha"))
            print(f"  {way:<22}{numbers}{saved}", flush=True)
    settings = {k: v for k, v in asdict(args).items() if k != "out"} | {"scales": SCALES}
    write(args.out, {"seed": 0, "settings": settings, "cases": cases}, start)


if __name__ == "__main__":
    main(tyro.cli(SupernetBenchmark, args=sys.argv[1:]))
