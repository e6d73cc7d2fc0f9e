"""Each method of the family as a search: stopped and resumed, in parts of a batch, in other precisions, recorded."""

import itertools
import os
import signal
from dataclasses import replace

import pytest
import torch
from tape import Tape
from test_methods import ALL, OPERATIONS, QUICK

from dasvit import Genotype, cli, presets, search
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.loop import Interrupted
from dasvit.methods.registry import METHODS
from dasvit.methods.settings import ScheduleSettings
from dasvit.search_stage import SearchStage
from dasvit.space import Operation

NEW = {"kinds", "entropy", "skip_weight", "margins"}


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in rows]


@pytest.fixture(scope="module")
def images(few_digits):
    return few_digits.train


def paused(settings, images, folder, monkeypatch, steps):
    """Search, and stop after some steps of the weights."""
    weight_step, count = SearchStage.weight_step, itertools.count(1)

    def stopping(self, train):
        if next(count) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return weight_step(self, train)

    with monkeypatch.context() as patch:
        patch.setattr(SearchStage, "weight_step", stopping)
        with pytest.raises(Interrupted):
            search(settings, images, folder)


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("dasvit-")])
def test_each_method_searches_and_resumes_to_the_bit(name, images, tmp_path, monkeypatch):
    settings = METHODS[name](QUICK)
    whole = search(settings, images)
    assert whole.genotype in settings.space
    assert set(whole.history[-1]) >= NEW
    assert Genotype.from_json(whole.history[-1]["genotype"]) == whole.genotype
    paused(settings, images, tmp_path / "run", monkeypatch, 5)
    again = search(settings, images, tmp_path / "run", resume=True)
    assert untimed(again.history) == untimed(whole.history)
    for key, value in whole.supernet.state_dict().items():
        assert torch.equal(value, again.supernet.state_dict()[key]), key
    finished = search(settings, images, tmp_path / "run", resume=True)  # nothing is left to do
    assert finished.genotype == whole.genotype
    assert untimed(finished.history) == untimed(whole.history)


def test_weights_alone_are_trained_at_first(images):
    settings = replace(QUICK, stages=((1, 8, 2),), schedule=ScheduleSettings(alpha_warmup=0.5))
    stage = SearchStage(settings, 0, ALL, images.halves(0), make_fabric(settings.hardware))
    start = stage.supernet.alpha.detach().clone()
    weights = stage.supernet.head.weight.detach().clone()
    metrics = list(stage.train(0, 0))
    assert {"val_accuracy", "val_loss", "fairness", "train_loss"} == set(metrics[0])
    assert torch.equal(stage.supernet.alpha, start)
    assert not torch.equal(stage.supernet.head.weight, weights)
    list(stage.train(1, 0))
    assert not torch.equal(stage.supernet.alpha, start)


@pytest.mark.parametrize(("share", "epochs", "waits"), [(0.9, 3, 2), (0.5, 1, 0), (0.4, 5, 2), (0.0, 1, 0)])
def test_alpha_moves_in_the_last_epoch_at_least(images, share, epochs, waits):
    settings = replace(QUICK, stages=((1, 8, epochs),), schedule=ScheduleSettings(alpha_warmup=share))
    stage = SearchStage(settings, 0, ALL, images.halves(0), make_fabric(settings.hardware))
    assert [stage._waits(epoch) for epoch in range(epochs)] == [epoch < waits for epoch in range(epochs)]


def test_identities_by_chance_end_no_stage_before_alpha_moves(images, tmp_path, monkeypatch):
    settings = replace(METHODS["darts+"](QUICK), stages=((1, 8, 3),))
    settings = replace(settings, schedule=replace(settings.schedule, alpha_warmup=0.5))
    skips = Genotype(((2 * ((0, Operation("skip")),))[:1],))
    monkeypatch.setattr(SearchStage, "_derived", lambda self: skips)
    settings = replace(settings, schedule=replace(settings.schedule, stop_skips=1))
    paused(settings, images, tmp_path, monkeypatch, steps=7)  # after the first epoch, of three steps
    assert [row["epoch"] for row in search(settings, images, tmp_path, resume=True).history] == [0, 1, 2]


def test_a_stage_ends_when_the_encoder_has_two_identities(images, tmp_path, monkeypatch):
    settings = replace(METHODS["darts+"](QUICK), stages=((1, 8, 5),))
    counts = itertools.count()
    derived = SearchStage._derived

    def collapsing(self):  # at the end of the third epoch, and from then on
        found = derived(self)
        skips = iter((True, next(counts) >= 2, False, False))
        nodes = [[(s, Operation("skip") if next(skips) else OPERATIONS[2]) for s, _ in node] for node in found.nodes]
        return Genotype(tuple(map(tuple, nodes)))

    monkeypatch.setattr(SearchStage, "_derived", collapsing)
    result = search(settings, images, tmp_path / "run")
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    assert result.history[-1]["kinds"]["skip"] >= 2
    again = search(settings, images, tmp_path / "run", resume=True)  # a stage that has ended stays so
    assert untimed(again.history) == untimed(result.history)


