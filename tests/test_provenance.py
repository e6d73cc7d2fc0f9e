import subprocess
import sys
from datetime import UTC, datetime

import pytest
import torch

from dasvit.engine import provenance as module
from dasvit.engine.provenance import all_code, changed, commit, digest, modules, provenance

ROOT = module.ROOT
MODULE = '''"""What it is."""

def f(x: int) -> int:
    """Return y."""
    y = [x, 1 + x]  # the sum
    return f"{y[0]:>{y[1]}}"

class A:
    z: int = 0
    """A field."""
'''


def test_provenance_names_what_made_a_result():
    found = provenance()
    assert set(found) == {"command", "commit", "date", "versions", "hardware"}
    assert found["hardware"] == {
        "processor": found["hardware"]["processor"],
        "threads": torch.get_num_threads(),
        **module._gpu(),
    }
    assert datetime.fromisoformat(found["date"]) <= datetime.now(UTC)


def test_provenance_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91500)
    found = module._gpu()
    assert set(found) == {"gpu", "driver", "cuda", "cudnn", "tf32"}
    assert (found["gpu"], found["cudnn"], found["tf32"]) == ("a GPU", 91500, False)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert module._gpu()["tf32"] is True


def git(root, *words):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", root, *settings, *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def project(tmp_path):
    """A small project with code, a recorded result and a commit."""
    for name, text in {
        "dasvit/space.py": MODULE,
        "benchmarks/gpu/common.py": "x = 1\n",
        "benchmarks/gpu/README.md": "a table\n",
        "book/results/a.json": "{}\n",
        "tests/fixtures/b.json": "{}\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def test_a_changed_file_makes_the_commit_dirty(project):
    clean = git(project, "rev-parse", "HEAD")[:12]
    assert commit(project) == clean
    (project / "dasvit" / "space.py").write_text(MODULE + "\n")
    assert commit(project) == clean + "-dirty"
    git(project, "add", "--all")
    assert commit(project) == clean + "-dirty"


@pytest.mark.parametrize(
    "name", ["untracked.py", "book/results/a.json", "book/results/new.json", "tests/fixtures/b.json"]
)
def test_what_git_does_not_know_and_what_is_recorded_make_nothing_dirty(project, name):
    (project / name).write_text('{"other": 1}\n')
    assert not commit(project).endswith("-dirty")


def test_what_recording_writes_is_there():
    assert [path for path in module.WRITTEN if not (ROOT / path).exists()] == []


def test_without_a_repository_the_commit_is_what_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("DASVIT_COMMIT", raising=False)
    assert commit(tmp_path) is None
    (tmp_path / ".commit").write_text("fedcba987654\n")
    assert commit(tmp_path) == "fedcba987654"
    monkeypatch.setenv("DASVIT_COMMIT", "0123456789ab")
    assert commit(tmp_path) == "0123456789ab"


def test_a_repository_around_the_package_is_not_asked(project, monkeypatch):
    monkeypatch.delenv("DASVIT_COMMIT", raising=False)
    installed = project / ".venv" / "lib"
    installed.mkdir(parents=True)
    assert commit(installed) is None


def test_a_repository_knows_better_than_the_environment(project, monkeypatch):
    monkeypatch.setenv("DASVIT_COMMIT", "0123456789ab")
    assert commit(project) == git(project, "rev-parse", "HEAD")[:12]
    monkeypatch.setenv("PATH", "")  # without git
    assert commit(project) == "0123456789ab"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # the sum", "  # a sum\n"),
        ('"""What it is."""\n', ""),
        ('"""Return y."""', '"""Return z: no, y.\n\n    Args:\n        x: It.\n    """'),
        ('    """A field."""\n', ""),
        ("[x, 1 + x]", "[\n        x,\n        (1 + x),\n    ]"),
        ('f"{y[0]:>{y[1]}}"', "f'{y[0]:>{y[1]}}'"),
        ("def f(", "from .rooms import x\nimport y\n\ndef f("),
    ],
)
def test_words_and_layout_are_not_part_of_the_content(tmp_path, old, new):
    assert old in MODULE
    assert digests(tmp_path, MODULE.replace(old, new)) == digests(tmp_path, MODULE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1 + x", "1 - x"),
        ("1 + x", "x + 1"),
        ("1 + x", "True + x"),
        ("1 + x", "1.0 + x"),
        ("[x, 1 + x]", "(x, 1 + x)"),
        ("[x, 1 + x]", "[[x], 1 + x]"),
        ("[x, 1 + x]", "[x, [1 + x]]"),
        ("x: int", "x: float"),
        ("z: int = 0", "z: int"),
        ("z: int = 0", "z: int = None"),
        (":>{", ":<{"),
        ("class A:", "class A(B):"),
        ("class A:", "@A\nclass A:"),
    ],
)
def test_anything_else_is(tmp_path, old, new):
    assert old in MODULE
    assert digests(tmp_path, MODULE.replace(old, new)) != digests(tmp_path, MODULE)


def digests(folder, text):
    (folder / "a.py").write_text(text)
    return digest(folder / "a.py")


def test_files_that_are_no_code_are_hashed_whole(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    before = digest(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{ }")
    assert digest(tmp_path / "a.json") != before


def test_modules_are_those_imported_and_what_is_declared():
    code = all_code()
    assert modules("dasvit/**/*.py").keys() >= {name for name in code if name.startswith("dasvit/")}
    found = modules("book/results/faults.json")
    assert found["book/results/faults.json"] == digest(ROOT / "book/results/faults.json")
    assert (
        found["dasvit/engine/provenance.py"]
        == code["dasvit/engine/provenance.py"]
        == digest(ROOT / "dasvit/engine/provenance.py")
    )
    with pytest.raises(ValueError, match=r"book/results/none\.json: there is no such file"):
        modules("book/results/none.json")


def test_a_module_not_imported_is_no_part_of_a_result(monkeypatch):
    for name in ("dasvit.zoo", "dasvit.training_free"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = modules()
    assert "dasvit/__init__.py" in found
    assert not {"dasvit/zoo.py", "dasvit/training_free/__init__.py"} & set(found)


def test_changed_names_what_says_something_else_or_is_gone(project):
    recorded = all_code(project)
    assert list(recorded) == ["benchmarks/gpu/common.py", "dasvit/space.py"]
    assert changed(recorded, project) == []
    (project / "dasvit" / "space.py").write_text("# moved\n" + MODULE)
    assert changed(recorded, project) == []
    (project / "dasvit" / "room").mkdir()
    (project / "dasvit" / "space.py").rename(project / "dasvit" / "room" / "space.py")
    assert changed(recorded, project) == []
    (project / "dasvit" / "space.py").write_text(MODULE.replace("1 + x", "2 + x"))
    assert changed(recorded, project) == ["dasvit/space.py"]
    (project / "benchmarks" / "gpu" / "common.py").unlink()
    assert changed(recorded, project) == ["benchmarks/gpu/common.py", "dasvit/space.py"]
