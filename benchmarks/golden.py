"""The first steps of a search, to the last bit: what a change that should not change results is held against.

    python benchmarks/golden.py    # records them again, after a change that does

The 20 steps are those of the preset tiny on one thread. Floats are written as in C, so that no digit is lost.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import begin, write

from dasvit import load_data
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.provenance import provenance
from dasvit.presets import SEARCH
from dasvit.searching import SearchStage, draw_halves

STEPS, LOSSES = 20, ("train_loss", "val_loss", "fairness")
FILE = Path(__file__).resolve().parents[1] / "tests/fixtures/golden_tiny.json"


@dataclass(frozen=True)
class Golden:
    """Record the first steps of the tiny search."""

    out: Path = FILE
    """Where the JSON file goes."""


def machine() -> dict[str, str]:
    """Return all that the last bits depend on beside the code: torch, the processor and the instructions used."""
    processor = provenance()["hardware"]["processor"]
    if (cpuinfo := Path("/proc/cpuinfo")).exists():  # one name stands for several generations
        family = re.findall(r"^(?:cpu family|model)\s*: (\d+)$", cpuinfo.read_text(), re.MULTILINE)[:2]
        processor = " ".join([processor, *family])
    return {"torch": torch.__version__, "processor": processor, "capability": torch.backends.cpu.get_cpu_capability()}


def first_steps() -> dict[str, Any]:
    """Run the first steps and return the losses of each and α after the last."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are split by the number of threads
    settings = replace(SEARCH["tiny"], hardware=Hardware("cpu", "32-true"))
    images = load_data(settings.data, image_size=settings.image_size).train
    candidates = (settings.space.operations,) * len(settings.space.edges)
    stage = SearchStage(settings, 0, candidates, draw_halves(settings, images), make_fabric(settings.hardware))
    steps = list(itertools.islice(stage.train(0, 0), STEPS))
    torch.set_num_threads(threads)
    losses = {
        name: [float(step[name].detach()).hex() for step in steps] for name in ("train_loss", "val_loss", "fairness")
    }
    alpha = stage.supernet.alpha.detach()
    digest = hashlib.sha256(alpha.numpy().tobytes()).hexdigest()
    return {**losses, "alpha": [value.hex() for value in alpha.flatten().tolist()], "alpha_sha256": digest}


if __name__ == "__main__":
    args = tyro.cli(Golden, args=sys.argv[1:])
    start = begin(args.out)
    write(args.out, {"machine": machine(), "steps": first_steps()}, start)
