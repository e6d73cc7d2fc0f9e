"""Retraining: our loop with our plain transformer, against timm's of equal shape in a bare loop and in Lightning's.

    python benchmarks/retraining.py

All train on the same images, in float32 on one thread, an epoch of each in turn. Lightning's Trainer is a column where
``lightning`` is installed; it is no dependency of this project.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from measure import begin, write
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from tqdm import tqdm

from dasvit.data.images import Batch, ImageSet
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.retraining import Retraining, RetrainSettings

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"dim": 96, "depth": 6, "image_size": 16, "patch_size": 4, "batch_size": 64},
    "small": {"dim": 192, "depth": 6, "image_size": 32, "patch_size": 4, "batch_size": 32},
    "base": {"dim": 384, "depth": 6, "image_size": 224, "patch_size": 16, "batch_size": 8},
}


@dataclass(frozen=True)
class RetrainingBenchmark:
    """Time an epoch of retraining, ours against its peers."""

    shapes: tuple[str, ...] = tuple(SHAPES)
    """tiny, small, base."""
    steps: int = 4
    """Batches of an epoch."""
    rounds: int = 5
    """Timed epochs of each."""
    threads: int = 1
    """Threads for torch."""
    out: Path = Path("book/results/retraining_cpu.json")
    """Where the JSON file goes."""


def ways_of(shape: str, steps: int) -> dict[str, Callable[[], Any]]:
    """Return what trains an epoch, by name."""
    sizes = SHAPES[shape]
    count, side = steps * sizes["batch_size"], sizes["image_size"]
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    data = ImageSet(images, torch.arange(count) % 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    hardware = Hardware("cpu", "32-true")
    settings = RetrainSettings(
        genotype="vit_b16", **sizes, epochs=100, warmup_epochs=1, val_share=0.0, hardware=hardware
    )
    ours = Retraining(settings, data, make_fabric(hardware))

    def batches() -> Iterator[Batch]:
        return data.batches(sizes["batch_size"], image_size=side, seed=0)

    ways: dict[str, Callable[[], Any]] = {"ours": lambda: list(ours.train(0, 0))}
    model, optimizer = timm_model(sizes)

    def bare() -> None:
        for x, y in batches():
            F.cross_entropy(model(x), y, label_smoothing=settings.label_smoothing).backward()
            optimizer.step()
            optimizer.zero_grad()

    ways["timm, bare loop"] = bare
    if importlib.util.find_spec("lightning") is not None:
        ways["timm, Lightning"] = lightning_epoch(sizes, batches, settings.label_smoothing)
    return ways


def timm_model(sizes: dict[str, int]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return timm's transformer of a shape, in training, and its optimiser."""
    shape = {"img_size": sizes["image_size"], "patch_size": sizes["patch_size"], "num_classes": 10, "num_heads": 12}
    model = TimmViT(**shape, embed_dim=sizes["dim"], depth=sizes["depth"]).train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def lightning_epoch(
    sizes: dict[str, int], batches: Callable[[], Iterator[Batch]], label_smoothing: float
) -> Callable[[], None]:
    """Return what trains timm's transformer for an epoch in Lightning's Trainer."""
    import lightning

    model, optimizer = timm_model(sizes)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1], label_smoothing=label_smoothing)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    module = Module()

    class Loader:
        def __iter__(self) -> Iterator[Batch]:
            return batches()

    def epoch() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning.Trainer(accelerator="cpu", max_epochs=1, **quiet).fit(module, Loader())

    return epoch


def measured(shape: str, args: RetrainingBenchmark) -> dict[str, Any]:
    """Return images a second of each way."""
    ways = ways_of(shape, args.steps)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in tqdm(range(args.rounds + 1), desc=shape, leave=False, disable=None):
        for way, epoch in ways.items():
            began = time.process_time()
            epoch()
            if turn:  # the first warms up
                seconds[way].append(time.process_time() - began)
    images = args.steps * SHAPES[shape]["batch_size"]
    return {
        way: {
            "images_per_second": images / statistics.median(values),
            "ours_over_this": statistics.median(a / b for a, b in zip(values, seconds["ours"], strict=True)),
        }
        for way, values in seconds.items()
    }


def main(args: RetrainingBenchmark) -> None:
    """Measure, print and write."""
    start = begin(args.out)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = {shape: measured(shape, args) for shape in args.shapes}
    for shape, ways in rows.items():
        for way, row in ways.items():
            print(f"{shape:<8}{way:<18}{row['images_per_second']:>9.1f} images/s, ours {row['ours_over_this']:.2f}×")
    settings = {k: v for k, v in asdict(args).items() if k != "out"} | {"sizes": SHAPES}
    write(args.out, {"seed": 0, "settings": settings, "rows": rows}, start)


if __name__ == "__main__":
    main(tyro.cli(RetrainingBenchmark, args=sys.argv[1:]))
