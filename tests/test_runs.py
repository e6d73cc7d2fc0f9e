import json
import random
from dataclasses import dataclass, replace
from importlib.metadata import version

import pytest
import torch

from dasvit.engine.runs import Run, as_plain, from_plain
from dasvit.presets import RETRAIN, SEARCH
from dasvit.retraining import RetrainSettings
from dasvit.searching import SearchSettings


@dataclass(frozen=True)
class Inner:
    y: float = 0.5


@dataclass(frozen=True)
class Settings:
    x: int = 1
    inner: Inner = Inner()


def test_a_run_writes_its_settings_with_their_provenance(tmp_path):
    run = Run.open(tmp_path / "a" / "b", "search", Settings())
    stored = json.loads((run.path / "settings.json").read_text())
    assert stored["command"] == "search"
    assert stored["settings"] == {"x": 1, "inner": {"y": 0.5}}
    assert stored["provenance"]["versions"]["torch"] == version("torch")
    assert run.settings("search") == stored["settings"]


def test_a_run_that_begins_while_another_one_looks_is_left_alone(tmp_path, monkeypatch):
    def while_it_looks():
        monkeypatch.undo()
        Run.open(tmp_path / "run", "search", Settings()).close()
        return {}

    monkeypatch.setattr("dasvit.engine.runs.provenance", while_it_looks)
    with pytest.raises(ValueError, match="was started just now by another process"):
        Run.open(tmp_path / "run", "search", Settings(x=2), resume=True)
    assert Run(tmp_path / "run").settings("search")["x"] == 1
    Run.open(tmp_path / "run", "search", Settings(), resume=True).close()  # it is free again


def test_a_directory_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists already: add --resume"):
        Run.open(tmp_path, "search", Settings())
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="exists already"):
        Run.open(tmp_path / "mine.txt", "search", Settings())


def test_an_empty_directory_will_do(tmp_path):
    assert Run.open(tmp_path, "search", Settings()).settings("search")


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*: Not a directory"):
        Run.open(tmp_path / "file" / "run", "search", Settings())


def test_resume_names_the_settings_that_differ(tmp_path):
    Run.open(tmp_path / "r", "search", Settings())
    assert Run.open(tmp_path / "r", "search", Settings(), resume=True).history() == []
    with pytest.raises(ValueError, match=r"x 2 \(was 1\), inner\.y 0\.25 \(was 0\.5\)"):
        Run.open(tmp_path / "r", "search", Settings(2, Inner(0.25)), resume=True)


def test_resume_of_no_run_or_another_command(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="is no run directory"):
        Run.open(tmp_path, "search", Settings(), resume=True)
    Run.open(tmp_path / "r", "search", Settings())
    with pytest.raises(ValueError, match="holds a search run, a retrain run is needed"):
        Run.open(tmp_path / "r", "retrain", Settings(), resume=True)


@pytest.mark.parametrize("left", [None, (), (".lock", "settings.json.part")])
def test_resume_of_what_nothing_began_in_begins(left, tmp_path):
    for name in left or ():
        (tmp_path / name).write_text("")
    path = tmp_path / "new" if left is None else tmp_path
    with Run.open(path, "search", Settings(), resume=True) as run:
        assert run.settings("search") == as_plain(Settings())
        run.log({"row": 0})
    with Run.open(path, "search", Settings(), resume=True) as run:
        assert run.resume_rows() == [{"row": 0}]


def test_checkpoints_carry_on_the_log_and_only_the_last_are_kept(tmp_path):
    run = Run.open(tmp_path / "r", "search", Settings())
    assert run.load() is None
    with pytest.raises(ValueError, match="no checkpoint yet"):
        run.peek()
    for i in range(5):
        run.log({"i": i})
        run.save({"x": torch.tensor(i)})
    run.log({"i": "after the checkpoint"})
    assert len(list((run.path / "checkpoints").iterdir())) == 2
    assert int(run.peek()["x"]) == 4
    assert len(run.history()) == 6
    assert int(run.load()["x"]) == 4
    assert run.history() == [{"i": i} for i in range(5)]


def test_a_log_without_checkpoint_starts_again(tmp_path):
    run = Run.open(tmp_path / "r", "search", Settings())
    run.log({"i": 0})
    assert run.load() is None
    assert run.history() == []


