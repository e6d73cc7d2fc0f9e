"""Searches with two features at once, one after the other in one process: ``python tests/pairs.py OUT PAIR…``.

A pair is written ``recompute+order``; torchrun starts the processes of those with devices. Every threshold is set so
small that a few steps of a tiny search cross it.
"""

import contextlib
import os
import signal
import sys
import tempfile
from dataclasses import replace
from functools import partialmethod
from importlib import import_module
from pathlib import Path

import torch
from tape import Tape
from torch import nn

import dasvit
from dasvit import DataSettings, SearchSettings, SearchSpace, load_data
from dasvit.engine.hardware import Hardware
from dasvit.engine.loop import Interrupted

SEARCH, LOOP, UPDATES, HARDWARE = (
    import_module(f"dasvit.{name}") for name in ("searching", "engine.loop", "engine.updates", "engine.hardware")
)

PLAIN = SearchSettings(
    data=DataSettings(train_images=56, test_images=10),  # 28 a half, 3 steps an epoch
    patch_size=4,
    dim=8,
    space=SearchSpace(heads=(2,), mlp_ratios=(1.0,), nodes=1),
    stages=((2, 4, 2),),
    keep_ratio=1.0,
    batch_size=8,
    hardware=Hardware("cpu", "64-true"),
)
STOP = 4  # the step at which those to be resumed are stopped, within the second epoch
FEATURES = (
    *("recompute", "accumulate", "devices", "compile", "precision"),
    *("order", "keep ratio", "joint", "capture", "resume"),
)


def settings_of(features):
    """Return the settings that a set of features stands for."""
    hardware = replace(
        PLAIN.hardware,
        compile="compile" in features,
        precision="bf16-mixed" if "precision" in features else "64-true",
        devices=2 if "devices" in features else 1,
        capture="auto" if "capture" in features else "off",  # it is left out where it is impossible
    )
    return replace(
        PLAIN,
        stages=((1 if "compile" in features else 2, 4, 2),),  # each layer is traced
        recompute="recompute" in features,
        joint="on" if "joint" in features and "recompute" not in features else "off",
        accumulate=4 if "accumulate" in features else 1,
        order=2 if "order" in features else 1,
        keep_ratio=0.5 if "keep ratio" in features else 1.0,
        hardware=hardware,
    )


def run(features, images, folder):
    """Search with some features; return what came out."""
    stages, steps = [], iter(range(1, 100))

    class Stage(SEARCH.SearchStage):
        def __init__(self, *args):
            super().__init__(*args)
            stages.append(self)

        def weight_step(self, train):
            result = super().weight_step(train)
            if next(steps) == STOP and "resume" in features:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

    SEARCH.SearchStage = Stage
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    if "resume" in features:
        with contextlib.suppress(Interrupted):
            dasvit.search(settings_of(features), images, folder)
        result = dasvit.search(settings_of(features), images, folder, resume=True)
    else:
        result = dasvit.search(settings_of(features), images)
    SEARCH.SearchStage = Stage.__base__
    optimizer = stages[-1].weight_optimizer
    return {
        "state": result.supernet.state_dict(),
        "steps": sorted({float(s["step"]) for s in optimizer.state_dict()["state"].values()}),
        "recorded": len(stages[-1]._recorded),
        "graphs": (counted["stats"]["unique_graphs"], sum(counted["graph_break"].values())),
        "losses": [row["train_loss"] for row in result.history],
    }


def main(out, *pairs):
    """Run every pair and save what came out."""
    nn.Module.compile = partialmethod(nn.Module.compile, backend="aot_eager")
    torch.set_num_threads(1)
    UPDATES.PIECE, LOOP.LOOK = 200, 2  # bytes, steps
    HARDWARE.make_recorder = lambda device: Tape()
    images = load_data(PLAIN.data, image_size=PLAIN.image_size).train
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for pair in pairs:
            results[pair] = run(set(pair.split("+")), images, Path(folder) / pair)
    if os.environ.get("RANK", "0") == "0":
        torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
