"""Steps of the GPU evidence as tests take them."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def script(name):
    """A step's module; by its path, since the folder above has a speed.py too."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", ROOT / "benchmarks" / "gpu" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stopped_and_continued(step):
    """Run a step with no time at all, then with enough; return both files' contents."""
    assert not replace(step, minutes=0.0).run()
    first = json.loads(step.file.read_text())
    (step.state.path / "seconds").write_text("1e6")  # as if it had worked that long
    assert replace(step, minutes=10.0).run()
    last = json.loads(step.file.read_text())
    assert (first["complete"], last["complete"]) == (False, True)
    assert first["rehearsal"]
    assert last["provenance"]["wall_seconds"] >= 1e6
    return first, last


def full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")