@pytest.fixture
def filled(tmp_path):
    """A run with three epochs logged and saved; the last two checkpoints are there."""
    with Run.open(tmp_path / "r", "search", Settings()) as run:
        for i in range(3):
            run.log({"i": i})
            run.save({"x": torch.tensor(i)})
    return run


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_the_checkpoint_before_takes_over_from_a_damaged_one(filled, capsys):
    before, last = sorted(filled.checkpoints.iterdir())
    damage(last)
    assert int(filled.peek()["x"]) == 1
    assert capsys.readouterr().err == ""
    assert int(filled.load()["x"]) == 1
    assert filled.history() == [{"i": 0}, {"i": 1}]
    warning = f"dasvit: checkpoint {last} cannot be used: its content has not the SHA-256 in its name; going on from"
    assert capsys.readouterr().err == warning + " the one before\n"
    filled.log({"i": 2})
    filled.save({"x": torch.tensor(2)})  # the damaged one counts no longer
    assert [p.name[:6] for p in sorted(filled.checkpoints.iterdir())] == ["000001", "000002", "000002"]
    assert before in filled.checkpoints.iterdir()
    assert int(filled.peek()["x"]) == 2


def test_no_checkpoint_is_whole(filled):
    content = {p: damage(p) or p.read_bytes() for p in filled.checkpoints.iterdir()}
    for read in (filled.peek, filled.load):
        with pytest.raises(ValueError, match=r"000002-.* not the SHA-256 in its name; no other one is whole") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in filled.checkpoints.iterdir()} == content
    assert len(filled.history()) == 3


def test_200_corruptions_of_a_run(filled, capsys):
    """Whatever happens to the last checkpoint, the one before takes over."""
    rng = random.Random(0)
    *_, last = sorted(filled.checkpoints.iterdir())
    whole = last.read_bytes()
    for i in range(200):
        content = bytearray(whole)
        at = rng.randrange(len(whole))
        if i % 2:
            del content[at:]
        else:
            content[at] ^= 1 << rng.randrange(8)
        last.write_bytes(content)
        assert int(filled.load()["x"]) == 1
        assert capsys.readouterr().err.count("\n") == 1
        last.with_name(last.name + ".refused").rename(last)
        (filled.path / "metrics.jsonl").write_text('{"i": 0}\n{"i": 1}\n{"i": 2}\n')


def test_files_that_do_not_belong_there_are_refused(filled, tmp_path, capsys):
    with Run.open(tmp_path / "other", "search", Settings(5)) as other:
        other.save({"x": torch.tensor(9)})
    (alien,) = other.checkpoints.iterdir()
    places = [filled.checkpoints / name for name in ("000007.safetensors", "000008-00.safetensors", "000009.part", "x")]
    for place in places:
        place.write_text("no checkpoint")
    alien.rename(filled.checkpoints / alien.name.replace("000000", "000009"))
    assert int(filled.load()["x"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split("/")[-1][:6] for line in told] == ["000009", "000008", "000007"]
    assert "it is of another run" in told[0]


def test_a_checkpoint_is_of_no_use_without_the_rows_before_it(filled, capsys):
    lines = filled.metrics.read_bytes().splitlines(keepends=True)
    filled.metrics.write_bytes(lines[0] + lines[1] + b"\x00\xff" * 20)
    assert filled.history() == [{"i": 0}, {"i": 1}]
    assert int(filled.load()["x"]) == 1
    assert "metrics.jsonl lacks rows logged before it" in capsys.readouterr().err
    filled.metrics.write_bytes(b"[" * 100_000 + b"\n")
    assert filled.history() == []
    with pytest.raises(ValueError, match="lacks rows"):
        filled.load()


def test_a_setting_that_came_later_has_its_default(tmp_path):
    Run.open(tmp_path / "r", "search", Settings(2)).close()
    path = tmp_path / "r" / "settings.json"
    stored = json.loads(path.read_text())
    del stored["settings"]["inner"]["y"]
    path.write_text(json.dumps(stored))
    Run.open(tmp_path / "r", "search", Settings(2), resume=True).close()
    with pytest.raises(ValueError, match=r"inner\.y 0\.25 \(was 0\.5\)"):
        Run.open(tmp_path / "r", "search", Settings(2, Inner(0.25)), resume=True)
    stored["settings"]["gone"] = 7
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"unknown field 'gone': remove it, or use the version that wrote it"):
        Run.open(tmp_path / "r", "search", Settings(2), resume=True)


