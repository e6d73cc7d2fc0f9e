import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dasvit import Data, DataSettings, FairnessSettings, Genotype, SearchSettings, SearchSpace, load_data, search
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.loop import Interrupted
from dasvit.fairness import fairness_term
from dasvit.searching import METHODS, SearchStage, draw_halves

QUICK = SearchSettings(dim=24, stages=((1, 8, 2), (2, 5, 1), (2, 3, 1)), hardware=Hardware("cpu"))


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in rows]


@pytest.fixture(scope="module")
def images(few_digits):
    return few_digits.train


@pytest.fixture(scope="module")
def quick(images):
    return search(QUICK, images)


def test_search_finds_an_architecture_of_the_space(quick):
    result = quick
    assert result.genotype in QUICK.space
    assert [(row["stage"], row["epoch"]) for row in result.history] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert [len(row["alpha"]["0-2"]) for row in result.history] == [8, 8, 5, 3]
    assert list(result.history[0]["alpha"]) == ["0-2", "1-2", "0-3", "1-3", "2-3"]
    assert Genotype.from_json(result.history[-1]["genotype"]) == result.genotype
    assert {"train_loss", "val_loss", "val_accuracy", "fairness", "seconds", "bytes"} <= set(result.history[0])


def test_the_test_set_is_never_touched(images):
    class Untouchable:
        def __getattribute__(self, name):
            raise AssertionError(f"the search looked at {name} of the test set")

    search(replace(QUICK, stages=((1, 8, 1),)), Data._make([images, Untouchable(), None]))


def test_weights_and_alpha_never_see_each_others_half(images):
    """Ledger A11."""
    fabric = make_fabric(QUICK.hardware)
    stage = SearchStage(QUICK, 0, (QUICK.space.operations,) * 5, images.halves(0), fabric)
    seen = {"weights": set(), "alpha": set()}
    rows = {bytes(image.numpy()): i for i, image in enumerate(images.images)}
    assert len(rows) == len(images)

    def note(kind, x):
        pixels = (x * images.std[0] + images.mean[0]).mul(255).round().to(torch.uint8)
        seen[kind].update(rows[bytes(image.numpy())] for image in pixels)

    weight_step, alpha_step = stage.weight_step, stage.alpha_step
    stage.weight_step = lambda train: (note("weights", train[0]), weight_step(train))[1]
    stage.alpha_step = lambda train, val: (note("alpha", val[0]), alpha_step(train, val))[1]
    for epoch in range(4):
        list(stage.train(epoch, 0))
    assert not seen["weights"] & seen["alpha"]
    assert min(len(seen["weights"]), len(seen["alpha"])) > 90


@pytest.mark.parametrize("order", [1, 2])
def test_each_step_moves_its_own_parameters_only(images, order):
    settings = replace(QUICK, order=order)
    stage = SearchStage(settings, 0, (QUICK.space.operations,) * 5, images.halves(0), make_fabric(QUICK.hardware))
    train, val = (next(stage.batches(part, 0, 0)) for part in (0, 1))

    def state():
        return {k: v.clone() for k, v in stage.supernet.state_dict().items()}

    start = state()
    stage.alpha_step(train, val)
    after_alpha = state()
    stage.weight_step(train)
    after_weights = state()
    assert {k for k in start if not torch.equal(start[k], after_alpha[k])} == {"alpha"}
    moved = {k for k in start if not torch.equal(after_alpha[k], after_weights[k])}
    assert "alpha" not in moved
    assert {
        "head.weight",
        "token_selection.query.weight",
        "layers.0.edges.0-2.operations.msa:4.msa.qkv.weight",
    } <= moved
    assert all(p.grad is None for p in stage.supernet.parameters())


