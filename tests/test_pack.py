"""What is packed for a machine without a network is all that is needed there; what comes back is small."""

import json
import os
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import fetch
import pytest
import torch
from PIL import Image

import dasvit

ROOT = Path(__file__).resolve().parents[1]
PACK = ROOT / "benchmarks" / "gpu" / "pack.sh"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def shell(*command, **how):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **how)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 40), ("test", 10)):
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                torch.manual_seed(i)
                noise = Image.effect_noise((8, 8), 30 + 60 * number).convert("RGB")
                noise.save(root / part / name / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def packed(images, tmp_path_factory):
    """The folder, what was printed, and the commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: what is packed is a commit")
    folder = tmp_path_factory.mktemp("packed") / "folder"
    head = shell("git", "-C", ROOT, "rev-parse", "HEAD").stdout
    environment = os.environ | {"PYTHON": sys.executable, "FOR": VERSION}
    done = shell("bash", PACK, images, folder, env=environment)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no wheels can be had here")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout, head


@pytest.fixture(scope="module")
def alone(packed, tmp_path_factory):
    """Runs a command in the folder with what is installed from it, and without a network."""
    folder, printed, _ = packed
    install = next(line for line in printed.splitlines() if "pip install" in line)
    assert "--no-index" in install
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    names = ("PATH", "LANG", "OMP_NUM_THREADS")
    bare = {name: os.environ[name] for name in names if name in os.environ} | nowhere
    bare |= {"PIP_CONFIG_FILE": os.devnull, "HOME": str(tmp_path_factory.mktemp("home"))}
    done = shell("bash", "-c", install.replace("python", shlex.quote(sys.executable), 1), cwd=folder, env=bare)
    assert done.returncode == 0, done.stderr[-3000:]
    code = folder / "code"
    paths = {"PYTHONPATH": f"{code}:{folder / 'site'}"}
    return lambda *command: shell(sys.executable, *command, cwd=code, env=bare | paths)


@pytest.mark.long
def test_it_is_small_and_names_its_commit(packed):
    folder, printed, head = packed
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 10_000_000  # the images come on top
    assert (folder / "code" / ".commit").read_text() == head
    assert f"{folder} has " in printed
    names = {path.name.partition("-")[0].lower() for path in (folder / "wheels").iterdir()}
    assert {"dasvit", "fvcore", "iopath", "timm", "tyro", "pydantic_core"} <= names
    assert all(path.suffix == ".whl" for path in (folder / "wheels").iterdir())
    (ours,) = (folder / "wheels").glob("dasvit-*.whl")
    package = Path(dasvit.__file__).parent
    files = {
        p.relative_to(package.parent).as_posix() for p in package.rglob("*") if p.suffix in (".py", ".safetensors")
    }
    assert {"dasvit/space.py", "dasvit/landscape/table.py"} <= files
    assert files <= set(zipfile.ZipFile(ours).namelist())


@pytest.mark.long
def test_what_is_installed_is_what_is_packed(packed, alone):
    """But for what such a machine brings: torch and what is usually beside it."""
    folder, *_ = packed
    names = ("dasvit", "tyro", "pydantic", "timm", "fvcore", "iopath", "yacs", "termcolor", "typeguard")
    done = alone("-c", f"import {', '.join(names)}; print(*(m.__file__ for m in ({', '.join(names)})), sep='\\n')")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(folder)) for line in done.stdout.splitlines())


@pytest.mark.long
def test_a_step_is_rehearsed_from_the_folder_alone(packed, alone):
    folder, _, head = packed
    done = alone("benchmarks/gpu/search.py", "--rehearse", "--data", "packed:../images.packed", "--minutes", "10")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "search: done" in done.stdout
    told = json.loads((folder / "code" / "runs" / "gpu" / "rehearsal" / "results" / "search.json").read_text())
    assert told["provenance"]["commit"] == head.strip()
    assert (told["complete"], told["train_images"]) == (True, 64)
    assert told["settings"]["data"]["data"] == "packed:PATH"
    assert list((folder / "code" / "runs" / "gpu" / "cache").iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "pack.sh IMAGES"), (("/nowhere",), "/nowhere is no folder"), (("ONE", "TAKEN"), "holds something else")],
)
def test_bad_input_is_refused(arguments, words, images, tmp_path):
    (tmp_path / "file").write_text("mine")
    places = {"ONE": images, "TAKEN": tmp_path}
    done = shell("bash", PACK, *(places.get(a, a) for a in arguments))
    assert done.returncode == 2
    assert words in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_images_that_are_none_are_one_line(tmp_path):
    script = ROOT / "benchmarks" / "gpu" / "pack_images.py"
    for arguments in ((), (tmp_path, tmp_path / "out")):
        done = shell(sys.executable, script, *arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr


def test_fetch_takes_what_is_small(tmp_path, capsys):
    runs, kept = tmp_path / "runs", {"results/search.json", "search/run/stage.json", "search/run/metrics.jsonl", "log"}
    left = {"search/run/checkpoints/1.safetensors", "cache/a", "pack/b", "rehearsal/c", "search/.lock"}
    for name in kept | left:
        (runs / name).parent.mkdir(parents=True, exist_ok=True)
        (runs / name).write_text(name)
    (runs / "large").write_bytes(bytes(2000))
    (runs / "link").symlink_to(runs / "log")
    fetch.main(fetch.Fetch(runs, tmp_path / "a.tar.gz", largest=1000))
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert set(tar.getnames()) == kept
    assert "4 files" in capsys.readouterr().out
    for folder, words in ((tmp_path / "none", "does not exist"), (runs / "cache" / "empty", "nothing to fetch yet")):
        (runs / "cache" / "empty").mkdir(exist_ok=True)
        with pytest.raises(SystemExit):
            fetch.main(fetch.Fetch(folder, tmp_path / "b.tar.gz"))
        assert words in capsys.readouterr().err
