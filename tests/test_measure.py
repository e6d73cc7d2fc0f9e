"""Results are recorded from a commit, and rows are kept only beside rows of the same settings and the same code."""

import ast
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import correlation
import measure
import meet
import pytest
import record
import torch
from measure import begin, resumable, write

from dasvit import Genotype, SearchSpace
from dasvit.engine.provenance import changed
from dasvit.training_free import TFSearchSettings

ROOT = Path(__file__).resolve().parents[1]
RECORDED = [Path("book/results/x.json"), ROOT / "book/results/gpu/x.json", ROOT / "tests/fixtures/x.json"]
SCRIPTS = sorted({*(ROOT / "benchmarks").rglob("*.py")} - {ROOT / "benchmarks/measure.py"})


@pytest.fixture
def at(monkeypatch):
    """Let the process have begun at a commit."""
    monkeypatch.chdir(ROOT)

    def begun(commit):
        monkeypatch.setattr(measure, "_begun", lambda: {"commit": commit, "date": "then", "modules": {}})

    return begun


def refusal(capsys, call, *arguments):
    """Call what is refused; return the line that it tells."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("out", RECORDED, ids=str)
def test_nothing_is_recorded_without_a_commit(at, capsys, out):
    at("0123456789ab-dirty")
    line = refusal(capsys, begin, out)
    assert line == f"{out}: the code has changes without a commit: commit first, or give another --out"
    at(None)
    assert "name it in DASVIT_COMMIT" in refusal(capsys, begin, out)
    at("0123456789ab")
    begin(out)


@pytest.mark.parametrize("commit", ["0123456789ab-dirty", None])
def test_elsewhere_anything_may_be_written(at, tmp_path, commit):
    at(commit)
    start = begin(tmp_path / "x.json")
    begin(None)
    write(tmp_path / "new" / "x.json", {"seed": 0}, start)
    assert json.loads((tmp_path / "new" / "x.json").read_text())["provenance"]["commit"] == commit


def test_a_result_comes_from_the_code_at_the_beginning(at, tmp_path, monkeypatch):
    at("0123456789ab")
    start = begin(tmp_path / "x.json")
    then = {"commit": "0123456789ab", "date": "then", "modules": {"dasvit/engine/runs.py": "what it was"}}
    monkeypatch.setattr(measure, "_begun", lambda: then)
    monkeypatch.setattr("sys.argv", [str(ROOT / "benchmarks/gpu/speed.py"), "--rounds", "3", "--out", "elsewhere"])
    write(tmp_path / "x.json", {"seed": 0}, start, "book/results/faults.json")
    told = json.loads((tmp_path / "x.json").read_text())["provenance"]
    assert told["command"] == "python benchmarks/gpu/speed.py --rounds 3"
    assert (told["commit"], told["date"]) == ("0123456789ab", "then")
    assert changed(told["modules"]) == ["dasvit/engine/runs.py"]
    assert {"benchmarks/measure.py", "dasvit/engine/checkpoint.py", "book/results/faults.json"} <= set(told["modules"])


def test_the_beginning_is_noted_once():
    assert measure._begun() is measure._begun()
    assert measure._begun()["modules"]["benchmarks/measure.py"]


def calls(path):
    """The names of the functions that a script calls, in the order of its lines."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = [(node.lineno, node.func.id) for node in found if isinstance(node.func, ast.Name)]
    return [name for _, name in sorted(names)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_that_writes_begins(path):
    names = calls(path)
    if {"write", "source"} & set(names):
        assert "begin" in names


def test_rows_of_a_changed_module_are_not_gone_on_with(tmp_path, capsys):
    with resumable(tmp_path / "r", "test", {"x": 1}) as run:
        run.log({"row": 0})
    assert resumable(tmp_path / "r", "test", {"x": 1}).history() == [{"row": 0}]
    kept = tmp_path / "r" / measure.MODULES
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps(content | {"dasvit/engine/checkpoint.py": "0", "dasvit/gone.py": "0"}))
    line = refusal(capsys, resumable, tmp_path / "r", "test", {"x": 1})
    assert line.endswith(
        "was started before dasvit/engine/checkpoint.py, dasvit/gone.py changed: remove it to start afresh"
    )


def test_rows_of_unknown_settings_are_not_gone_on_with(tmp_path, capsys):
    (tmp_path / "scores.jsonl").write_text("{}\n")
    line = refusal(capsys, resumable, tmp_path, "test", {"x": 1})
    assert line == f"{tmp_path} is no run directory: it has no readable settings.json"


def test_a_line_that_was_cut_off_is_made_again(tmp_path):
    with resumable(tmp_path / "r", "test", {"x": 1}) as run:
        run.log({"row": 0})
        with run.metrics.open("a") as file:
            file.write('{"row": ')
    with resumable(tmp_path / "r", "test", {"x": 1}) as run:
        run.log({"row": 1})
        assert run.history() == [{"row": 0}, {"row": 1}]