def test_fairness_pulls_skip_down(images):
    settings = replace(QUICK, stages=((1, 8, 3),), alpha_lr=0.05)
    fair = search(replace(settings, fairness=FairnessSettings(skip_weight=50.0)), images)
    free = search(replace(settings, fairness=FairnessSettings(skip_weight=0.0, type_weight=0.0)), images)

    def skip(result):
        alpha = torch.tensor([list(edge.values()) for edge in result.history[-1]["alpha"].values()])
        return float(alpha.softmax(1)[:, 1].mean())

    assert skip(fair) < 0.8 * skip(free)
    assert free.history[0]["fairness"] == 0


def test_loss_and_objective_are_given(images):
    """The weights descend the loss, α the objective; what both are by default gives the same rows as saying so."""
    settings = replace(QUICK, stages=((1, 8, 1),), accumulate=2)
    expected = search(settings, images)

    def objective(logits, labels, p, candidates):
        return F.cross_entropy(logits, labels) + fairness_term(p, candidates, settings.fairness)

    same = search(settings, images, loss=lambda logits, labels: F.cross_entropy(logits, labels), objective=objective)
    assert untimed(same.history) == untimed(expected.history)

    def cost(logits, labels, p, candidates):
        parameters = [[float(op.spec.count(24, op.size)) for op in operations] for operations in candidates]
        return (p * torch.tensor(parameters)).sum() / 1e3

    cheap = search(replace(settings, alpha_lr=0.2), images, objective=cost)
    assert all(operation.spec.count(24, operation.size) == 0 for _, operation in cheap.genotype.edges)
    doubled = search(settings, images, loss=lambda logits, labels: 2 * F.cross_entropy(logits, labels))
    assert doubled.history[0]["train_loss"] == pytest.approx(2 * expected.history[0]["train_loss"], rel=0.2)


def test_the_same_seed_gives_the_same_search(images, quick):
    same, other = (search(replace(QUICK, seed=seed), images) for seed in (0, 1))
    assert untimed(quick.history) == untimed(same.history)
    assert untimed(quick.history) != untimed(other.history)


def test_stages_of_one_seed_are_not_those_of_the_next(images):
    """If seeds were counted on, the second stage of a seed would be the first of the next, where shapes agree."""

    def start(seed, number):
        settings = replace(QUICK, seed=seed, stages=((1, 8, 1), (1, 8, 1)))
        candidates = (settings.space.operations,) * 5
        return SearchStage(settings, number, candidates, images.halves(0), make_fabric(QUICK.hardware)).supernet

    nets = [start(seed, number) for seed, number in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for name in ("alpha", "head.weight", "pos_embed"):
        values = [net.state_dict()[name] for net in nets]
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(values, 2)), name


def test_weights_and_order_have_seeds_of_their_own(images):
    def first(**seeds):
        settings = replace(QUICK, **seeds)
        halves = draw_halves(settings, images)
        stage = SearchStage(settings, 0, (settings.space.operations,) * 5, halves, make_fabric(QUICK.hardware))
        return stage.supernet.head.weight.detach().clone(), next(stage.batches(0, 0, 0))[0]

    (w, x), (w_other, x_same), (w_same, x_other) = first(), first(seed=1, order_seed=0), first(order_seed=1)
    assert torch.equal(w, w_same)
    assert torch.equal(x, x_same)
    assert not torch.equal(w, w_other)
    assert not torch.equal(x, x_other)


