"""Recorded steps are the eager ones, to the bit; whatever cannot be recorded rightly is noticed, and stays eager."""

import os
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from tape import Note, Tape
from torch import nn

import dasvit
from dasvit import DataSettings, RetrainSettings, SearchSettings, SearchSpace, load_data
from dasvit.engine import capture, hardware
from dasvit.engine.capture import CudaRecorder
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.loop import Interrupted
from dasvit.engine.shorter import Snapshot, difference
from dasvit.fairness import kind_mask
from dasvit.search_stage import SearchStage

TINY = SearchSettings(
    data=DataSettings(train_images=100, test_images=20),
    dim=24,
    space=SearchSpace(heads=(4,), mlp_ratios=(1,), nodes=1),
    stages=((1, 4, 2), (2, 3, 2)),
    batch_size=16,
    accumulate=2,
    hardware=Hardware("cpu", "32-true"),
)
ASKED = replace(TINY, hardware=Hardware("cpu", "32-true", capture="on"))


@pytest.fixture(scope="module")
def images():
    return load_data(TINY.data, image_size=TINY.image_size).train


@pytest.fixture
def tapes(monkeypatch):
    """Every recorder made from now on."""
    made = []

    def make(_device):
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(hardware, "make_recorder", make)
    return made


def told(result):
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in result.history]
    return rows, result.genotype, {k: v.tolist() for k, v in result.supernet.state_dict().items()}


def eager(images, monkeypatch):
    """The same search with the same optimisers, whose steps stay eager."""
    with monkeypatch.context() as patch:
        patch.setattr("dasvit.engine.shorter.difference", lambda *_: "as the test wants")
        return told(dasvit.search(ASKED, images))


def test_a_recorded_search_is_the_eager_one_to_the_bit(images, tapes, monkeypatch, capfd):
    expected = eager(images, monkeypatch)
    assert "as the test wants" in capfd.readouterr().err
    del tapes[:]
    found = told(dasvit.search(ASKED, images))
    assert found == expected
    assert "eager" not in capfd.readouterr().err
    used = [tape for tape in tapes if tape.replays]
    steps = 3 * 2  # a stage's: all but the first pair are recorded, and one more is checked
    assert [tape.replays for tape in used] == [2 * steps] * 2
    assert all(len(tape.calls) == 2 for tape in used)  # once a stage


@pytest.mark.parametrize("step", [1, 2, 5, 8])
def test_it_goes_on_to_the_bit(step, images, tapes, monkeypatch, tmp_path):
    whole, calls = told(dasvit.search(ASKED, images)), iter(range(1, 1000))
    weight_step = SearchStage.weight_step

    def stopped(self, train):
        result = weight_step(self, train)
        if self._warm and next(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(SearchStage, "weight_step", stopped)
    with pytest.raises(Interrupted):
        dasvit.search(ASKED, images, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(hardware, "make_recorder", lambda _device: Tape())
    assert told(dasvit.search(ASKED, images, tmp_path / "run", resume=True)) == whole


class Forgetful(Tape):
    """Records all but the update of the weights, as a graph would that another step was recorded for."""

    def replay(self, calls):
        super().replay([call for call in calls if "adamw" not in str(call[0])])


class Unable(Tape):
    """Cannot record."""

    def record(self, function):
        super().record(function)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")


class Halfway(Tape):
    """Fails as the second part of a batch is computed, when there are gradients of the first one."""

    def record(self, function):
        again = super().record(function)
        if len(self.calls) == 2:
            with Note(limit=int(0.7 * self.calls[1])):
                function()
        return again


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(Forgetful, "value"), (Unable, "operation not permitted when stream"), (Halfway, "operation failed")],
)
def test_what_is_recorded_wrongly_stays_eager(wrong, words, images, tapes, monkeypatch, capfd):
    expected = eager(images, monkeypatch)
    capfd.readouterr()
    monkeypatch.setattr(hardware, "make_recorder", lambda _device: wrong())
    assert told(dasvit.search(ASKED, images)) == expected
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(ASKED.stages)
    assert all(words in line and "steps stay eager" in line for line in lines), lines


def test_what_is_sent_in_each_step_cannot_be_recorded(images, tapes, monkeypatch):
    """As the masks of the fairness term were, before they were made once a stage."""
    stage = stage_of(ASKED, images)
    train, val = (next(stage.batches(part, 0, 0)) for part in (0, 1))
    stage.alpha_step(train, val)
    stage.weight_step(train)
    assert stage.shorten(train, val) is None
    again, fairness = stage_of(ASKED, images), stage.fairness
    again.alpha_step(train, val)
    again.weight_step(train)
    candidates = stage.supernet.candidates
    monkeypatch.setattr(again, "fairness", lambda p: fairness(p) + (p * kind_mask(candidates, "none")).sum())
    assert again.shorten(train, val) == "operation not permitted when stream is capturing"


@pytest.mark.torch
@pytest.mark.usefixtures("_unchecked")
def test_what_is_compiled_wrongly_stays_eager(images, monkeypatch, capfd):
    """As with torch 2.11, whose compiled steps of the weights had no gradient: here, half of one."""
    expected = told(dasvit.search(TINY, images))

    def halved(graph, _example):
        return lambda *args: tuple(x * 0.5 if x.is_floating_point() else x for x in graph(*args))

    torch._dynamo.reset()
    monkeypatch.setattr(
        "dasvit.search_stage.compile_network", lambda network: nn.Module.compile(network, backend=halved)
    )
    settings = replace(TINY, hardware=replace(TINY.hardware, compile=True))
    assert told(dasvit.search(settings, images)) == expected
    assert capfd.readouterr().err.count("steps stay eager") == len(TINY.stages)