def test_a_field_that_settings_do_not_have_is_refused(tmp_path):
    Run.open(tmp_path / "r", "search", Settings(2)).close()
    path = tmp_path / "r" / "settings.json"
    stored = json.loads(path.read_text())
    for extra in ({"x\n" * 10**5: 1}, {"setings": {}}, {"Command": "retrain", "settings.x": 3}):
        path.write_text(json.dumps(stored | extra))
        with pytest.raises(ValueError, match=r"settings\.json: unknown field '.*: remove it, or use the") as caught:
            Run.open(tmp_path / "r", "search", Settings(2), resume=True)
        assert repr(next(iter(extra)))[:40] in str(caught.value)
        assert "\n" not in str(caught.value)
    del stored["provenance"]  # tells where the run is from and decides nothing
    path.write_text(json.dumps(stored))
    Run.open(tmp_path / "r", "search", Settings(2), resume=True).close()


def test_what_a_kill_before_the_start_leaves_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "settings.json.part").write_text('{"comm')
    Run.open(tmp_path, "search", Settings()).close()
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "settings.json"}


def test_what_a_run_depends_on_is_kept(filled):
    for _ in range(2):
        filled.keep("genotype.json", "one")
    with pytest.raises(ValueError, match=r"genotype\.json is not what was given now"):
        filled.keep("genotype.json", "another")


@pytest.mark.parametrize("settings", [*SEARCH.values(), *RETRAIN.values()])
def test_settings_come_back_from_json(settings):
    assert from_plain(type(settings), json.loads(json.dumps(as_plain(settings)))) == settings


def test_settings_that_do_not_fit_are_named():
    plain = as_plain(SearchSettings())
    for change, words in [
        ({"batch_size": "many"}, "batch_size"),
        ({"keep_ratio": 2.0}, "keep_ratio 2 is outside"),
        ({"droppath": 0.1}, "unknown field 'droppath'"),
        ({"data": {"augmentation": {"flop": True}}}, r"unknown field 'data\.augmentation\.flop'"),
        ({"x\n" * 10**5: 1}, r"unknown field 'x\\nx"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            from_plain(SearchSettings, plain | change)
        assert "\n" not in str(caught.value)


def test_presets_say_what_the_paper_says():
    search, retrain = SEARCH["paper"], RETRAIN["paper"]
    assert search.stages == ((2, 8, 30), (4, 5, 30), (6, 3, 30))
    assert (search.batch_size, search.image_size, search.patch_size, search.dim) == (64, 224, 16, 768)
    assert (retrain.epochs, retrain.warmup_epochs, retrain.batch_size, retrain.depth) == (500, 20, 128, 12)
    assert SEARCH["tiny"] == SearchSettings()
    assert RETRAIN["tiny"] == RetrainSettings()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"lr": 0.0}, "learning rate 0"),
        ({"alpha_lr": float("inf")}, "learning rate inf"),
        ({"weight_decay": -1.0}, "weight_decay -1"),
        ({"seed": -1}, "seed -1"),
        ({"stages": ()}, "stages"),
        ({"stages": ((2, 8, 0),)}, "all at least one"),
        ({"stages": ((2, 5, 1),)}, "start with all 8"),
        ({"stages": ((2, 8, 1), (4, 3, 1), (6, 5, 1))}, "never grow"),
        ({"stages": ((2, 8, 1), (4, 1, 1))}, "end with 2 or more"),
        ({"keep_ratio": 0.0}, "keep_ratio 0"),
    ],
)
def test_search_settings_out_of_range(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SearchSettings(), **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"warmup_epochs": 20}, "fewer warm-up epochs"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"mixup": -0.1}, "mixup"),
        ({"cutmix": 1.0, "batch_size": 33}, "batch_size 33 is odd"),
    ],
)
def test_retrain_settings_out_of_range(change, words):
    with pytest.raises(ValueError, match=words):
        replace(RetrainSettings(), **change)