def test_matrices_decay_and_nothing_else(images):
    """Ledger A36."""
    stage = SearchStage(QUICK, 0, (QUICK.space.operations,) * 5, images.halves(0), make_fabric(QUICK.hardware))
    decay = {p: group["weight_decay"] for group in stage.weight_optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(stage.supernet.network_parameters)
    for name, parameter in stage.supernet.named_parameters():
        if name != "alpha":
            matrix = parameter.ndim > 1 and name not in ("pos_embed", "cls_token")
            assert decay[parameter] == (QUICK.weight_decay if matrix else 0), name


def test_the_decay_of_alpha_pulls_it_to_zero(images):
    """Ledger A35: it is a term of the gradient."""
    """Under AdamW a decay of 1e-3 at a rate of 1e-2 would leave 99.98 % of it after 20 steps without a gradient."""
    stage = SearchStage(QUICK, 0, (QUICK.space.operations,) * 5, images.halves(0), make_fabric(QUICK.hardware))
    alpha = stage.supernet.alpha
    alpha.data.fill_(0.5)
    for _ in range(20):
        alpha.grad = torch.zeros_like(alpha)
        stage.alpha_optimizer.step()
    assert alpha.max() < 0.35


def test_alpha_is_reset_or_carried_between_stages(images):
    """Ledger A21."""
    for carry in (False, True):
        settings = replace(QUICK, stages=((1, 8, 3), (1, 5, 1)), alpha_lr=0.2, carry_alpha=carry)
        rows = search(settings, images).history
        last, first = rows[2]["alpha"]["0-2"], rows[3]["alpha"]["0-2"]
        assert set(first) < set(last)
        assert min(last[op] for op in first) >= max(v for op, v in last.items() if op not in first)
        spread = max(abs(last[op] - first[op]) for op in first)
        assert (spread < 0.9) == carry or max(abs(v) for v in last.values()) < 0.5


def test_plain_darts_is_one_stage_without_the_rest():
    settings = METHODS["darts"](QUICK)
    assert settings.stages == ((2, 8, 4),)
    assert settings.keep_ratio == 1
    assert settings.fairness.skip_weight == settings.fairness.type_weight == 0
    assert METHODS["darts"](settings) == settings
    assert METHODS["dasvit"](QUICK) == QUICK


def test_a_run_directory_holds_what_is_promised(images, tmp_path):
    result = search(QUICK, images, tmp_path / "run")
    assert Genotype.from_json((tmp_path / "run" / "genotype.json").read_text()) == result.genotype
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        ".lock",
        "settings.json",
        "genotype.json",
        "metrics.jsonl",
        "stage.json",
        "checkpoints",
    }
    again = search(QUICK, images, tmp_path / "run", resume=True)
    assert again.genotype == result.genotype
    assert again.history == result.history


