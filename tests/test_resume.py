"""Processes that are killed or stopped where it hurts, and resumed: they end as if nobody had disturbed them."""

import functools
import importlib
import os
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from faults import FORKS, content, dasvit, difference, finish

from dasvit.runs import Run

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
COMMANDS = {
    command: [command, *arguments.split()]
    for command, arguments in {
        # 3 steps an epoch, 9 in all
        "search": "--train-images 200 --dim 24 --stages 1 8 2 1 3 1 --carry-alpha --device cpu",
        # 3 steps an epoch, 6 in all
        "retrain": "--train-images 200 --test-images 50 --dim 24 --depth 1 --epochs 2 --warmup-epochs 1 --mixup 0.8 "
        "--erase 0.5 --device cpu",
        "tf-search": "--space autoformer-xs --image-size 8 --patch-size 4 --in-channels 1 --num-classes 10 --samples 6 "
        "--indicators dss synflow",
    }.items()
}


class Fault(NamedTuple):
    """Send a signal before or after a call of a function; the end of a file may be missing then."""

    target: str
    call: int = 1
    after: bool = False
    torn: str | None = None


def victim(arguments, log, fault, signum, constants):
    """Run the command line; it stops itself where the fault says."""
    module, _, name = fault.target.partition(":")
    for place, value in constants.items():
        where, _, constant = place.partition(":")
        setattr(importlib.import_module(where), constant, value)
    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), iter(range(1, 10**6))

    def strike():
        if fault.torn:
            (path,) = Path(arguments[arguments.index("--out") + 1]).glob(fault.torn)
            os.truncate(path, path.stat().st_size - 10)
        os.kill(os.getpid(), signum)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        here = next(calls) == fault.call
        if here and not fault.after:
            strike()
        result = function(*args, **kwargs)
        if here and fault.after:
            strike()
        return result

    setattr(owner, name, wrapped)
    dasvit(arguments, log)


def disturbed(command, run, fault, signum, **constants):
    """Run a command with a fault and return its exit code and what it printed."""
    log, resume = run.parent / "log", ["--resume"] if (run / "settings.json").exists() else []
    log.write_text("")
    arguments = [*COMMANDS[command], "--out", str(run), *resume]
    process = FORKS.Process(target=victim, args=(arguments, log, fault, signum, constants))
    process.start()
    process.join(60)
    return process.exitcode, log.read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what each command leaves when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for command, arguments in COMMANDS.items():
        assert finish(arguments, folder / command, folder / "log") == 0, (folder / "log").read_text()
    return {command: left(command, folder / command) for command in COMMANDS}


def left(command, run):
    if command == "tf-search":
        return {name: (run / name).read_bytes() for name in ("metrics.jsonl", "best.json", "scores.svg")}
    return content(run)


def comes_to_the_same_end(command, run, undisturbed):
    code, log = finish(COMMANDS[command], run, run.parent / "log"), (run.parent / "log").read_text()
    assert (code, difference(left(command, run), undisturbed[command])) == (0, None), log
    return log


SEARCH = "dasvit.search:"
CHECKPOINT_TORN = Fault("dasvit.checkpoint:save_file", 2, after=True, torn="checkpoints/*.part")
POINTS = {
    ("search", "before settings are written"): Fault("dasvit.runs:settle"),
    ("search", "first step"): Fault(SEARCH + "SearchStage._alpha_step"),
    ("search", "middle of an epoch"): Fault(SEARCH + "SearchStage._alpha_step", 5),
    ("search", "between the steps of α and the weights"): Fault(SEARCH + "SearchStage._weight_step", 5),
    ("search", "last step"): Fault(SEARCH + "SearchStage._weight_step", 9, after=True),
    ("search", "end of an epoch"): Fault(SEARCH + "SearchStage.end_epoch", 2),
    ("search", "genotype written by half"): Fault("dasvit.runs:settle", 3, torn="genotype.json.part"),
    ("search", "row logged by half"): Fault("dasvit.runs:Run.log", 2, after=True, torn="metrics.jsonl"),
    ("search", "between row and checkpoint"): Fault("dasvit.runs:Run.save", 2),
    ("search", "checkpoint written by half"): CHECKPOINT_TORN,
    ("search", "checkpoint without its name"): Fault("dasvit.checkpoint:settle", 2),
    ("search", "old checkpoint still there"): Fault("dasvit.runs:save_state", 3, after=True),
    ("search", "between stages"): Fault(SEARCH + "prune"),
    ("search", "start of a stage"): Fault(SEARCH + "make_supernet", 3, after=True),
    ("retrain", "first step"): Fault("dasvit.loop:_Position.add"),
    ("retrain", "middle of an epoch"): Fault("dasvit.loop:_Position.add", 5),
    ("retrain", "evaluation"): Fault("dasvit.retrain:evaluate", 2),
    ("retrain", "middle of evaluation"): Fault("dasvit.retrain:multiclass_accuracy", 4),
    ("retrain", "checkpoint written by half"): CHECKPOINT_TORN,
    ("tf-search", "first network"): Fault("dasvit.training_free.search:score_number"),
    ("tf-search", "middle of a network"): Fault("dasvit.training_free.search:score", 7),
    ("tf-search", "row logged by half"): Fault("dasvit.runs:Run.log", 4, after=True, torn="metrics.jsonl"),
    ("tf-search", "best network written by half"): Fault("dasvit.runs:settle", 2, torn="best.json.part"),
}


STOPS = {
    key: fault
    for key, fault in POINTS.items()
    if key[1] in ("first step", "between the steps of α and the weights", "last step", "end of an epoch", "evaluation")
    or key[1] in ("between row and checkpoint", "old checkpoint still there", "middle of a network")
}


def named(points):
    return pytest.mark.parametrize(("command", "where"), [pytest.param(*key, id=", ".join(key)) for key in points])


@named(POINTS)
def test_killed(command, where, undisturbed, tmp_path):
    code, log = disturbed(command, tmp_path / "run", POINTS[command, where], KILL)
    assert code == -KILL, log
    comes_to_the_same_end(command, tmp_path / "run", undisturbed)


@named(STOPS)
@pytest.mark.parametrize("signum", [TERM, INT], ids=["SIGTERM", "SIGINT"])
def test_stopped(command, where, signum, undisturbed, tmp_path):
    code, log = disturbed(command, tmp_path / "run", STOPS[command, where], signum)
    assert code == 128 + signum
    assert log.splitlines()[-1] == f"dasvit: stopped by {signum.name}; its state is saved, go on with --resume"
    comes_to_the_same_end(command, tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    "target", ["dasvit.runs:Run.rewrite", SEARCH + "SearchStage.load_state_dict", SEARCH + "SearchStage._weight_step"]
)
def test_killed_again_and_again(target, undisturbed, tmp_path):
    run = tmp_path / "run"
    assert disturbed("search", run, Fault(SEARCH + "SearchStage._weight_step", 5), KILL)[0] == -KILL
    for _ in range(2):
        assert disturbed("search", run, Fault(target), KILL)[0] == -KILL
    comes_to_the_same_end("search", run, undisturbed)


@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_long_epoch_is_saved_on_the_way(step, undisturbed, tmp_path):
    fault = Fault(SEARCH + "SearchStage._weight_step", step)
    always = {"dasvit.loop:SAVE_SECONDS": 0.0}
    assert disturbed("search", tmp_path / "run", fault, KILL, **always)[0] == -KILL
    assert Run(tmp_path / "run").peek()["step"] == (step - 1) % 3
    comes_to_the_same_end("search", tmp_path / "run", undisturbed)
