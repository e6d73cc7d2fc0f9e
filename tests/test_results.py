"""What is recorded comes from a commit, names its modules, and is listed on the page of recorded results."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from recorded import AGES, age, duration, page, results, what

from dasvit.engine.provenance import digest
from dasvit.results import book_folder, glue, percent, recorded, say, source_of, table

ROOT = Path(__file__).resolve().parents[1]
FILES = [*results(), *sorted((ROOT / "tests" / "fixtures").glob("*.json"))]


def provenance(path):
    return json.loads(path.read_text())["provenance"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_recorded_comes_from_a_commit_and_names_its_modules(path):
    told = provenance(path)
    assert told["commit"]
    assert not told["commit"].endswith("-dirty")
    assert "folder:/" not in path.read_text()  # whose folder it was
    assert not any(word.startswith("/") for word in told["command"].split())
    script = told["command"].split()[1]
    assert {script, "dasvit/__init__.py"} <= set(told["modules"])
    assert {"command", "versions", "hardware", "wall_seconds"} <= set(told)


@pytest.fixture
def project(tmp_path):
    """A project with one script and one result."""
    for name, text in {
        "dasvit/space.py": "x = 1\n",
        "benchmarks/fast.py": '"""How fast is it?\n\n    python benchmarks/fast.py\n"""\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    told = {
        "command": "python benchmarks/fast.py --rounds 3",
        "commit": "0123456789ab",
        "date": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.11.0"},
        "hardware": {"processor": "a processor", "threads": 2, "gpu": None},
        "modules": {name: digest(tmp_path / name) for name in ("benchmarks/fast.py", "dasvit/space.py")},
        "wall_seconds": 150.0,
    }
    (tmp_path / "book" / "results" / "gpu").mkdir(parents=True)
    (tmp_path / "book" / "results" / "gpu" / "fast.json").write_text(json.dumps({"provenance": told, "seed": 0}))
    return tmp_path


def test_the_page_tells_what_a_result_is_what_made_it_and_its_age(project):
    made = "`python benchmarks/fast.py --rounds 3`, commit 0123456789ab, 2026-01-02, seed 0, 2 min"
    made += ", a processor, 2 threads, torch 2.11.0"
    expected = ["`gpu/fast.json`, as recorded", ": How fast is it?", "", f": {made}", ""]
    assert page(project) == ["1 results: 1 as recorded.", "", *expected]
    (project / "dasvit/space.py").write_text("x = 2\n")
    first, _, *lines = page(project)
    assert first == "1 results: 1 older than its code."
    assert lines[0] == "`gpu/fast.json`, older than its code"
    assert lines[-2] == ": Changed since: `space.py`"


def test_a_change_of_the_code_makes_a_result_older(project):
    told = provenance(*results(project))
    recorded, older, unknown = AGES
    assert age(told, project) == (recorded, [])
    (project / "dasvit/space.py").write_text("x = 1  # one\n")
    assert age(told, project) == (recorded, [])
    (project / "dasvit/space.py").write_text("x = 2\n")
    assert age(told, project) == (older, ["space.py"])
    (project / "benchmarks/fast.py").unlink()
    assert age(told, project) == (older, ["benchmarks/fast.py", "space.py"])
    assert age({}, project) == (unknown, [])
    assert what(told["command"], project) == "its script is gone"


def test_every_recorded_file_is_listed():
    first, _, *lines = page()
    names = [path.relative_to(ROOT / "book" / "results").as_posix() for path in results()]
    assert [line.split("`")[1] for line in lines if line.startswith("`")] == names
    counts = [int(part.split()[0]) for part in first.partition(": ")[2].split(", ")]
    assert sum(counts) == len(names)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7100, "118 min"), (9000, "2.5 h")]
)
def test_durations(seconds, told):
    assert duration(seconds) == told


def test_a_run_is_told_as_it_is_recorded(tmp_path, capsys):
    hardware = {"processor": "P", "threads": 1, "gpu": None}
    run = {"provenance": {"command": "python x.py", "commit": "abc", "versions": {"torch": "2"}, "hardware": hardware}}
    for name, content in (("a.json", run), ("rehearsed.json", run | {"rehearsal": True})):
        (tmp_path / name).write_text(json.dumps(content))
    assert recorded("a.json", tmp_path) == run
    assert recorded("rehearsed.json", tmp_path) is recorded("none.json", tmp_path) is None
    assert source_of(run) == "python x.py\ncommit abc, P, 1 thread(s)\ntorch 2"
    say("word " * 40)
    assert [len(line) <= 76 for line in capsys.readouterr().out.splitlines()] == [True] * 3


def test_a_table_has_its_cells_and_their_style():
    html = table(("a", "b"), [(1, "<b>x</b>")], name="mine", cells="padding: 1em; color: red").data
    assert "<thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><b>x</b></td></tr></tbody>" in html
    assert ".mine td, .mine th {padding: 1em !important; color: red !important}" in html


def test_a_corner_without_a_word_is_no_header():
    assert "<tr><td></td><th>a</th></tr>" in table(("", "a"), [(1, 2)]).data


def test_what_is_recorded_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recorded("faults.json")["provenance"]["command"]
    assert (book_folder() / "claims.yml").is_file()


def test_shares_are_told_in_percent():
    assert percent([0.9, 0.94, 0.92]) == "92.0 ± 2.0"


def test_glue_keeps_a_value_for_the_page_or_shows_it(monkeypatch, capsys):
    kept = []
    monkeypatch.setitem(sys.modules, "myst_nb", SimpleNamespace(glue=lambda *told: kept.append(told)))
    glue("found", "a sentence", display=False)
    assert kept == [("found", "a sentence", False)]
    monkeypatch.setitem(sys.modules, "myst_nb", None)  # not installed
    glue("found", "a sentence", display=False)
    assert capsys.readouterr().out == ""
    glue("found", "a sentence")
    assert "a sentence" in capsys.readouterr().out
