"""Speed on the GPU against its ceilings: search steps, retraining steps, the loader, DSS.

    python benchmarks/gpu/speed.py

Steps of the plain way and of ours are timed side by side, so are retraining steps of timm's ViT-B/16, ours, and the
published encoder. A floor stands beside each: its matrix products at the measured peak, and what the optimiser has to
read and write at the measured bandwidth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import timm
import torch
import torch.nn.functional as F
import tyro
from common import Budget, Rows, Step, ceilings, waits
from measure import interleaved
from stages import (
    CLASSES,
    Steps,
    our_stage,
    our_steps,
    plain_model,
    plain_steps_of,
    random_batch,
    random_images,
    settings_of,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dasvit.encoder import build
from dasvit.engine.hardware import Hardware, make_fabric, out_of_memory
from dasvit.search_settings import SearchSettings
from dasvit.search_stage import SearchStage
from dasvit.training_free import SPACES, Shape, dss

ADAMW_BYTES = 28  # a weight, its gradient and two moments are read, weight and moments written: 7 numbers of 4 bytes


@dataclass(frozen=True)
class Speed(Step):
    """Time steps of search, retraining and scoring against the ceilings of the machine."""

    name: ClassVar[str] = "speed"

    rounds: int = 10
    """Timed rounds; each runs every way once."""
    batch: int = 128
    """Images of a retraining step."""
    compiled: bool = False
    """Also time compiled supernets, last: some minutes a stage, which the time given does not stop."""

    @property
    def depends(self) -> dict[str, Any]:
        """All that rows depend on; which of them are made is no part of it."""
        return {name: value for name, value in super().depends.items() if name != "compiled"}

    def work(self, budget: Budget) -> None:
        """Time what has not been timed yet."""
        rows = Rows(self.state)
        rows.measure({"ceilings": partial(ceilings, self.device)}, budget)
        settings = replace(settings_of(self.rehearse), hardware=self.hardware)
        todo: dict[str, Callable[[], dict[str, Any]]] = {
            f"search {depth}x{operations}": partial(self.search_rows, settings, number)
            for number, (depth, operations, _) in enumerate(settings.stages)
        }
        todo |= {"retrain": self.retrain_rows, "loader": partial(self.loader_row, settings)}
        spaces = ("autoformer-t",) if self.rehearse else ("autoformer-t", "autoformer-s", "autoformer-b")
        todo |= {f"dss {name}": partial(self.dss_row, name) for name in spaces}
        if self.compiled:  # minutes each, which nothing can stop: so they come last
            for number, (depth, operations, _) in enumerate(settings.stages):
                todo[f"search {depth}x{operations}, compiled"] = partial(self.compiled_rows, settings, number)
        rows.measure({name: partial(if_it_fits, function) for name, function in todo.items()}, budget)

    def result(self) -> dict[str, Any]:
        """Return the rows."""
        tf32 = {"tf32": torch.backends.cuda.matmul.allow_tf32, "tf32_convolutions": torch.backends.cudnn.allow_tf32}
        return {"seed": 0, "rounds": self.rounds, **tf32, "rows": Rows(self.state).rows}

    def search_rows(self, settings: SearchSettings, number: int) -> dict[str, Any]:
        """Time one stage: the plain way in float32 and bf16; ours with all tokens, with some, recomputed, joint."""
        every = replace(settings, keep_ratio=1.0)
        single = replace(every, hardware=Hardware(settings.hardware.device, "32-true"))
        plain = {"plain": every, "plain, float32": single}
        joint, eager = replace(settings, joint="on"), replace(settings.hardware, capture="off")
        ours = {
            "ours, every token": replace(every, hardware=eager),
            "ours": replace(settings, hardware=eager),
            "ours, recomputed": replace(settings, recompute=True, hardware=eager),
            "ours, joint": replace(joint, hardware=eager),
            "ours, joint and recorded": joint,  # without a GPU the same as the one before
        }
        size, steps, weights = settings.batch_size, {}, {}
        for way, changed in plain.items():
            model = plain_model(changed, number)
            steps[way], weights[way] = plain_steps_of(model, changed, size), parameters(model)
        stages = {way: our_stage(changed, number) for way, changed in ours.items()}
        for way, stage in stages.items():
            steps[way], weights[way] = our_steps(stage, size), parameters(stage.supernet)
        refused = self.shorten(stages["ours, joint and recorded"], steps["ours, joint and recorded"], size)
        ways = self.timed(steps, weights, 2 * size, {"ours, joint and recorded": "ours, joint"})
        return {"batch": size, "refused": refused, "ways": ways}

    def shorten(self, stage: SearchStage, steps: Steps, size: int) -> str | None:
        """Record a stage's steps if they can be, or say why they are not."""
        run_all(steps)
        batch = random_batch(stage.settings, size, self.device)
        return stage.shorten(batch, batch) if stage.recorder is not None else "nothing records here"

    def compiled_rows(self, settings: SearchSettings, number: int) -> dict[str, Any]:
        """Time the compiled steps of a stage, once they have stood the check against eager ones."""
        compiled = replace(settings, hardware=replace(settings.hardware, compile=True, capture="off"))
        stage = our_stage(compiled, number)
        steps, batch = our_steps(stage, settings.batch_size), random_batch(settings, settings.batch_size, self.device)
        run_all(steps)
        refused = stage.shorten(batch, batch)
        rows = self.timed({"ours, compiled": steps}, {"ours, compiled": parameters(stage.supernet)}, 2 * len(batch[1]))
        return {"batch": settings.batch_size, "refused": refused, "ways": rows}

    def retrain_rows(self) -> dict[str, Any]:
        """Time a retraining step of timm's ViT-B/16, of ours, and of the published encoder."""
        sizes: dict[str, Any] = {"image_size": 16, "depth": 1, "dim": 24} if self.rehearse else {"image_size": 224}
        side, size = sizes["image_size"], 2 if self.rehearse else self.batch
        ours = {**sizes, "num_classes": CLASSES, "class_token_last": True}  # as in retraining
        shape = {"embed_dim": 24, "depth": 1, "num_heads": 12} if self.rehearse else {}
        made = {
            "timm's ViT-B/16": timm.create_model("vit_base_patch16_224", num_classes=CLASSES, img_size=side, **shape),
            "ViT-B/16": build("vit_b16", **ours),
            "published": build("dasvit-cifar10", **ours),
        }
        made = {name: model.to(self.device) for name, model in made.items()}
        steps = {name: self.training_step(model, size, side) for name, model in made.items()}
        return {"batch": size, "ways": self.timed(steps, {name: parameters(m) for name, m in made.items()}, size)}

    def training_step(self, model: nn.Module, size: int, side: int) -> Steps:
        """Return one step of AdamW on a fixed batch."""
        images = torch.randn(size, 3, side, side, device=self.device)
        labels = torch.arange(size, device=self.device) % CLASSES
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
        fabric = make_fabric(self.hardware)

        def step() -> None:
            with fabric.autocast():
                loss = F.cross_entropy(model(images).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return {"weights": step}

    def timed(
        self, ways: dict[str, Steps], weights: dict[str, int], images: int, same: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return seconds, products and floor of each way; every way has run once before it is timed.

        A counter sees nothing of recorded steps: ``same`` names a way with as many products.
        """
        best = next(row for row in Rows(self.state).rows if row["name"] == "ceilings")
        whole = {way: partial(run_all, steps) for way, steps in ways.items()}
        flops = {}
        for way, step in whole.items():
            step()
            with FlopCounterMode(display=False) as counter:
                step()
            flops[way] = counter.get_total_flops()
        flops |= {way: flops[other] for way, other in (same or {}).items()}
        rows = {}
        for way, seconds in interleaved(whole, self.rounds).items():
            rows[way] = {
                "seconds": seconds,
                "images_per_second": images / seconds,
                "flops": flops[way],
                "share_of_matmul_peak": flops[way] / seconds / best["matmul_flops"],
                "floor_seconds": floor(flops[way], weights[way], best),
                "waits": waits(whole[way]),
            }
        return rows

    def loader_row(self, settings: SearchSettings) -> dict[str, Any]:
        """Time the loader alone, on images of CIFAR-10's size, and count how often it makes the host wait."""
        images = random_images(20 * settings.batch_size, 32).to(self.device)
        told = {"image_size": settings.image_size, "device": self.device, "augmentation": settings.data.augmentation}
        make = partial(images.batches, settings.batch_size, **told, seed=0)
        batches = make()
        next(batches)  # what is done once an epoch
        waited = waits(partial(next, batches))
        seconds = interleaved({"epoch": lambda: sum(1 for _ in make())}, 3)["epoch"]
        return {"images_per_second": len(images) / seconds, "waits_per_batch": waited}

    def dss_row(self, name: str) -> dict[str, Any]:
        """Time the score of one random candidate, on the GPU and with its weights already there."""
        space = SPACES[name]
        number = space.sample(random.Random(0))
        side = 32 if self.rehearse else 224
        model = space.build(number, Shape(image_size=side)).to(self.device)
        seconds = interleaved({mode: partial(dss, model, side, mode) for mode in ("paper", "released")}, 3)
        return {"parameters": parameters(model), "seconds": seconds}


def if_it_fits(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a row, or that the memory does not suffice: on a small card the plain way may not fit."""
    try:
        return function()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return {"out_of_memory": True}


def floor(flops: int, weights: int, best: Mapping[str, float]) -> float:
    """Return the seconds that products and the optimiser take at the ceilings of the machine."""
    return flops / best["matmul_flops"] + weights * ADAMW_BYTES / best["copy_bytes"]


def run_all(steps: Steps) -> None:
    """Run every step once."""
    for step in steps.values():
        step()


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    tyro.cli(Speed, description=__doc__).command()