def stage_of(settings, images):
    candidates = (settings.space.operations,) * len(settings.space.edges)
    return SearchStage(settings, 0, candidates, images.halves(0), make_fabric(settings.hardware))


def test_the_rate_is_filled_in_place(images, tapes):
    stage, plain = stage_of(ASKED, images), stage_of(TINY, images)
    (group, *others), (expected, *_) = stage.weight_optimizer.param_groups, plain.weight_optimizer.param_groups
    rates = [g["lr"] for g in (group, *others)]
    for optimizer in (stage.schedule.optimizer, plain.schedule.optimizer):
        optimizer.step()
    for _ in range(3):
        stage.schedule.step()
        plain.schedule.step()
        assert float(group["lr"]) == expected["lr"] < TINY.lr
    assert all(g["lr"] is rate for g, rate in zip((group, *others), rates, strict=True))


def test_shortening_leaves_everything_as_it_was(images, tapes):
    stage = stage_of(ASKED, images)
    train, val = (next(stage.batches(part, 0, 0)) for part in (0, 1))
    stage.alpha_step(train, val)
    stage.weight_step(train)
    before = {k: v.clone() for k, v in stage.supernet.state_dict().items()}
    rates, random = stage.schedule.state_dict(), torch.get_rng_state()
    assert stage.shorten(train, val) is None
    assert all(torch.equal(before[k], v) for k, v in stage.supernet.state_dict().items())
    assert stage.schedule.state_dict() == rates
    assert torch.equal(torch.get_rng_state(), random)
    assert stage._recorded.keys() == {"alpha", "weights"}


def snapshots(change, off):
    """One tensor of 100 numbers before, as the eager steps leave it, and as others do."""
    before = torch.zeros(100)
    return [Snapshot({"exp_avg weights 0": x}) for x in (before, before + change, before + change + off)]


@pytest.mark.parametrize(
    ("off", "same"), [(0.0, True), (0.9e-3, True), (1.1e-3, False), (-1.0, False), (float("nan"), False)]
)
def test_what_counts_as_rounding(off, same):
    before, eager_, other = snapshots(1.0, off)
    assert (difference(before, (eager_, {}), (other, {}), 1e-3) is None) is same


def test_metrics_count_too():
    before, eager_, other = snapshots(1.0, 0.0)
    for loss, same in ((2.0, True), (2.0039, True), (2.01, False), (float("nan"), False)):
        metrics = {"train_loss": torch.tensor(2.0)}, {"train_loss": torch.tensor(loss)}
        assert (difference(before, (eager_, metrics[0]), (other, metrics[1]), 2e-3) is None) is same
    near_a_tie = {"val_accuracy": torch.tensor(0.5)}, {"val_accuracy": torch.tensor(0.25)}
    assert difference(before, (eager_, near_a_tie[0]), (other, near_a_tie[1]), 1e-3) is None


def test_a_tensor_that_hardly_changes_is_compared_with_the_others():
    names = {f"exp_avg weights {i}": 1.0 for i in range(9)} | {"exp_avg weights 9": 1e-6}
    before = Snapshot({name: torch.zeros(4) for name in names})
    eager_ = Snapshot({name: torch.full((4,), size) for name, size in names.items()})
    other = Snapshot({name: torch.full((4,), -size if size < 1 else size) for name, size in names.items()})
    assert difference(before, (eager_, {}), (other, {}), 1e-3) is None


def test_what_cannot_be_recorded_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"capture on: nothing can be recorded on a cpu, use --capture auto or off"):
        make_fabric(ASKED.hardware)
    with pytest.raises(ValueError, match=r"capture on with 2 devices: .* use --capture auto"):
        Hardware(devices=2, capture="on")
    with pytest.raises(ValueError, match=r"capture on with order 2: .* use --capture auto"):
        replace(ASKED, order=2)
    with pytest.raises(ValueError, match=r"capture on: only the steps of a search are recorded, use --capture auto"):
        RetrainSettings(hardware=Hardware(capture="on"))


def test_where_nothing_can_be_recorded_nothing_changes(images, tapes, monkeypatch):
    stage = stage_of(replace(TINY, order=2), images)
    assert (stage.recorder, stage._checked) == (None, True)
    monkeypatch.undo()
    assert stage_of(TINY, images).recorder is None
    assert capture.make_recorder(torch.device("cpu")) is None


def test_cuda_graphs_share_a_pool(monkeypatch):
    """By the calls alone: that a GPU then does it is seen there, by the check of each stage."""
    seen = []

    class Graph:
        def replay(self):
            seen.append(("replay", id(self)))

    @contextmanager
    def recording(graph, pool):
        seen.append(("begin", id(graph), pool))
        yield
        seen.append(("end", id(graph), pool))

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    recorder = CudaRecorder()
    first, second = (recorder.record(lambda name=name: seen.append(name)) for name in "ab")
    first()
    second()
    (_, one, _), (_, two, _) = seen[0], seen[3]
    assert seen == [
        ("begin", one, "pool"), "a", ("end", one, "pool"),
        ("begin", two, "pool"), "b", ("end", two, "pool"),
        ("replay", one), ("replay", two),
    ]  # fmt: skip
