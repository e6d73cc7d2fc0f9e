"""Stopped runs of every version of the checkpoints so far: this version goes on with them or refuses them by name.

``PYTHONPATH=benchmarks python tests/test_fixtures.py`` adds those of the present version, when that has changed.
"""

import json
import shutil
from pathlib import Path

import pytest
from faults import finish
from victim import TERM, Fault, disturbed

from dasvit.engine.checkpoint import VERSION
from dasvit.engine.runs import Run

FIXTURES = Path(__file__).parent / "fixtures"
SIZES = "--train-images 40 --batch-size 10 --patch-size 4 --dim 4 --device cpu"
SEARCH = f"search {SIZES} --heads 1 --mlp-ratios 0.5 --nodes 1 --keep 1 --stages 1 4 2"
RETRAIN = f"retrain {SIZES} --test-images 20 --depth 1 --epochs 2 --warmup-epochs 1 --genotype"
MIDDLE = {  # of the second epoch
    "search": (SEARCH.split(), Fault("dasvit.engine.loop:_Position.add", 3)),
    "retrain": (
        [*RETRAIN.split(), '{"format": 1, "nodes": [[[1, "msa:1"]]]}'],
        Fault("dasvit.engine.loop:_Position.add", 5),
    ),
}


def make():
    """Stop each command in the middle."""
    for command, (arguments, fault) in MIDDLE.items():
        run = FIXTURES / f"checkpoint-{VERSION}" / command
        shutil.rmtree(run, ignore_errors=True)
        run.parent.mkdir(parents=True, exist_ok=True)
        code, printed = disturbed(arguments, run, fault, TERM)
        assert code == 143, printed
        for path in (run / ".lock", min((run / "checkpoints").iterdir())):  # one checkpoint is enough
            path.unlink()


@pytest.mark.parametrize("command", MIDDLE)
@pytest.mark.parametrize("folder", sorted(FIXTURES.glob("checkpoint-*")), ids=lambda folder: folder.name)
def test_a_stopped_run_of_this_or_an_earlier_version(folder, command, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(folder / command, run)
    steps = Run(run).history()
    code = finish([command], run, log)
    version = folder.name.removeprefix("checkpoint-")
    if version == VERSION:
        assert code == 0, log.read_text()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [0, 1]
        assert rows[:1] == steps
    else:
        assert code == 2
        assert f"is of version {version}, this dasvit reads version {VERSION}" in log.read_text()


def test_this_version_has_its_fixtures():
    assert (FIXTURES / f"checkpoint-{VERSION}").is_dir()


if __name__ == "__main__":
    make()
