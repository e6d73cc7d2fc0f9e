"""The command line as a user meets it: what it does, and one clear line for what it cannot do."""

import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dasvit import Genotype, SearchSpace, cli, presets, zoo
from dasvit.commands import using
from dasvit.methods.registry import METHODS
from dasvit.retraining import Retraining  # noqa: F401  (loads the module)
from dasvit.searching import SearchStage

QUICK_SEARCH = ["--data", "digits", "--dim", "24", "--train-images", "200", "--stages", "1", "8", "1", "1", "3", "1"]
QUICK_RETRAIN = ["--data", "digits", "--dim", "24", "--depth", "2", "--epochs", "2", "--warmup-epochs", "1"]
QUICK_RETRAIN += ["--train-images", "200", "--test-images", "50"]


def dasvit(*args):
    """Run the command line and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(arg) for arg in args])
    return caught.value.code


@pytest.fixture
def run(capsys):
    def call(*args):
        capsys.readouterr()
        code = dasvit(*args)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "run"
    assert dasvit("search", *QUICK_SEARCH, "--out", path) == 0
    return path


@pytest.fixture(scope="module")
def retrained(searched, tmp_path_factory):
    path = tmp_path_factory.mktemp("retrain") / "run"
    assert dasvit("retrain", "--genotype", searched / "genotype.json", *QUICK_RETRAIN, "--out", path) == 0
    return path


def test_the_whole_way(searched, retrained, run, tmp_path):
    genotype = Genotype.from_json((searched / "genotype.json").read_text())
    assert Genotype.from_json((retrained / "genotype.json").read_text()) == genotype
    code, out, _ = run("evaluate", retrained, "--json")
    accuracy = json.loads(out)
    kept = json.loads((retrained / "result.json").read_text())
    assert code == 0
    assert accuracy == {k: kept[k] for k in ("top1", "top5", "balanced", "loss", "images")}
    assert kept["images"] == len(kept["predictions"]) == 50
    code, out, _ = run("evaluate", retrained)
    assert (code, out) == (
        0,
        f"top-1 {100 * accuracy['top1']:.2f} % (balanced {100 * accuracy['balanced']:.2f} %), "
        f"top-5 {100 * accuracy['top5']:.2f} %, "
        f"loss {accuracy['loss']:.4f} on 50 test images\n",
    )
    for suffix, start in [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]:
        figure = tmp_path / f"F.{suffix}"
        assert run("draw", searched / "genotype.json", "-o", figure)[0] == 0
        assert figure.read_bytes().startswith(start)


def test_a_seed_moves_no_split(monkeypatch, tmp_path):
    """Test images of one seed would be training images of the search of another."""
    seen = []

    def noting(settings, data, out, **_):
        seen.append(data)
        raise ValueError("seen")

    for command in ("search", "retrain"):
        monkeypatch.setattr(sys.modules[f"dasvit.{command}ing"], command, noting)
        for flags in ([], ["--seed", 1], ["--order-seed", 1], ["--split-seed", 1]):
            assert dasvit(command, "--data", "digits", *flags, "--out", tmp_path / "r") == 2
    for search, retrain in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(search.test.images, retrain.test.images)
    plain, *same, other = seen[:4]
    assert all(torch.equal(data.test.images, plain.test.images) for data in same)
    assert not torch.equal(other.test.images, plain.test.images)


def test_a_figure_is_the_same_each_time(run, tmp_path):
    for name in "ab":
        run("draw", "dasvit-cifar10", "-o", tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_search_prints_the_genotype_and_a_line_an_epoch(run, tmp_path):
    code, out, err = run("search", *QUICK_SEARCH, "--out", tmp_path / "r")
    assert code == 0
    assert Genotype.from_json(out).to_json() + "\n" == out
    *epochs, last = err.splitlines()
    assert [line.split(":")[0] for line in epochs] == ["stage 1/2 epoch 1/1", "stage 2/2 epoch 1/1"]
    assert last.startswith("dasvit: α has hardly moved")  # in two epochs


def test_presets_and_flags(run, tmp_path):
    args = ["--data", "digits", "--out", tmp_path / "r", "--train-images", 200, "--stages", *["1", "8", "1"]]
    assert run("search", *args, "--keep-ratio", 0.75, "--shift", 0.1, "--order", 2, "--heads", 2, 4, 8)[0] == 0
    settings = json.loads((tmp_path / "r" / "settings.json").read_text())["settings"]
    assert settings["keep_ratio"] == 0.75
    assert settings["order"] == 2
    assert settings["space"]["heads"] == [2, 4, 8]
    assert settings["data"]["augmentation"]["shift"] == 0.1
    assert settings["lr"] == presets.SEARCH["tiny"].lr


def test_plain_darts(run, tmp_path):
    assert run("search", *QUICK_SEARCH, "--method", "darts", "--out", tmp_path / "r")[0] == 0
    settings = json.loads((tmp_path / "r" / "settings.json").read_text())["settings"]
    assert settings["stages"] == [[1, 8, 2]]
    assert settings["fairness"]["skip_weight"] == 0


def test_methods_by_name(run, tmp_path):
    _, out, _ = run("search", "--help")
    told = "".join(out.split())  # lines are broken at hyphens too
    assert [name for name in METHODS if name not in told] == []
    code, found, _ = run("search", *QUICK_SEARCH, "--method", "drnas", "--hessian", "--out", tmp_path / "r")
    assert code == 0
    settings = json.loads((tmp_path / "r" / "settings.json").read_text())["settings"]
    assert settings["relaxation"]["mix"] == "dirichlet"
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert all(isinstance(row["hessian"], float) for row in rows)
    assert run("search", "--resume", "--out", tmp_path / "r")[:2] == (0, found)  # its method need not be repeated
    code, _, err = run("search", *QUICK_SEARCH, "--entangled", "--joint", "on", "--out", tmp_path / "s")
    assert code == 2
    assert err == "dasvit: joint on with entangled: these edges are computed as they are written, leave it out\n"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_resume_needs_no_settings(run, tmp_path, signum, code, monkeypatch):
    step = SearchStage.weight_step

    def stopping(self, train):
        os.kill(os.getpid(), signum)
        return step(self, train)

    monkeypatch.setattr(SearchStage, "weight_step", stopping)
    got, out, err = run("search", *QUICK_SEARCH, "--out", tmp_path / "r")
    assert (got, out) == (code, "")
    assert err == f"dasvit: stopped by {signum.name}; its state is saved, go on with --resume\n"
    monkeypatch.undo()
    got, out, _ = run("search", "--out", tmp_path / "r", "--resume")
    assert got == 0
    assert Genotype.from_json(out)
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 2


def test_diverging_ends_with_one_line(run, tmp_path):
    code, _, err = run("retrain", *QUICK_RETRAIN, "--lr", 1e12, "--out", tmp_path / "r")
    assert code == 1
    assert err.splitlines()[-1].startswith("dasvit: retraining: train_loss is nan at step 2 of epoch 1: start")


def test_complexity(run):
    code, out, _ = run("complexity", "dasvit-cifar10", "--image-size", 32, "--patch-size", 4, "--dim", 96, "--depth", 2)
    assert code == 0
    assert "parameters" in out
    code, out, _ = run(
        "complexity", "vit_b16", "--image-size", 8, "--patch-size", 2, "--dim", 24, "--depth", 1, "--json"
    )
    found = json.loads(out)
    assert found["parameters"] == found["parameters_by_module"][""]
    assert found["macs"] == found["macs_by_module"][""] > 0


def test_table1(run, monkeypatch):
    monkeypatch.setattr(zoo, "TABLE_1", {name: zoo.TABLE_1[name] for name in ("ResNet-50", "DASViT")})
    code, out, _ = run("table1")
    assert code == 0
    assert "DASViT                10    50,449,162    10.591     9.876     5.014" in out
    assert "printed 50.4 M: 10 classes; printed 9.9 G: convention B" in out
    code, out, _ = run("table1", "--json")
    resnet, dasvit_ = json.loads(out)
    assert (code, resnet["name"], dasvit_["name"]) == (0, "ResNet-50", "DASViT")
    assert dasvit_["counts"][0]["macs"]["A"] == 10_591_348_224
    assert dasvit_["macs_from"] == {"B": [10, 100, 1000]}


def test_score(run):
    small = ["--image-size", 8, "--patch-size", 4, "--in-channels", 1, "--num-classes", 10]
    code, out, _ = run("score", "autoformer-xs:4711", *small, "--indicator", "dss", "params")
    assert code == 0
    assert out.splitlines()[-1].endswith(" parameters")
    assert out.startswith("dss total ")
    code, out, _ = run("score", "dasvit-cifar10", *small, "--dim", 24, "--depth", 2, "--json")
    found = json.loads(out)
    assert found["scores"]["dss"]["total"] == found["scores"]["dss"]["msa"] + found["scores"]["dss"]["mlp"]
    assert run("score", "dasvit-cifar10", *small, "--dim", 24, "--depth", 2, "--json")[1] == out


def test_score_tells_if_another_number_is_the_same_function(run):
    space = SearchSpace()
    number = next(i for i in range(7000, 7203) if space.canonical(i) != i)
    small = ["--image-size", 8, "--patch-size", 4, "--in-channels", 1, "--num-classes", 10, "--indicator", "params"]
    same = f"dasvit-xs:{space.canonical(number)}"
    code, out, _ = run("score", f"dasvit-xs:{number}", *small)
    assert (code, out.splitlines()[-1].partition(";")[0]) == (0, f"the same function as {same}")
    told = json.loads(run("score", f"dasvit-xs:{number}", *small, "--json")[1])
    first = json.loads(run("score", same, *small, "--json")[1])
    assert (told["network"], told["same_as"]) == (f"dasvit-xs:{number}", same)
    assert "same_as" not in first
    assert told["parameters"] == first["parameters"]


def test_tf_search(run, tmp_path):
    small = ["--space", "autoformer-xs", "--image-size", 8, "--patch-size", 4, "--in-channels", 1, "--samples", 5]
    code, out, _ = run("tf-search", *small, "--out", tmp_path / "run")
    assert code == 0
    assert "best of 5 scored, 0 failed" in out
    assert (tmp_path / "run" / "scores.svg").read_text().startswith("<?xml")
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert run("score", best["network"], *small[2:-2], "--json")[0] == 0
    (tmp_path / "run" / "metrics.jsonl").write_text('{"number": ')  # a kill
    assert run("tf-search", "--out", tmp_path / "run", "--resume")[:2] == (0, out)


def test_export(run, retrained, tmp_path):
    code, out, _ = run("export", retrained, "--format", "timm", "--out", tmp_path / "net")
    assert (code, out) == (0, f"{tmp_path / 'net'}\n")
    assert (tmp_path / "net" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "command",
    [
        "search",
        "retrain",
        "evaluate",
        "predict",
        "report",
        "export",
        "draw",
        "complexity",
        "table1",
        "score",
        "tf-search",
    ],
)
def test_help(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"usage: dasvit {command}" in out
    assert command in run("--help")[1]
    assert run(command, "--help-all")[0] == 0


def test_help_lists_what_people_need_first(run):
    short, whole = (run("search", flag)[1] for flag in ("--help", "--help-all"))
    flags = [re.findall(r"^  (--[a-z-]+)", text, flags=re.MULTILINE) for text in (short, whole)]
    first = "--out --preset --method --resume --data --train-images --stages --recompute --seed --device"
    assert flags[0] == first.split()
    assert {*flags[0], "--skip-weight", "--mlp-ratios", "--order"} <= set(flags[1])


def test_one_command_begins_and_goes_on(run, tmp_path):
    command = ["search", *QUICK_SEARCH, "--out", tmp_path / "r", "--resume"]
    first, again = run(*command), run(*command)
    assert (first[0], again[:2]) == (0, first[:2])


def test_a_genotype_file_is_read_once(searched, retrained):
    settings = json.loads((retrained / "settings.json").read_text())["settings"]
    assert settings["genotype"] + "\n" == (searched / "genotype.json").read_text()


def images(root, *, broken=False):
    rng = np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    if broken:
        (root / "b" / "7.png").write_bytes(b"no image")
    return root


def genotype(folder, operation):
    path = folder / "bad.json"
    path.write_text(f'{{"format": 1, "nodes": [[[0, "{operation}"]]]}}')
    return path


SEARCH = ["search", *QUICK_SEARCH, "--out", "OUT"]
RETRAIN = ["retrain", *QUICK_RETRAIN, "--out", "OUT"]

HUGE, LONG = str(10**19), "x" * 300

BAD_INPUT = [
    ([], "no command; known: search, retrain"),
    (["find"], "unknown command 'find'"),
    (["search", "--data", "digits"], "--out"),
    ([*SEARCH, "--bogus"], "--bogus"),
    ([*SEARCH, "--preset", "huge"], "unknown preset 'huge'; known: tiny, small, paper"),
    ([*SEARCH, "--method", "enas"], "unknown method 'enas'; known: dasvit, dasvit-all-tokens,"),
    ([*SEARCH, "--data", "mnist"], "unknown data 'mnist'; known: digits"),
    ([*SEARCH, "--data", "folder:TMP/none"], "data folder TMP/none does not exist"),
    ([*SEARCH, "--data", "cifar10"], "DASVIT_DATA"),
    ([*SEARCH, "--data", "imagenet100"], "DASVIT_DATA"),
    ([*SEARCH, "--dim", "25"], "dim 25 is not divisible by 4 heads"),
    ([*SEARCH, "--dim", "x"], "--dim"),
    ([*SEARCH, "--dim", "0"], "dim 0 is below one"),
    ([*SEARCH, "--dim", HUGE], f"dim {HUGE} is too large: at most 100000"),
    ([*SEARCH, "--image-size", HUGE], f"image_size {HUGE} is too large"),
    ([*SEARCH, "--batch-size", HUGE], f"batch_size {HUGE} is too large"),
    ([*SEARCH, "--stages", "1", "8", "1", HUGE, "3", "1"], f"depth {HUGE} is too large: at most 1000"),
    ([*SEARCH, "--patch-size", "3"], "patch_size 3 does not divide image_size 8"),
    ([*SEARCH, "--keep-ratio", "0"], "keep_ratio 0 is outside (0, 1]"),
    ([*SEARCH, "--keep-ratio", "1.5"], "keep_ratio 1.5 is outside (0, 1]"),
    ([*SEARCH, "--stages", "2", "8"], "--stages"),
    ([*SEARCH, "--stages", "2", "4", "1"], "start with all 8"),
    ([*SEARCH, "--stages", "2", "8", "0"], "all at least one"),
    ([*SEARCH, "--order", "3"], "--order"),
    ([*SEARCH, "--lr", "-1"], "learning rate -1.0 is not above zero"),
    ([*SEARCH, "--batch-size", "5000"], "batch_size 5000 is more than half the 200 training images"),
    ([*SEARCH, "--train-images", "3"], "train_images 3 does not fit"),
    ([*SEARCH, "--lower", "0.9"], "fairness limits 0.9 and 0.6"),
    ([*SEARCH, "--heads", "4", "4"], "lists an operation twice"),
    ([*SEARCH, "--mlp-ratios", "-1"], "unknown operation mlp:-1"),
    ([*SEARCH, "--seed", "-1"], "seed -1"),
    ([*SEARCH, "--device", "abacus"], "--device"),
    ([*SEARCH, "--precision", "8"], "--precision"),
    (["search", "--data", "digits", "--out", "USED"], "USED exists already: add --resume"),
    ([*RETRAIN, "--genotype", "conv"], "'conv' is no readable file and no known name: vit_b16"),
    ([*RETRAIN, "--genotype", "UNKNOWN_OP"], "unknown operation 'conv:3'"),
    ([*RETRAIN, "--genotype", "FIVE_HEADS"], "dim 24 is not divisible by 5 heads"),
    ([*RETRAIN, "--epochs", "0"], "epochs 0"),
    ([*RETRAIN, "--depth", HUGE], f"depth {HUGE} is too large: at most 1000"),
    (["retrain", "--out", f"TMP/{LONG}"], "File name too long"),
    (["retrain", "--out", f"TMP/{LONG}", "--resume"], "File name too long"),
    (["retrain", "--out", "OUT", "--data", "folder:~nobody-is-called-this"], "does not exist"),
    (["retrain", "--out", "OUT", "--data", "imagenet100", "--classes", LONG], "DASVIT_DATA"),
    ([*RETRAIN, "--mixup", "0.8", "--batch-size", "33"], "batch_size 33 is odd"),
    (["retrain", "--data", "folder:BROKEN", "--out", "OUT"], "cannot read image BROKEN/b/7.png"),
    ([*RETRAIN, "--image-size", "9"], "patch_size 2 does not divide image_size 9"),
    (["retrain", "--out", "SEARCHED", "--resume"], "holds a search run, a retrain run is needed"),
    (["evaluate", "SEARCHED"], "holds a search run, a retrain run is needed"),
    (["evaluate", "TMP/none"], "TMP/none is no run directory"),
    (["evaluate"], "the following arguments are required: run"),
    (["draw", "dasvit-cifar10"], "--output"),
    (["draw", "dasvit-cifar10", "-o", "OUT.xyz"], "use one of the suffixes"),
    (["draw", "dasvit-cifar10", "-o", "TMP/none/F.svg"], "folder TMP/none does not exist"),
    (["draw", "vit_b16", "-o", "OUT.svg"], "nothing to draw"),
    (["draw", "dasvit-cifar10", "-o", f"TMP/{LONG}.svg"], "File name too long"),
    (["draw", "dasvit-cifar10", "-o", f"TMP/{LONG}/a.svg"], "does not exist"),
    (["complexity", "vit_b16", "--num-classes", HUGE], f"num_classes {HUGE} is too large"),
    (["plan", "--in-channels", HUGE], f"in_channels {HUGE} is too large"),
    (["score", "vit_b16", "--seed", HUGE], f"seed {HUGE} is outside"),
    (["score", "vit_b16", "--indicator"], "no indicator: name one or more of dss"),
    (["plan", "--batch", "4", "--batch-size", "8"], "--batch 4 and --batch-size 8 are the same: give one"),
    (["tf-search", "--image-size", HUGE, "--out", "OUT"], f"image_size {HUGE} is too large"),
    (["tf-search", "--seed", HUGE, "--out", "OUT"], f"seed {HUGE} is outside"),
    (["tf-search", "--jobs", HUGE, "--out", "OUT"], f"jobs {HUGE}: take 1 to 1000"),
    (["draw", "UNKNOWN_OP", "-o", "OUT.svg"], "unknown operation 'conv:3'"),
    (["complexity", "vit_b16", "--patch-size", "15"], "patch_size 15 does not divide image_size 224"),
    (["complexity", "lenet"], "'lenet' is no readable file"),
    (["complexity", "vit_b16", "--convention", "D"], "unknown convention 'D'"),
    (["table1", "--rows"], "--rows"),
    (["score", "autoformer-t:x"], "'x' is no number of a network: autoformer-t has 1,056,964,608, from 0"),
    (["score", "resnets:1"], "unknown space 'resnets'"),
    (["score", "lenet"], "'lenet' is no readable file"),
    (["score", "vit_b16", "--indicator", "luck"], "unknown indicator 'luck'; known: dss"),
    (["score", "autoformer-xs:1", "--patch-size", "3"], "patch_size 3 does not divide image_size 224"),
    (["tf-search"], "--out"),
    (["tf-search", "--space", "resnets", "--out", "OUT"], "unknown space 'resnets'; known: autoformer-t"),
    (["tf-search", "--samples", "0", "--out", "OUT"], "samples 0 is outside 1"),
    (["tf-search", "--samples", "9", "--min-params", "99", "--out", "OUT"], "only 0 of 9 networks found"),
    (["tf-search", "--jobs", "0", "--out", "OUT"], "jobs 0"),
    (["tf-search", "--out", "SEARCHED"], "exists already: add --resume"),
    (["tf-search", "--out", "SEARCHED", "--resume"], "holds a search run, a tf-search run is needed"),
    (["export", "SEARCHED", "--format", "timm", "--out", "OUT"], "holds a search run, a retrain run is needed"),
    (["export", "RETRAINED", "--format", "tflite", "--out", "OUT"], "unknown format 'tflite'; known: safetensors"),
    (["export", "RETRAINED", "--format", "onnx", "--out", "SEARCHED"], "exists already: choose another --out"),
    (["export", "RETRAINED", "--format", "timm", "--out", "TMP/none/net"], "cannot write TMP/none/net"),
    *((["export", "RETRAINED", "--format", f, "--out", f"TMP/{LONG}"], "too long") for f in ("timm", "safetensors")),
    (["export", "RETRAINED", "--format", "timm", "--out", f"TMP/{LONG}/net"], f"cannot write TMP/{LONG}/net"),
]


@pytest.mark.parametrize(("args", "words"), BAD_INPUT, ids=[" ".join(a)[-60:] for a, _ in BAD_INPUT])
def test_bad_input_is_one_clear_line(args, words, run, tmp_path, searched, retrained, monkeypatch):
    monkeypatch.delenv("DASVIT_DATA", raising=False)
    places = {"OUT": tmp_path / "out", "SEARCHED": searched, "RETRAINED": retrained, "USED": searched, "TMP": tmp_path}
    if "BROKEN" in " ".join(args):
        places["BROKEN"] = images(tmp_path / "images", broken=True)
    for name, operation in [("UNKNOWN_OP", "conv:3"), ("FIVE_HEADS", "msa:5")]:
        if name in args:
            places[name] = genotype(tmp_path, operation)

    def filled(text):
        for name, place in places.items():
            text = text.replace(name, str(place))
        return text

    words = filled(words)
    before = {p: p.stat().st_mtime_ns for p in searched.rglob("*")}
    code, out, err = run(*map(filled, args))
    assert (code, out) == (2, "")
    assert err.startswith("dasvit: ")
    assert err.count("\n") == 1
    assert words in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("out*"))
    assert {p: p.stat().st_mtime_ns for p in searched.rglob("*")} == before


def test_a_file_that_cannot_be_used_is_named(retrained, run, tmp_path):
    shutil.copytree(retrained, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    code, out, err = run("retrain", "--out", tmp_path / "run", "--resume")
    assert (code, out, err) == (2, "", f"dasvit: cannot use {tmp_path}/run/metrics.jsonl: Is a directory\n")


def test_resume_with_other_settings_names_them(searched, run):
    code, _, err = run("search", "--out", searched, "--resume", "--lr", "0.5", "--keep-ratio", "0.25")
    assert code == 2
    assert "started with other settings: keep_ratio 0.25 (was 0.5), lr 0.5 (was 0.004)" in err


def test_a_bug_is_not_hidden(monkeypatch):
    def broken(_):
        raise TypeError("a bug")

    monkeypatch.setattr(using, "draw", broken)
    with pytest.raises(TypeError, match="a bug"):
        cli.main(["draw", "dasvit-cifar10", "-o", "F.svg"])
