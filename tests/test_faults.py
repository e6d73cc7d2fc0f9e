"""Faults that really happen to a process: one clear line, the right exit code, and nothing lost."""

import functools
import math
import os
import re
import resource
import signal
import subprocess
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from faults import FORKS, difference, finish
from PIL import Image
from victim import COMMANDS, KILL, Fault, comes_to_the_same_end, disturbed, left, victim

from dasvit.engine.hardware import out_of_memory
from dasvit.engine.runs import Run

SEARCH = COMMANDS["search"]
STEP = "dasvit.searching:SearchStage.weight_step"


def fill_disk(_run, *_args):
    """Let no file grow any more: every write fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def one_line(printed):
    """Return the last line; before it come lines of epochs only."""
    *epochs, line = printed.splitlines()
    assert all(re.match(r"(stage|retraining|\{)", epoch) for epoch in epochs), printed
    assert line.startswith("dasvit: ")
    return line.removeprefix("dasvit: ")


WRITES = {
    ("search", "settings.json", Fault("dasvit.engine.runs:Run._put", 1)),
    ("search", "genotype.json", Fault("dasvit.engine.runs:Run._put", 3)),
    ("search", "metrics.jsonl", Fault("dasvit.engine.runs:Run.log", 2)),
    ("search", "checkpoints/000001", Fault("dasvit.engine.checkpoint:save_file", 2)),
    ("retrain", "checkpoints/000000", Fault("dasvit.retraining:evaluate")),
    ("tf-search", "metrics.jsonl", Fault("dasvit.training_free.search:score_number", 4)),
    ("tf-search", "best.json", Fault("dasvit.engine.runs:Run._put", 2)),
    ("tf-search", "scores.svg", Fault("dasvit.plot:save_figure")),
}


@pytest.mark.parametrize(("command", "name", "fault"), sorted(WRITES))
def test_a_full_disk(command, name, fault, undisturbed, tmp_path):
    run = tmp_path / "run"
    code, printed = disturbed(COMMANDS[command], run, fault, fill_disk)
    place = run if name == "settings.json" else run / name
    if name == "checkpoints/000000":  # the row before it meets the limit first
        place = run / "metrics.jsonl"
    assert code == 1, printed
    assert one_line(printed).startswith(f"cannot write {place}: File too large"), printed
    assert not list(run.rglob("*.part"))
    comes_to_the_same_end(COMMANDS[command], run, undisturbed[command])


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrained")
    assert finish(COMMANDS["retrain"], folder / "run", folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


BEFORE_WRITING = {form: Fault("dasvit.exporting:trained_model", after=True) for form in ("safetensors", "timm")}
BEFORE_WRITING["onnx"] = Fault("onnx.helper:set_model_props", after=True)  # torch's exporter needs a temporary folder


@pytest.mark.parametrize("form", BEFORE_WRITING)
def test_an_export_to_a_full_disk(form, retrained, tmp_path):
    arguments = ["export", str(retrained), "--format", form]
    code, printed = disturbed(arguments, tmp_path / "net", BEFORE_WRITING[form], fill_disk)
    assert code == 1, printed
    assert re.fullmatch(rf"dasvit: cannot write {tmp_path}/net: .*File too large.*\n", printed), printed
    assert list(tmp_path.iterdir()) == []


def test_a_figure_on_a_full_disk_leaves_the_one_before(tmp_path):
    run = tmp_path / "run"
    assert disturbed(COMMANDS["tf-search"], run, Fault("dasvit.plot:save_figure"), nothing)[0] == 0
    before = (run / "scores.svg").read_bytes()
    assert disturbed(COMMANDS["tf-search"], run, Fault("dasvit.plot:save_figure"), fill_disk)[0] == 1
    assert (run / "scores.svg").read_bytes() == before


def test_a_full_disk_as_a_run_is_resumed(undisturbed, tmp_path):
    run = tmp_path / "run"
    assert disturbed(SEARCH, run, Fault(STEP, 5), KILL)[0] == -signal.SIGKILL
    code, printed = disturbed(SEARCH, run, Fault("dasvit.engine.runs:Run.load"), fill_disk)
    assert (code, one_line(printed)) == (
        1,
        f"cannot write {run / 'metrics.jsonl'}: File too large: mend this and go on with --resume",
    )
    comes_to_the_same_end(SEARCH, run, undisturbed["search"])


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"root ignores permissions and may not mount here: {done.stderr.strip()}")


@contextmanager
def read_only(folder):
    """Let nothing be written to a folder: by its permissions or, since these do not bind root, by a mount."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,ro,bind", folder)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_run_directory(undisturbed, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    refused = f"dasvit: cannot write {run}: {'Permission denied' if os.geteuid() else 'Read-only file system'}\n"
    run.mkdir()
    with read_only(run):
        code = finish(SEARCH, run, log)
    assert (code, log.read_text()) == (2, refused)
    assert disturbed(SEARCH, run, Fault(STEP, 5), KILL)[0] == -signal.SIGKILL
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with read_only(run):
        code = finish(SEARCH, run, log)
    assert (code, log.read_text()) == (2, refused)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    comes_to_the_same_end(SEARCH, run, undisturbed["search"])


def renamed(folder, *_):
    folder.rename(folder.with_name("elsewhere"))


def test_a_run_directory_that_vanishes(tmp_path):
    code, printed = disturbed(SEARCH, tmp_path / "run", Fault(STEP, 5), functools.partial(renamed, tmp_path / "run"))
    assert code == 1
    assert one_line(printed).startswith(f"cannot write {tmp_path / 'run' / 'genotype.json'}: No such file")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder of images, the search on them, and what it comes to; they are decoded as they are needed."""
    root, rng = tmp_path_factory.mktemp("pictures") / "images", np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(60):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    arguments = (
        f"search --data folder:{root} --preset tiny --batch-size 16 --dim 24 --stages 1 8 3 --device cpu".split()
    )
    run = root.parent / "run"
    code, printed = disturbed(arguments, run, Fault(STEP, 1), nothing, **LAZY)
    assert code == 0, printed
    return root, arguments, left(run)


LAZY = {"dasvit.data.sources:MEMORY_LIMIT": 0}


def nothing(_run, *_args):
    pass


def goes_on(arguments, run, expected):
    code, printed = disturbed(arguments, run, Fault(STEP, 1), nothing, **LAZY)
    assert code == 0, printed
    assert difference(left(run), expected) is None


def test_a_data_folder_that_vanishes(pictures, tmp_path):
    root, arguments, expected = pictures
    code, printed = disturbed(arguments, tmp_path / "run", Fault(STEP, 5), functools.partial(renamed, root), **LAZY)
    assert code == 2
    assert re.fullmatch(rf"cannot read image {root}/[ab]/\d+\.png: No such file or directory", one_line(printed))
    root.with_name("elsewhere").rename(root)
    goes_on(arguments, tmp_path / "run", expected)


def break_images(root, *_):
    for path in root.glob("*/*.png"):
        os.truncate(path, 60)


def test_images_that_break(pictures, tmp_path):
    root, arguments, expected = pictures
    kept = {path: path.read_bytes() for path in root.glob("*/*.png")}
    code, printed = disturbed(
        arguments, tmp_path / "run", Fault(STEP, 5), functools.partial(break_images, root), **LAZY
    )
    for path, content in kept.items():
        path.write_bytes(content)
    assert code == 2
    assert one_line(printed).startswith(f"cannot read image {root}")
    goes_on(arguments, tmp_path / "run", expected)


def poison(name, _run, stage, *_args):
    with torch.no_grad():
        stage.supernet.get_parameter(name).fill_(math.nan)


def finite(node):
    if isinstance(node, dict):
        return all(map(finite, node.values()))
    if isinstance(node, list | tuple):
        return all(map(finite, node))
    return not isinstance(node, torch.Tensor) or bool(node.isfinite().all())


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        (Fault(STEP, 5), "head.weight", "train_loss is nan at step 2 of epoch 2: start again with a lower lr"),
        (Fault(STEP, 5), "alpha", "train_loss is nan at step 2 of epoch 2"),
        (Fault(STEP, 4, after=True), "alpha", "val_loss is nan at step 2 of epoch 2"),
        (Fault(STEP, 6, after=True), "alpha", "supernet.alpha is not finite after step 3 of epoch 2"),
        (Fault(STEP, 6, after=True), "head.weight", "supernet.head.weight is not finite after step 3 of epoch 2"),
    ],
)
def test_a_state_that_is_not_finite_is_never_saved(fault, name, words, undisturbed, tmp_path):
    run = tmp_path / "run"
    code, printed = disturbed(SEARCH, run, fault, functools.partial(poison, name))
    assert code == 1
    assert one_line(printed).startswith(f"stage 1/2: {words}")
    assert printed.endswith("; the last checkpoint, 000000, is from before\n")
    assert finite(Run(run).peek())
    assert (run / "genotype.json").read_text() == Run(run).history()[0]["genotype"] + "\n"
    comes_to_the_same_end(SEARCH, run, undisturbed["search"])


def stop_and_poison(run, stage, *args):
    poison("alpha", run, stage)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_does_not_save_what_is_not_finite(undisturbed, tmp_path):
    code, printed = disturbed(SEARCH, tmp_path / "run", Fault(STEP, 5, after=True), stop_and_poison)
    assert (code, "supernet.alpha is not finite after step 2 of epoch 2" in one_line(printed)) == (1, True)
    comes_to_the_same_end(SEARCH, tmp_path / "run", undisturbed["search"])


def take_memory(_run, *_args):
    torch.empty(1 << 50)


@pytest.mark.parametrize(
    ("command", "fault", "remedy"),
    [
        ("search", Fault(STEP, 5), "this search needs about 0.0"),
        ("retrain", Fault("dasvit.retraining:evaluate", 2), "lower --batch-size"),
        ("tf-search", Fault("dasvit.training_free.search:score", 7), "lower --jobs or --image-size"),
    ],
)
def test_out_of_memory(command, fault, remedy, undisturbed, tmp_path):
    code, printed = disturbed(COMMANDS[command], tmp_path / "run", fault, take_memory)
    assert code == 1
    line = one_line(printed)
    assert line.startswith(f"out of memory: {remedy}")
    if command == "search":  # each setting with what it would need
        assert re.search(r" GB; with --recompute 0\.0\d+ GB, --accumulate 2 0\.0\d+ GB, --keep-ratio", line)
    comes_to_the_same_end(COMMANDS[command], tmp_path / "run", undisturbed[command])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU raises torch.OutOfMemoryError")
def test_out_of_memory_of_a_gpu():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, device="cuda")
    assert out_of_memory(caught.value)


def halt(_run, *_args):
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_second_process_is_kept_out(undisturbed, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = [*SEARCH, "--out", str(run)]
    first = FORKS.Process(target=victim, args=(arguments, tmp_path / "first", Fault(STEP, 5), halt, {}))
    first.start()
    try:
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        assert finish(SEARCH, run, log) == 2
    finally:
        first.kill()
        first.join()
    assert log.read_text() == f"dasvit: {run} is in use by another process: wait for it, or stop it\n"
    comes_to_the_same_end(SEARCH, run, undisturbed["search"])  # nobody has to remove a lock
