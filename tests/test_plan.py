import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import dasvit.plan as plan_module
from dasvit.cli import main
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.engine.memory import LiveBytes
from dasvit.methods.settings import RelaxationSettings
from dasvit.plan import fit, plan, plan_stage, remedies, step_seconds, survivors, unseen
from dasvit.searching import SearchSettings, SearchStage
from dasvit.space import SearchSpace

pytestmark = pytest.mark.usefixtures("_unchecked")  # to look at the shape of every fake tensor takes as long again

SMALL = SearchSettings(
    image_size=16, patch_size=4, dim=48, batch_size=8, keep_ratio=1.0, stages=((1, 8, 1), (2, 3, 1)),
    hardware=Hardware("cpu", "32-true"),
)  # fmt: skip


def really(settings, number, candidates):
    """The bytes that a stage holds and its peaks, of real tensors."""
    with LiveBytes() as alive:
        halves, batch = unseen(settings, classes=2)
        stage = SearchStage(settings, number, candidates, halves, make_fabric(settings.hardware))
        stage.alpha_step(batch, batch)
        stage.weight_step(batch)
        found = [alive.now]
        for step in (lambda: stage.alpha_step(batch, batch), lambda: stage.weight_step(batch)):
            alive.peak = alive.now
            step()
            found.append(alive.peak)
    return found


@pytest.mark.parametrize(
    ("number", "operations", "change"),
    [
        (0, 8, {}),
        (1, 3, {"recompute": True}),
        (1, 3, {"keep_ratio": 0.5, "accumulate": 4}),
        (0, 8, {"accumulate": 4}),
        (1, 3, {"hardware": Hardware("cpu", "bf16-mixed")}),
    ],
    ids=str,
)
def test_what_is_planned_is_what_is_alive(number, operations, change):
    settings = replace(SMALL, **change)
    candidates = survivors(settings.space, operations)
    planned = plan_stage(settings, number, candidates, classes=2)
    found = really(settings, number, candidates)
    assert [planned.held_bytes, planned.alpha_bytes, planned.weight_bytes] == pytest.approx(found, rel=0.01)
    assert planned.peak_bytes == max(planned.alpha_bytes, planned.weight_bytes)


def test_many_parts_are_planned_by_two(monkeypatch):
    whole, steps = plan_stage(SMALL, 1, survivors(SMALL.space, 3)), []
    compute = SearchStage._train_loss
    monkeypatch.setattr(SearchStage, "_train_loss", lambda *how: steps.append(how) or compute(*how))
    parts = plan_stage(replace(SMALL, accumulate=8), 1, survivors(SMALL.space, 3))
    assert len(steps) == 4  # two steps of two parts
    assert parts.flops == pytest.approx(whole.flops, rel=0.05)


def test_planning_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    plan_stage(SMALL, 1, survivors(SMALL.space, 3))
    assert torch.equal(torch.rand(2), expected)


def test_the_heaviest_survivors_bound_the_even_ones():
    even, most = (list(plan(SMALL, choice=choice)) for choice in ("even", "heaviest"))
    assert even[0] == most[0]  # there is nothing to choose in the first stage
    assert even[1].parameters < most[1].parameters
    assert even[1].peak_bytes < most[1].peak_bytes
    assert even[1].flops < most[1].flops


@pytest.mark.parametrize("space", [SearchSpace(), SearchSpace(nodes=3), SearchSpace(heads=(2,), mlp_ratios=(1.0,))])
@pytest.mark.parametrize("choice", ["even", "heaviest"])
def test_survivors_are_candidates(space, choice):
    for count in range(2, len(space.operations) + 1):
        for operations in survivors(space, count, choice):
            assert len(set(operations)) == count
            assert list(operations) == [op for op in space.operations if op in operations]
    kinds = {op.kind for op in survivors(SearchSpace(), 3)[0]}
    assert kinds == {"skip", "msa", "mlp"}


