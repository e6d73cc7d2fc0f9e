"""The GPU evidence, rehearsed: every step is stopped by its budget, continued, and writes what the book reads."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import planned
import pytest
import torch
from common import Budget, Rows, Step, waits
from steps import full, script, stopped_and_continued

from dasvit.engine.loop import Interrupted
from dasvit.engine.runs import Run
from dasvit.landscape import load
from dasvit.search_stage import SearchStage
from dasvit.searching import SearchSettings, search

pytestmark = pytest.mark.usefixtures("_unchecked")  # to look at the shape of every fake tensor takes as long again

ROOT = Path(__file__).resolve().parents[1]
GENOTYPE = '{"format": 1, "nodes": [[[0, "msa:12"], [1, "mlp:0.5"]], [[0, "mlp:1"], [1, "mlp:2"]]]}'


@pytest.fixture(autouse=True)
def _no_cache():
    """Take back where a step keeps images, which it tells in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASVIT_CACHE", "")
        patch.delenv("DASVIT_CACHE")
        yield


@pytest.fixture
def rehearsal(tmp_path):
    return {"rehearse": True, "runs": tmp_path}


def test_memory(rehearsal, monkeypatch):
    module = script("memory")
    first, last = stopped_and_continued(module.Memory(**rehearsal))
    assert len(first["rows"]) < len(last["rows"])
    for row in last["rows"]:
        (batch,) = row["batches"]
        assert not batch["out_of_memory"]
        assert batch["allocated_bytes"] > 10_000
    told = {row["name"]: row["batches"][0]["allocated_bytes"] for row in last["rows"]}
    assert told["ours 2 8 1.0 False 32-true"] < told["plain 2 8 1.0 False 32-true"]
    assert {row["way"] for row in last["rows"]} == {"plain", "ours", "joint"}
    assert {row["keep_ratio"] for row in last["rows"]} == {1.0, 0.5}
    assert {row["recompute"] for row in last["rows"]} == {False, True}

    monkeypatch.setattr(module, "peaks", full)
    for way in ("plain", "ours"):
        settings = SearchSettings(dim=24, keep_ratio=1.0)
        row = module.weigh(way, settings, 0, (2, 4))
        assert row["batches"] == [{"batch": size, "out_of_memory": True} for size in (2, 4)]


@pytest.mark.parametrize("method", ["dasvit", "darts"])
def test_search(rehearsal, method):
    step = script("search").Search(**rehearsal, method=method)
    first, last = stopped_and_continued(step)
    assert step.file.name == {"dasvit": "search.json", "darts": "darts.json"}[method]
    assert len(first["history"]) < len(last["history"]) == sum(epochs for *_, epochs in step.settings.stages)
    assert len(last["stages"]) == len(step.settings.stages)
    for stage in last["stages"]:
        assert stage["peak_bytes"] > 0
        flops = stage["flops_per_step"] * stage["images_per_second"] / (2 * step.settings.batch_size)
        assert stage["share_of_matmul_peak"] == pytest.approx(flops / last["ceilings"]["matmul_flops"])
    if method == "dasvit":  # stopped and continued is the same as never stopped
        whole = search(step.settings, step.images)
        assert last["genotype"] == whole.genotype.to_json()
        assert lasting(last["history"]) == lasting(whole.history)


