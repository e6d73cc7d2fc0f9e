"""Processes that are killed or stopped where it hurts, and resumed: they end as if nobody had disturbed them."""

import itertools
import signal

import pytest
from victim import COMMANDS, INT, KILL, TERM, Fault, comes_to_the_same_end, disturbed

from dasvit.engine.runs import Run

SEARCH = "dasvit.searching:"
CHECKPOINT_TORN = Fault("dasvit.engine.checkpoint:settle", 2, torn="checkpoints/*.part")
POINTS = {
    ("search", "before settings are written"): Fault("dasvit.engine.runs:settle"),
    ("search", "first step"): Fault(SEARCH + "SearchStage.alpha_step"),
    ("search", "middle of an epoch"): Fault(SEARCH + "SearchStage.alpha_step", 5),
    ("search", "between the steps of α and the weights"): Fault(SEARCH + "SearchStage.weight_step", 5),
    ("search", "last step"): Fault(SEARCH + "SearchStage.weight_step", 9, after=True),
    ("search", "end of an epoch"): Fault(SEARCH + "SearchStage.end_epoch", 2),
    ("search", "genotype written by half"): Fault("dasvit.engine.runs:settle", 3, torn="genotype.json.part"),
    ("search", "row logged by half"): Fault("dasvit.engine.runs:Run.log", 2, after=True, torn="metrics.jsonl"),
    ("search", "between row and checkpoint"): Fault("dasvit.engine.runs:Run.save", 2),
    ("search", "checkpoint written by half"): CHECKPOINT_TORN,
    ("search", "checkpoint without its name"): Fault("dasvit.engine.checkpoint:settle", 2),
    ("search", "old checkpoint still there"): Fault("dasvit.engine.runs:save_state", 3, after=True),
    ("search", "between stages"): Fault(SEARCH + "prune"),
    ("search", "start of a stage"): Fault("dasvit.search_stage:make_supernet", 2, after=True),
    ("retrain", "first step"): Fault("dasvit.engine.loop:_Position.add"),
    ("retrain", "middle of an epoch"): Fault("dasvit.engine.loop:_Position.add", 5),
    ("retrain", "evaluation"): Fault("dasvit.retraining:evaluate", 2),
    ("retrain", "middle of evaluation"): Fault("dasvit.retraining:measures", 2),
    ("retrain", "checkpoint written by half"): CHECKPOINT_TORN,
    ("tf-search", "first network"): Fault("dasvit.training_free.search:score_number"),
    ("tf-search", "middle of a network"): Fault("dasvit.training_free.search:score", 7),
    ("tf-search", "row logged by half"): Fault("dasvit.engine.runs:Run.log", 4, after=True, torn="metrics.jsonl"),
    ("tf-search", "best network written by half"): Fault("dasvit.engine.runs:settle", 2, torn="best.json.part"),
}


STOPS = {
    key: fault
    for key, fault in POINTS.items()
    if key[1] in ("first step", "between the steps of α and the weights", "last step", "end of an epoch", "evaluation")
    or key[1] in ("between row and checkpoint", "old checkpoint still there", "middle of a network")
}


def named(points):
    return pytest.mark.parametrize(("command", "where"), [pytest.param(*key, id=", ".join(key)) for key in points])


@named(key for key in POINTS if key not in STOPS)
def test_killed(command, where, undisturbed, tmp_path):
    code, log = disturbed(COMMANDS[command], tmp_path / "run", POINTS[command, where], KILL)
    assert code == -signal.SIGKILL, log
    comes_to_the_same_end(COMMANDS[command], tmp_path / "run", undisturbed[command])


SIGNALS = itertools.cycle([TERM, INT])


@pytest.mark.parametrize(
    ("command", "where", "action"),
    [
        pytest.param(*key, action, id=", ".join([*key, action.args[0].name]))
        for key, action in zip(STOPS, SIGNALS, strict=False)
    ],
)
def test_stopped(command, where, action, undisturbed, tmp_path):
    code, log = disturbed(COMMANDS[command], tmp_path / "run", STOPS[command, where], action)
    (signum,) = action.args
    assert code == 128 + signum
    assert log.splitlines()[-1] == f"dasvit: stopped by {signum.name}; its state is saved, go on with --resume"
    comes_to_the_same_end(COMMANDS[command], tmp_path / "run", undisturbed[command])


@pytest.mark.parametrize(
    "target",
    ["dasvit.engine.runs:Run.rewrite", SEARCH + "SearchStage.load_state_dict", SEARCH + "SearchStage.weight_step"],
)
def test_killed_again_and_again(target, undisturbed, tmp_path):
    run = tmp_path / "run"
    assert disturbed(COMMANDS["search"], run, Fault(SEARCH + "SearchStage.weight_step", 5), KILL)[0] == -signal.SIGKILL
    for _ in range(2):
        assert disturbed(COMMANDS["search"], run, Fault(target), KILL)[0] == -signal.SIGKILL
    comes_to_the_same_end(COMMANDS["search"], run, undisturbed["search"])


@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_long_epoch_is_saved_on_the_way(step, undisturbed, tmp_path):
    fault = Fault(SEARCH + "SearchStage.weight_step", step)
    always = {"dasvit.engine.loop:SAVE_SECONDS": 0.0}
    assert disturbed(COMMANDS["search"], tmp_path / "run", fault, KILL, **always)[0] == -signal.SIGKILL
    assert Run(tmp_path / "run").peek()["step"] == (step - 1) % 3
    comes_to_the_same_end(COMMANDS["search"], tmp_path / "run", undisturbed["search"])