def test_single_paths_leave_alpha_and_train_what_they_compute(images):
    settings = METHODS["one-shot"](QUICK)
    stage = SearchStage(settings, 0, ALL, images.halves(0), make_fabric(settings.hardware))
    before = {k: v.clone() for k, v in stage.supernet.state_dict().items()}
    stage.weight_step(next(stage.batches(0, 0, 0)))
    moved = {k for k, v in stage.supernet.state_dict().items() if not torch.equal(v, before[k])}
    edges = {k.split(".operations.")[0] + k.split(".operations.")[1].split(".")[0] for k in moved if ".edges." in k}
    assert 1 <= len(edges) <= 4  # of one layer
    assert "alpha" not in moved


def test_methods_go_with_parts_of_a_batch_and_other_precisions(images):
    """Draws are those of the step, not of the part: in float64 the parts give the step of the whole."""
    for name in ("drnas", "p-darts", "pc-darts", "tangle", "one-shot", "beta-darts", "darts-minus"):
        settings = replace(METHODS[name](QUICK), hardware=Hardware("cpu", "64-true"))
        settings = replace(settings, schedule=replace(settings.schedule, alpha_warmup=0.0))
        fabric, seen = make_fabric(settings.hardware), []
        for accumulate in (1, 2):
            stage = SearchStage(replace(settings, accumulate=accumulate), 0, ALL, images.halves(0), fabric)
            train, val = (next(stage.batches(part, 0, 0)) for part in (0, 1))
            alpha = {} if name == "one-shot" else stage.alpha_step(train, val)
            seen.append((alpha | stage.weight_step(train), stage.supernet.state_dict()))
        torch.testing.assert_close(*seen, atol=1e-9, rtol=1e-9, msg=name)


def test_joint_and_recompute_serve_what_keeps_its_edges(images):
    for name in ("fair-darts", "darts-minus", "drnas", "p-darts"):
        settings = replace(METHODS[name](QUICK), hardware=Hardware("cpu", "64-true"))
        fabric, seen = make_fabric(settings.hardware), []
        for change in ({}, {"joint": "on"}, {"recompute": True}):
            stage = SearchStage(replace(settings, **change), 0, ALL, images.halves(0), fabric)
            train, val = (next(stage.batches(part, 0, 0)) for part in (0, 1))
            seen.append(stage.alpha_step(train, val) | stage.weight_step(train))
        for other in seen[1:]:
            torch.testing.assert_close(other, seen[0], atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize(("name", "recorded"), [("fair-darts", True), ("tangle", True), ("drnas", False)])
def test_what_differs_from_step_to_step_is_not_recorded(name, recorded, images, monkeypatch):
    """And what is recorded does what the eager steps do, without a word."""
    settings = replace(METHODS[name](QUICK), stages=((1, 8, 2),), hardware=Hardware("cpu", "64-true"))
    eager = search(settings, images)
    tapes = []

    def make(_device):
        tapes.append(Tape())
        return tapes[-1]

    monkeypatch.setattr("dasvit.engine.hardware.make_recorder", make)
    found = search(settings, images)
    assert bool(tapes and tapes[0].replays) == recorded
    for a, b in zip(found.history, eager.history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-9)
    torch.testing.assert_close(found.supernet.alpha, eager.supernet.alpha, atol=1e-9, rtol=1e-9)


def test_a_flag_goes_before_what_a_method_has(tmp_path, monkeypatch):
    asked = []

    def search(settings, *_how, **_more):
        asked.append(settings)
        raise ValueError("not now")

    monkeypatch.setattr("dasvit.searching.search", search)
    for method, *flags in (
        ("beta-darts", "--beta", 7),
        ("drnas", "--anchor", 0.5, "--keep-ratio", 0.5),
        ("p-darts", "--max-skips", 3, "--alpha-warmup", 0.1),
        ("darts", "--skip-weight", 0.25),
    ):
        command = ["search", "--data", "digits", "--stages", 1, 8, 1, 1, 3, 1, "--method", method, *flags]
        with pytest.raises(SystemExit, match="2"):
            cli.main([*map(str, command), "--out", str(tmp_path / "r")])
    beta, drnas, pdarts, darts = asked
    assert beta.relaxation.beta == 7
    assert (drnas.relaxation.mix, drnas.relaxation.anchor, drnas.keep_ratio) == ("dirichlet", 0.5, 0.5)
    assert (pdarts.schedule.max_skips, pdarts.schedule.alpha_warmup) == (3, 0.1)
    assert pdarts.relaxation.skip_dropout == METHODS["p-darts"](presets.SEARCH["tiny"]).relaxation.skip_dropout
    assert (darts.fairness.skip_weight, darts.fairness.type_weight) == (0.25, 0)
    assert [settings.stages for settings in asked] == [((1, 8, 2),), ((1, 8, 2),), ((1, 8, 1), (1, 3, 1)), ((1, 8, 2),)]