def lasting(history):
    """Rows without what no two runs have in common."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "bytes")} for row in history]


def test_search_stops_within_a_stage(rehearsal):
    step = script("search").Search(**rehearsal)
    assert not replace(step, minutes=0.0).run()
    state = Run(step.state.path / "run").peek()
    assert (state["epoch"], state["step"]) < (1, 1 + len(step.images) // 2 // step.settings.batch_size)


def test_retrain(rehearsal, tmp_path):
    genotype = tmp_path / "genotype.json"
    genotype.write_text(GENOTYPE)
    module = script("retrain")
    assert module.Retrain(**rehearsal).found() is None
    searched = {"complete": False, "genotype": GENOTYPE}
    results = tmp_path / "rehearsal" / "results"
    results.mkdir(parents=True)
    for complete in (False, True):
        (results / "search.json").write_text(json.dumps(searched | {"complete": complete}))
        assert (module.Retrain(**rehearsal).found() is not None) is complete
    (results / "search.json").unlink()
    assert not module.Retrain(**rehearsal).run()  # without an encoder found, those that need none
    step = module.Retrain(**rehearsal, genotype=genotype)
    first, last = stopped_and_continued(step)
    assert [row["network"] for row in first["rows"]] == ["vit_b16", "published"]
    equal = [row for row in last["rows"] if row["equal"] == "epochs"]
    assert [row["network"] for row in equal] == ["vit_b16", "published", "found", "random"]
    assert {row["epochs"] for row in equal} == {step.settings.epochs}
    sizes = {row["network"]: row["parameters"] for row in equal}
    assert sizes["random"] == pytest.approx(sizes["found"], rel=0.05)
    slowest = max(row["seconds"] for row in equal)
    for row in last["rows"]:
        assert 0 <= row["top1"] <= row["top5"] <= 1
        assert row["images_per_second"] > 0
        assert row["peak_bytes"] > 0
    for row in last["rows"][4:]:
        (same,) = (other for other in equal if other["network"] == row["network"])
        assert row["epochs"] == int(same["epochs"] * slowest / same["seconds"]) > same["epochs"]


def test_landscape(rehearsal, tmp_path):
    step = script("landscape").Landscape(**rehearsal)
    first, last = stopped_and_continued(step)
    assert first["trainings"] < last["trainings"] == last["planned"] == 8
    table = load(step.file.with_suffix(".safetensors"))
    assert last["seconds_an_encoder"] == pytest.approx(sum(sum(row["seconds"]) for row in table.rows) / 8, rel=1e-5)
    assert {row["number"] for row in table.rows} == set(range(8))
    # elsewhere it goes on from the table alone
    results = tmp_path / "other" / "rehearsal" / "results"
    results.mkdir(parents=True)
    replace(table, rows=table.rows[:3]).save(results / "landscape.safetensors")
    elsewhere = replace(step, runs=tmp_path / "other")
    assert elsewhere.run()
    assert elsewhere.rows[:3] == table.rows[:3]
    assert len(elsewhere.rows) == 8


def test_book(rehearsal):
    step = script("book").Book(**rehearsal)
    first, last = stopped_and_continued(step)
    assert len(first["rows"]) < len(last["rows"])
    (row,) = last["rows"]
    assert row["name"] == "chapter"


def refused(step, capsys):
    """Run a step as a command that is refused; return the line that it tells."""
    with pytest.raises(SystemExit) as stop:
        step.command()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@dataclass(frozen=True)
class Fake(Step):
    """A step whose measurements cost nothing; those named in ``broken`` fail."""

    name: ClassVar[str] = "fake"
    broken: ClassVar[set[str]] = set()
    calls: ClassVar[list[str]] = []

    size: int = 1

    def work(self, budget):
        Rows(self.state).measure({name: partial(self.row, name) for name in "abc"}, budget)

    def row(self, name):
        self.calls.append(name)
        if name in self.broken:
            raise RuntimeError("cuDNN error:\nnot supported")
        return {"value": len(self.calls)}

    def result(self):
        return {"rows": Rows(self.state).rows}


def test_rows_of_other_settings_are_not_mixed(rehearsal, tmp_path, capsys):
    assert Fake(**rehearsal).run()
    first = json.loads(Fake(**rehearsal).file.read_text())["rows"]
    again = Fake(**rehearsal, minutes=2.0, out=tmp_path)  # of which no row depends
    assert again.run()
    assert json.loads(again.file.read_text())["rows"] == first
    capsys.readouterr()
    line = refused(Fake(**rehearsal, size=2), capsys)
    assert "was started with other settings: size 2 (was 1)" in line


def test_rows_of_another_encoder_are_not_mixed(rehearsal, tmp_path, capsys):
    step = script("retrain").Retrain(**rehearsal, genotype=tmp_path / "genotype.json", minutes=0.0)
    step.genotype.write_text(GENOTYPE)
    assert not step.run()
    step.genotype.write_text(GENOTYPE.replace("msa:12", "msa:8"))
    capsys.readouterr()
    assert "found.json is not what was given now" in refused(step, capsys)


def test_a_row_that_fails_is_told_and_tried_again(rehearsal, monkeypatch, capsys):
    step = Fake(**rehearsal)
    monkeypatch.setattr(Fake, "calls", [])
    monkeypatch.setattr(Fake, "broken", {"b"})
    assert not step.run()
    told = json.loads(step.file.read_text())
    assert not told["complete"]
    assert told["failed"] == {"b": "RuntimeError: cuDNN error: not supported"}
    assert [row["name"] for row in told["rows"]] == ["a", "c"]
    printed = capsys.readouterr()
    assert "fake: failed: b; saved, run again to go on" in printed.out
    assert "in row" in printed.err  # where it failed
    monkeypatch.setattr(Fake, "broken", set())
    assert step.run()
    assert step.calls == ["a", "b", "c", "b"]
    told = json.loads(step.file.read_text())
    assert (told["complete"], told["failed"]) == (True, {})
    assert {row["name"]: row["value"] for row in told["rows"]} == {"a": 1, "b": 4, "c": 3}


def test_budget_leaves_signals_alone():
    before = signal.getsignal(signal.SIGALRM)
    with Budget(10) as budget:
        budget.check()
        assert budget.left() <= 600
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_exit_codes(rehearsal, tmp_path, monkeypatch, capsys):
    module = script("book")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        module.Book(runs=tmp_path).command()
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

    def by_the_user(*_):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(module.Book, "work", by_the_user)
    with pytest.raises(SystemExit) as stop:
        module.Book(**rehearsal).command()
    assert stop.value.code == 128 + signal.SIGTERM


def test_waits_are_unknown_without_a_gpu():
    if not torch.cuda.is_available():
        assert waits(lambda: None) is None


@pytest.fixture
def gate(rehearsal):
    return script("gate").Gate(**rehearsal, rounds=1)


def test_gate(gate):
    first, last = stopped_and_continued(gate)
    assert "epochs_that_fit" not in first
    assert last["passed"]
    rows = {row["name"]: row for row in last["rows"]}
    assert rows["agreement"]["relative_errors"].keys() == {"logits", "gradients", "joint logits", "joint gradients"}
    assert rows["loss"]["losses"][-1] < rows["loss"]["losses"][0]
    for name in ("search 1x8", "search 2x3"):
        assert rows[name]["eager_ms"] > 0
        assert rows[name]["refused"] == "nothing records here"
        assert all("scaled_dot_product" in kernel for kernel in rows[name]["attention"])
        assert rows[name]["attention"]
    assert last["epochs_that_fit"].keys() == {"eager"}


def test_gate_does_not_pass_what_computes_wrongly(gate, monkeypatch, capsys):
    module, wrong = sys.modules[type(gate).__module__], torch.device("cpu")
    forward, calls = module.Supernet.forward, []

    def second_is_wrong(self, images, *args, **how):
        calls.append(1)
        return forward(self, images, *args, **how) * (1.002 if len(calls) % 2 == 0 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(module.Supernet, "forward", second_is_wrong)
        row = module.agreement(wrong)
    assert not row["passed"]
    assert 1e-3 < max(row["relative_errors"].values()) < 1e-2
    monkeypatch.setattr(module, "AGREES", -1.0)
    assert not gate.run()
    assert "NOT PASSED: agreement" in capsys.readouterr().out
    assert not json.loads(gate.file.read_text())["passed"]


def test_epochs_that_fit_by_hand(gate):
    fit = sys.modules[type(gate).__module__].epochs_that_fit
    rows = [{"eager_ms": 60.0, "recorded_ms": 20.0}, {"eager_ms": 40.0, "recorded_ms": 30.0}]
    assert fit(rows, 100, 1000.0) == {"eager": 100, "recorded": 200}
    assert fit([*rows, {"eager_ms": 100.0, "recorded_ms": None}], 100, 1000.0) == {"eager": 50}


def test_networks_are_trained_by_name_and_in_order(rehearsal, tmp_path):
    genotype = tmp_path / "genotype.json"
    genotype.write_text(GENOTYPE)
    module = script("retrain")
    first = module.Retrain(**rehearsal, genotype=genotype, networks=("random", "published"))
    assert first.run()
    rows = json.loads(first.file.read_text())["rows"]
    assert [(row["network"], row["equal"]) for row in rows] == [("random", "epochs"), ("published", "epochs")]
    alone = module.Retrain(**rehearsal, networks=("vit_b16",))  # needs no encoder found
    assert alone.lacks() is None
    with pytest.raises(ValueError, match=r"networks found found: name each one once"):
        module.Retrain(**rehearsal, networks=("found", "found"))


def test_flops_are_counted_once(rehearsal, monkeypatch):
    module = script("search")
    step, counted, count = module.Search(**rehearsal), [], module.plan_stage
    monkeypatch.setattr(module, "plan_stage", lambda *args, **how: (counted.append(1), count(*args, **how))[1])
    assert step.run()
    assert step.run()
    assert len(counted) == len(step.settings.stages)


@pytest.mark.long
def test_a_search_outlives_the_command_that_started_it(tmp_path):
    """As the README has it; the shell and whatever is in its group are killed at once."""
    command = f"{sys.executable} benchmarks/gpu/search.py --rehearse --runs {tmp_path} --minutes 10"
    line = f"setsid nohup {command} > {tmp_path}/log 2>&1 < /dev/null & sleep 60"
    shell = subprocess.Popen(["bash", "-c", line], cwd=ROOT, start_new_session=True)
    while not (tmp_path / "rehearsal" / "search" / "settings.json").exists():
        assert shell.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()
    result = tmp_path / "rehearsal" / "results" / "search.json"
    for _ in range(1200):
        if "search: done" in (tmp_path / "log").read_text():
            break
        time.sleep(0.1)
    assert json.loads(result.read_text())["complete"]
    assert "setsid nohup python benchmarks/gpu/search.py" in planned.README.read_text()


def test_a_search_goes_on_elsewhere_from_what_was_fetched(rehearsal, tmp_path, monkeypatch):
    search_step, fetch = script("search"), script("fetch")
    step = search_step.Search(**rehearsal)
    train = SearchStage.train

    def stop(self, *args):
        if self.number == 1:
            raise Interrupted(signal.SIGALRM)
        return train(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SearchStage, "train", stop)
        assert not step.run()
    fetch.main(fetch.Fetch(step.folder, tmp_path / "a.tar.gz"))
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        tar.extractall(tmp_path / "there" / "rehearsal", filter="data")
    there = replace(step, runs=tmp_path / "there")
    assert there.run()
    told = json.loads(there.file.read_text())
    whole = search(step.settings, step.images)
    assert told["genotype"] == whole.genotype.to_json()
    assert lasting(told["history"]) == lasting(whole.history)


@pytest.mark.parametrize("name", ["gate", "memory", "speed", "book", "search", "landscape", "retrain"])
def test_every_step_takes_the_images(name, rehearsal):
    module = script(name)
    made = getattr(module, name.capitalize())
    one, other = (made(**rehearsal, data=data) for data in ("folder:A", "packed:B"))
    assert (one.depends == other.depends) is (name not in ("search", "landscape", "retrain"))


def test_stages_are_made_on_the_device(rehearsal):
    """On a device without values nothing can be drawn first and sent then."""
    module = script("stages")
    with pytest.MonkeyPatch.context() as patch:
        seen, supernet = [], module.make_supernet
        patch.setattr(module, "make_supernet", lambda *a: (seen.append(torch.get_default_device()), supernet(*a))[1])
        fabric = SimpleNamespace(device=torch.device("meta"))
        patch.setattr(module, "make_fabric", lambda _: fabric)
        patch.setattr(module, "PlainSupernet", lambda net: net)
        model = module.plain_model(module.settings_of(True), 0)
    assert seen == [torch.device("meta")]
    assert {p.device.type for p in model.parameters()} == {"meta"}