def test_remedies_turn_one_thing_more_at_a_time():
    changes = list(remedies(replace(SMALL, batch_size=4, keep_ratio=0.5)))
    assert [flags for flags, _ in changes] == [
        "--recompute",
        "--recompute --accumulate 2",
        "--recompute --accumulate 4",
        "--recompute --accumulate 4 --keep-ratio 0.25",
    ]
    last = changes[-1][1]
    assert (last.recompute, last.accumulate, last.keep_ratio) == (True, 4, 0.25)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"joint": "on"}, "--joint auto --recompute"),
        ({"relaxation": RelaxationSettings(entangled=True)}, "--accumulate 2"),
        ({"relaxation": RelaxationSettings(partial=2)}, "--accumulate 2"),
        ({"recompute": True}, "--recompute --accumulate 2"),
    ],
    ids=str,
)
def test_what_is_advised_goes_with_what_is_set(change, first, monkeypatch):
    settings = replace(SMALL, **change)
    assert next(remedies(settings))[0] == first
    monkeypatch.setattr(plan_module, "plan", lambda _, **how: [plan_module.StagePlan(0, 1, 8, 1, 1, 10**9, 1, 1)])
    told = plan_module.advice(settings)
    assert ("--recompute" in told) == ("joint" in change)
    assert "--accumulate 2 1 GB" in told


def test_a_search_by_single_paths_is_timed(monkeypatch):
    settings = replace(SMALL, stages=((1, 8, 1),), relaxation=RelaxationSettings(mix="uniform"))
    clock = iter([0.0, 3.0, 10.0, 12.0])
    monkeypatch.setattr(plan_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert step_seconds(settings, next(plan(settings))) == 2.0


def test_fit_takes_the_first_that_fits(monkeypatch):
    peaks = dict(zip(["", *(flags for flags, _ in remedies(SMALL))], range(100, 0, -10), strict=False))
    by_settings = {s: peaks[flags] for flags, s in [("", SMALL), *remedies(SMALL)]}

    def planned(settings, **_how):
        yield plan_module.StagePlan(0, 1, 8, 1, 1, by_settings[settings], 1, 1)

    monkeypatch.setattr(plan_module, "plan", planned)
    for flags, peak in peaks.items():
        assert fit(SMALL, peak) == (flags, peak)
    assert fit(SMALL, min(peaks.values()) - 1) is None


@pytest.mark.parametrize("work", [1.0, 0.5, 0.3])
def test_seconds_of_small_batches_are_extended_in_a_straight_line(work, monkeypatch):
    planned, timed = plan_stage(SMALL, 1, survivors(SMALL.space, 3)), []

    def seconds(_settings, _planned, batch_size, *_how):
        timed.append(batch_size)
        return 0.5 + 0.25 * batch_size

    monkeypatch.setattr(plan_module, "_timed", seconds)
    assert step_seconds(SMALL, planned, work=work * planned.flops) == pytest.approx(0.5 + 0.25 * SMALL.batch_size)
    assert max(timed) <= max(2, work * SMALL.batch_size)


def test_a_step_is_run_three_times_and_the_faster_of_the_last_two_counts(monkeypatch):
    planned, steps = plan_stage(SMALL, 1, survivors(SMALL.space, 3)), []

    def noted(step):
        return lambda *given: steps.append(step.__name__) or step(*given)

    for step in (SearchStage.alpha_step, SearchStage.weight_step):
        monkeypatch.setattr(SearchStage, step.__name__, noted(step))
    clock = iter([0.0, 3.0, 10.0, 12.0])
    monkeypatch.setattr(plan_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert step_seconds(SMALL, planned) == 2.0
    assert steps == 3 * ["alpha_step", "weight_step"]


def test_the_command_tells_what_to_turn(capsys):
    sizes = "--batch 2 --image-size 16 --dim 24 --keep-ratio 1 --heads 4 --mlp-ratios 1 --stages 1 4 1"
    flags = ["plan", "--memory-only", "--precision", "32-true", *sizes.split()]
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--json"])
    assert stop.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["depth"], row["operations"]) for row in told["stages"]] == [(1, 4)]
    assert told["fits"] == {"flags": "", "bytes": max(row["most_bytes"] for row in told["stages"])}
    with pytest.raises(SystemExit):
        main([*flags, "--gpu-mem", f"{told['fits']['bytes'] - 1}B"])
    assert "GB at most; to fit in 0.0" in capsys.readouterr().out


@pytest.mark.parametrize("memory", ["", "24X", "many", "-3G", "0"])
def test_an_amount_of_memory_is_checked(memory, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", f"--gpu-mem={memory}"])
    assert stop.value.code == 2
    assert "write e.g. 24G" in capsys.readouterr().err