@pytest.mark.parametrize("steps", [1, 6, 7, 11])
def test_an_interrupted_search_resumes_to_the_same_end(images, quick, tmp_path, steps, monkeypatch):
    expected = quick
    weight_step, count = SearchStage.weight_step, iter(range(1, 1000))

    def interrupted(self, train):
        if next(count) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return weight_step(self, train)

    monkeypatch.setattr(SearchStage, "weight_step", interrupted)
    with pytest.raises(Interrupted):
        search(QUICK, images, tmp_path / "run")
    result = search(QUICK, images, tmp_path / "run", resume=True)
    assert untimed(result.history) == untimed(expected.history)
    for (name, a), b in zip(result.supernet.state_dict().items(), expected.supernet.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_does_not_fit_is_said_before_anything_is_written(images, tmp_path):
    for change, words in [
        ({"batch_size": 101}, "batch_size 101 is more than half the 200 training images"),
        ({"dim": 25}, "dim 25 is not divisible by 4 heads"),
        ({"patch_size": 3}, "patch_size 3 does not divide image_size 8"),
    ]:
        with pytest.raises(ValueError, match=words):
            search(replace(QUICK, **change), images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_spaces_and_precisions(images):
    space = SearchSpace(heads=(2, 3), mlp_ratios=(1,), nodes=3)
    settings = replace(QUICK, space=space, stages=((1, 5, 1), (1, 3, 1)), keep_ratio=1.0, order=2)
    assert search(settings, images).genotype in space
    for precision in ("bf16-mixed", "64-true"):
        result = search(replace(settings, order=1, hardware=Hardware("cpu", precision)), images)
        assert result.genotype in space
        assert result.supernet.alpha.dtype == (torch.float64 if precision == "64-true" else torch.float32)


def test_any_image_size_and_channels(tmp_path):
    from test_data import fill

    fill(tmp_path, "ab", 40, size=12)
    data = load_data(DataSettings(f"folder:{tmp_path}"), image_size=16)
    settings = replace(QUICK, image_size=16, patch_size=4, stages=((1, 8, 1),), batch_size=16)
    assert search(settings, data).genotype in settings.space


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_parts_of_a_batch_give_the_step_of_the_whole(images, order, accumulate):
    """In float64 and without selection, whose ranking may turn on a rounding."""
    settings = replace(QUICK, order=order, keep_ratio=1.0, hardware=Hardware("cpu", "64-true"))
    stages = [
        SearchStage(s, 0, (QUICK.space.operations,) * 5, images.halves(0), make_fabric(QUICK.hardware))
        for s in (settings, replace(settings, accumulate=accumulate))
    ]
    for stage in stages:
        stage.supernet.double()
    train, val = (next(stages[0].batches(part, 0, 0)) for part in (0, 1))
    seen = [stage.alpha_step(train, val) | stage.weight_step(train) for stage in stages]
    torch.testing.assert_close(*seen, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(*(stage.supernet.state_dict() for stage in stages), atol=1e-9, rtol=1e-9)


def test_weights_updated_in_pieces_are_those_of_one_step(images, monkeypatch):
    states = []
    for piece in (1, 10_000, 1 << 40):
        monkeypatch.setattr("dasvit.engine.updates.PIECE", piece)
        stage = SearchStage(QUICK, 0, (QUICK.space.operations,) * 5, images.halves(0), make_fabric(QUICK.hardware))
        for _, (train, val) in zip(
            range(3), zip(*(stage.batches(p, 0, 0) for p in (0, 1)), strict=False), strict=False
        ):
            stage.alpha_step(train, val)
            stage.weight_step(train)
        states.append(stage.supernet.state_dict())
        assert all(p.grad is None for p in stage.supernet.parameters())
    for state in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(state.values(), states[0].values(), strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accumulate": 0}, "accumulate 0 parts"),
        ({"accumulate": 33}, "accumulate 33 parts of a batch of 32"),
        ({"hardware": Hardware(devices=3)}, "batch_size 32 cannot be divided among 3 devices"),
    ],
)
def test_how_a_batch_is_divided_is_checked(change, words):
    with pytest.raises(ValueError, match=words):
        replace(QUICK, **change)


def test_a_finished_stage_is_let_go(images):
    stage = SearchStage(QUICK, 0, (QUICK.space.operations,) * 5, images.halves(0), make_fabric(QUICK.hardware))
    train, val = (next(stage.batches(part, 0, 0)) for part in (0, 1))
    stage.alpha_step(train, val)
    stage.weight_step(train)
    weight = weakref.ref(stage.supernet.head.weight)
    del stage
    gc.collect()
    assert weight() is None


def test_two_devices_find_what_one_finds(tmp_path):
    """Two processes that talk by gloo, each with half of every batch."""
    settings = SearchSettings(
        data=DataSettings(train_images=100, test_images=20),
        dim=24,
        stages=((1, 8, 2), (1, 3, 1)),
        hardware=Hardware("cpu", "64-true"),
    )
    one = search(settings, load_data(settings.data, image_size=8).train).history
    flags = {"train-images": "100", "test-images": "20", "dim": "24", "device": "cpu", "precision": "64-true"}
    flags |= {"out": str(tmp_path), "devices": "2"}
    command = [sys.executable, "-m", "dasvit.cli", "search", *(f"--{k}={v}" for k, v in flags.items())]
    done = subprocess.run([*command, "--stages", *"182131"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nodes") == 1  # one process speaks
    two = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a["genotype"] == b["genotype"]
        for edge, row in a["alpha"].items():
            assert b["alpha"][edge] == pytest.approx(row, abs=1e-5)
        assert b["train_loss"] == pytest.approx(a["train_loss"], abs=1e-5)
        assert b["val_accuracy"] == pytest.approx(a["val_accuracy"])
