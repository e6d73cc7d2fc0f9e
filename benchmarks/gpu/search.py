"""The search at the paper's scale: α, the encoder found, time, memory, and the share of the GPU's peak.

    python benchmarks/gpu/search.py
    python benchmarks/gpu/search.py --method darts

The second is plain DARTS with as many epochs: Figures 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar, Literal

import tyro
from common import Budget, Step, ceilings
from stages import settings_of

from dasvit.data.images import ImageSet
from dasvit.data.sources import load_data
from dasvit.engine.runs import Run, as_plain
from dasvit.plan import plan_stage
from dasvit.relaxation import Candidates
from dasvit.searching import METHODS, SearchSettings, search
from dasvit.space import Operation


@dataclass(frozen=True)
class Search(Step):
    """Search as published."""

    name: ClassVar[str] = "search"
    looks_at_data: ClassVar[bool] = True

    method: Literal["dasvit", "darts"] = "dasvit"
    """dasvit, or plain DARTS: one stage at full depth, every operation, every token, no regularisation."""
    epochs: int = 30
    """Epochs of a stage; plain DARTS has those of all stages."""
    recompute: bool = False
    """Compute the inside of operations again: less memory, the same result."""
    compile: bool = False
    """Compile each stage's supernet first."""
    capture: Literal["auto", "off"] = "auto"
    """Record each stage's steps as CUDA graphs, or leave them eager."""
    joint: Literal["auto", "on", "off"] = "auto"
    """Compute a layer's operations in few large products; auto: where the memory allows it."""
    train_images: int | None = None
    """Training images to use; all by default."""

    @property
    def title(self) -> str:
        """What the step's files are called."""
        return {"dasvit": "search", "darts": "darts"}[self.method]

    @property
    def settings(self) -> SearchSettings:
        """Of the search."""
        base = settings_of(self.rehearse)
        given = "digits" if self.rehearse and self.data == "cifar10" else self.data  # the digits come with a package
        few = {"data": given, "train_images": 64} if self.rehearse else {"data": given}
        data = replace(base.data, **{"train_images": self.train_images} | few)
        hardware = replace(self.hardware, compile=self.compile, capture=self.capture)
        stages = tuple((depth, operations, 1 if self.rehearse else self.epochs) for depth, operations, _ in base.stages)
        settings = replace(base, data=data, stages=stages, recompute=self.recompute, joint=self.joint)
        settings = replace(settings, hardware=hardware)
        return METHODS[self.method](settings)

    @cached_property
    def images(self) -> ImageSet:
        """The training images."""
        settings = self.settings
        return load_data(settings.data, image_size=settings.image_size).train

    def work(self, budget: Budget) -> None:
        """Search, or go on with it."""
        run = self.state.path / "run"
        search(self.settings, self.images, run, resume=True, progress=True)

    def result(self) -> dict[str, Any]:
        """Return what has been searched so far."""
        settings, run = self.settings, Run(self.state.path / "run")
        history, genotype = run.history(), run.path / "genotype.json"
        best = ceilings(self.device)
        return {
            "seed": settings.seed,
            "settings": as_plain(settings),
            "train_images": len(self.images),
            "ceilings": best,
            "genotype": genotype.read_text().strip() if genotype.exists() else None,
            "seconds": sum(row["seconds"] for row in history),
            "stages": [self.stage_row(list(rows), best) for _, rows in groupby(history, itemgetter("stage"))],
            "history": history,
        }

    def flops_of(self, number: int, candidates: Candidates, **sizes: int) -> int:
        """Return the FLOPs of a pair of steps of a stage; counted once, in seconds, and kept with the state."""
        kept = self.state.path / f"flops-{number}"
        if not kept.exists():
            kept.write_text(str(plan_stage(self.settings, number, candidates, **sizes).flops))
        return int(kept.read_text())

    def stage_row(self, rows: list[dict[str, Any]], best: dict[str, float]) -> dict[str, Any]:
        """Return what a stage took. A step is one of α and one of the weights, so it computes two batches."""
        settings, number = self.settings, rows[0]["stage"]
        depth, operations, _ = settings.stages[number]
        candidates: Candidates = tuple(tuple(map(Operation.parse, edge)) for edge in rows[0]["alpha"].values())
        sizes = {"channels": self.images.channels, "classes": len(self.images.classes)}
        flops = self.flops_of(number, candidates, **sizes)
        steps = len(self.images) // 2 // settings.batch_size * len(rows)
        seconds = sum(row["seconds"] for row in rows)
        return {
            "depth": depth,
            "operations": operations,
            "epochs": len(rows),
            "seconds": seconds,
            "images_per_second": 2 * settings.batch_size * steps / seconds,
            "flops_per_step": flops,
            "share_of_matmul_peak": flops * steps / seconds / best["matmul_flops"],
            "peak_bytes": max(row["bytes"] for row in rows),
        }


if __name__ == "__main__":
    tyro.cli(Search, description=__doc__).command()