def test_correlation_keeps_its_rows_apart(tmp_path, monkeypatch, capsys):
    made = []

    def row_of(number, *_):
        made.append(number)
        return {"number": number, "scores": len(made)}

    def rows(**changes):
        few = {"samples": 3, "epochs": 2, "weight_seeds": 1, "jobs": 1}
        correlation.main(correlation.Correlate("digits", **few | changes, runs=tmp_path / "runs", out=tmp_path))
        return json.loads((tmp_path / "correlation_digits.json").read_text())["rows"]

    monkeypatch.setattr(correlation, "row_alone", row_of)
    first = rows()
    assert rows() == first
    assert [row["number"] for row in first] == made
    for change in ({"epochs": 3}, {"weight_seeds": 2}, {"samples": 4}):
        assert "was started with other settings" in refusal(capsys, lambda change=change: rows(**change))
    log = tmp_path / "runs" / "correlation_digits" / "metrics.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")  # as if stopped after the first network
    assert rows()[0] == first[0]
    assert made == [row["number"] for row in first + first[1:]]


def test_what_is_scored_is_what_is_trained(few_digits, monkeypatch):
    """Beside the slices of one set of weights, which are told apart from those that training starts from."""
    seen = []

    def note(network):
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return {"total": 0.0}

    class Noted(correlation.Retraining):
        def __init__(self, *given):
            note(given[-1])
            super().__init__(*given)

    monkeypatch.setattr(correlation, "INDICATORS", ("params",))
    monkeypatch.setattr(correlation, "score", lambda model, *_: note(model))
    monkeypatch.setattr(correlation, "Retraining", Noted)
    args = correlation.Correlate("digits", epochs=1, weight_seeds=1)
    correlation.row_of(0, correlation.settings_of(args), few_digits, args)
    scored, shared, trained = seen
    assert all(torch.equal(value, trained[name]) for name, value in scored.items())
    assert not torch.equal(shared["layers.0.mlp.fc1.weight"], trained["layers.0.mlp.fc1.weight"])


def test_meet_goes_on_with_its_scores(tmp_path, monkeypatch, capsys):
    scored, space = [], SearchSpace(heads=(2, 4), mlp_ratios=(1,), nodes=1)

    def score_number(_settings, number):
        scored.append(number)
        return {"number": number}

    monkeypatch.setattr(meet, "score_number", score_number)
    monkeypatch.setattr(meet, "SearchSpace", lambda: space)
    settings = TFSearchSettings(meet.SPACE, 1, meet.INDICATORS)
    with resumable(tmp_path / "r", "meet", {"score": settings}) as run:
        rows = meet.score_space(run, settings)
        assert [row["number"] for row in rows] == scored
        run.rewrite(rows[:-3])
    once = list(scored)
    with resumable(tmp_path / "r", "meet", {"score": settings}) as run:
        assert meet.score_space(run, settings) == rows
    assert scored == once + once[-3:]
    other = {"score": TFSearchSettings(meet.SPACE, 1, ("dss",))}
    line = refusal(capsys, resumable, tmp_path / "r", "meet", other)
    assert "was started with other settings: score.indicators" in line


def test_recorded_runs_are_of_one_code(tmp_path, monkeypatch, capsys):
    found = Genotype.from_json(
        '{"format": 1, "nodes": [[[0, "msa:12"], [1, "mlp:0.5"]], [[0, "mlp:1"], [1, "mlp:2"]]]}'
    )

    def trained(training, *_):
        macs = 2 if training.network == "vit" else 1
        return {"name": training.folder, "network": training.network, "search": training.search, "macs": macs}

    monkeypatch.setattr(record, "searched", lambda *_: SimpleNamespace(genotype=found, history=[{"seconds": 1.0}]))
    monkeypatch.setattr(record, "trained", trained)
    args = record.Record("digits", searches=2, seeds=2, randoms=2, jobs=1, runs=tmp_path / "runs", out=tmp_path)
    record.main(args)
    told = json.loads((tmp_path / "digits_tiny.json").read_text())
    assert {"command", "commit", "date", "modules"} <= set(told["provenance"])
    names = [row["name"] for row in told["rows"]]
    assert len(set(names)) == len(names)
    counts = Counter(row["network"] for row in told["rows"] if "-epochs-" in row["name"])
    assert counts == {"found": 4, "published": 2, "vit": 2, "random": 4}
    assert {row["network"] for row in told["rows"] if "-macs-" in row["name"]} == {"vit"}  # the others have as many
    kept = tmp_path / "runs" / "digits_tiny" / measure.MODULES
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"dasvit/searching.py": "0"}))
    assert "was started before dasvit/searching.py changed" in refusal(capsys, record.main, args)


def test_where_images_lie_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", [str(ROOT / "benchmarks/tune.py"), "cifar10", "--data", "folder:/my images", "/my/scores.jsonl"]
    )
    settings = {"data": {"data": "folder:/my images"}, "tried": ("folder:/my images", 2)}
    measure.write(tmp_path / "x.json", settings, measure.begin(None))
    told = json.loads((tmp_path / "x.json").read_text())
    assert told["provenance"]["command"] == "python benchmarks/tune.py cifar10 --data folder:PATH PATH/scores.jsonl"
    assert (told["data"], told["tried"]) == ({"data": "folder:PATH"}, ["folder:PATH", 2])
