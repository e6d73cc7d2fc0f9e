"""The page "Use it on your own images", command by command, on pieces of real photographs; and what may go wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import take
from PIL import Image, PngImagePlugin
from test_cli import dasvit

from dasvit import Classifier, DataSettings, Genotype, complexity, load_data, propose
from dasvit.calibration import calibration_error, fit_temperature
from dasvit.retraining import load_trained, make_network

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "own_images.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in re.sub(r"\\\n *", "", block).splitlines()]
SLOW = re.compile(r"^dasvit (search|retrain) ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder where the searches and the retraining of the page have run."""
    folder = tmp_path_factory.mktemp("own")
    take(folder / "photos", {"temple": 24, "flower": 16})
    for line in filter(SLOW.match, COMMANDS):  # as a user runs them, without the checks of shapes, which take longer
        python(f"from dasvit.cli import main; main({line.split()[1:]!r})", folder)
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capsys):
    def call(*args):
        capsys.readouterr()
        code = dasvit(*args)
        return code, *capsys.readouterr()

    return call


def python(block, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_every_command():
    assert {line.split()[1] for line in COMMANDS} >= {
        "search",
        "retrain",
        "predict",
        "draw",
        "report",
        "latency",
        "export",
    }
    assert all(line.startswith("dasvit ") for line in COMMANDS)


@pytest.mark.usefixtures("_unchecked")  # the exporter traces with sizes that are no numbers
@pytest.mark.parametrize("line", [line for line in COMMANDS if not SLOW.match(line)])
def test_each_command_of_the_page_runs(line, inside, run):
    code, out, err = run(*line.split()[1:])
    assert code == 0, err
    assert out
    if "-o" in line.split():
        assert Path(line.split()[line.split().index("-o") + 1]).stat().st_size > 500


def test_the_network_has_learnt(inside):
    result = json.loads((inside / "trained" / "result.json").read_text())
    assert result["images"] == 8
    assert result["balanced"] > 0.8  # a temple and a flower differ


def test_settings_are_proposed_and_kept(inside):
    settings = json.loads((inside / "found" / "settings.json").read_text())["settings"]
    assert (settings["image_size"], settings["patch_size"]) == ([56, 72], 8)
    assert settings["attends"] is True
    assert Genotype.from_json((inside / "found" / "genotype.json").read_text()).has_attention


def test_the_light_network_costs_what_was_asked_for(inside, run):
    genotype = inside / "light" / "genotype.json"
    from dasvit import build

    network = build(str(genotype), dim=48, depth=4, image_size=(56, 72), patch_size=8, num_classes=2)
    assert complexity(network, (56, 72)).macs == pytest.approx(6e6, rel=0.1)


def test_predictions_are_those_of_the_test_images(inside, run, tmp_path):
    """Whoever holds the run directory alone gets, for the test images, the very answers that were recorded."""
    shutil.copytree("trained", tmp_path / "trained")
    _, settings, data = load_trained("trained")
    told = json.loads((inside / "trained" / "result.json").read_text())
    photos = [p for name in ("flower", "temple") for p in sorted((inside / "photos" / name).iterdir())]
    shutil.move("photos", "elsewhere")
    try:
        moved = [inside / "elsewhere" / p.relative_to(inside / "photos") for p in photos]
        code, out, _ = run("predict", tmp_path / "trained", *moved, "--json", "--top", 9)
        rows = [json.loads(line) for line in out.splitlines()]
    finally:
        shutil.move("elsewhere", "photos")
    assert code == 0
    assert [row["image"] for row in rows] == list(map(str, moved))
    assert all(sum(row["classes"].values()) == pytest.approx(1) for row in rows)
    classifier, seen = Classifier.load("trained"), {}
    for row, path in zip(rows, photos, strict=True):
        seen[path] = row["class"]
        assert classifier(path)[row["class"]] == pytest.approx(row["probability"])
    answers = [told["preparation"]["classes"][i] for i in told["predictions"]]
    images = [i for i, p in enumerate(photos) if any(torch.equal(decoded(p, settings), x) for x in data.test.images)]
    assert [seen[photos[i]] for i in images] == answers


def decoded(path, settings):
    from dasvit.data.images import FileImages

    return FileImages([path], settings.image_size, settings.data.fit)[0]


def test_tabs_are_for_scripts(inside, run):
    code, out, _ = run("predict", "trained", "photos/temple/000.jpg", "--top", 1)
    path, name, share = out.rstrip("\n").split("\t")
    assert (code, path, name) == (0, "photos/temple/000.jpg", "temple")
    assert 0 <= float(share) <= 1


def test_a_broken_photograph_stops_no_other(inside, run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(Path("photos/temple/000.jpg").read_bytes()[:900])
    places = ["photos/temple/000.jpg", tmp_path / "broken.jpg", "photos/flower/000.jpg"]
    code, out, err = run("predict", "trained", *places)
    assert code == 2
    assert len(out.splitlines()) == 2
    assert err.count("\n") == 1
    assert err.startswith(f"dasvit: 1 of 3 images were left out: cannot read image {tmp_path}/broken.jpg")
    rows = [json.loads(line) for line in run("predict", "trained", *places, "--json")[1].splitlines()]
    assert ["error" in row for row in rows] == [False, True, False]


@pytest.mark.usefixtures("_unchecked")
def test_onnx_says_what_predict_says(inside, run):
    serve, _ = blocks("python")
    if not (inside / "net.onnx").exists():  # where this test runs alone
        (export,) = (line for line in COMMANDS if line.startswith("dasvit export "))
        assert run(*export.split()[1:])[0] == 0
    name, share = python(serve, inside).split()
    row = json.loads(run("predict", "trained", "photos/temple/000.jpg", "--json")[1])
    assert name == row["class"]
    assert float(share) == pytest.approx(row["probability"], abs=0.01)  # they cut at fractions of a pixel, we at pixels


def test_the_library_does_the_same_in_ten_lines(inside, tmp_path):
    _, library = blocks("python")
    assert len(library.splitlines()) <= 10
    shutil.copytree("photos", tmp_path / "photos")
    out = python(library, tmp_path)
    assert "'temple': " in out.splitlines()[-1]
    accuracy = json.loads((inside / "trained" / "result.json").read_text())
    assert f"'top1': {accuracy['top1']}" in out  # the same settings and seeds as the commands


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]


@pytest.mark.parametrize("name", ["trained", "found"])
def test_a_report_needs_nothing_else(name, inside, run, tmp_path):
    assert run("report", name, "-o", tmp_path / "r.html")[0] == 0
    text, page = (tmp_path / "r.html").read_text(), Page()
    page.feed(text)
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "image_size" in text
    if name == "trained":  # counted as everywhere else
        _, settings, data = load_trained(name)
        network = make_network(settings, data.train, class_token_last=False)
        assert f"{complexity(network, settings.image_size).macs:,}" in text
    assert run("report", name, "-o", tmp_path / "again.html")[0] == 0
    assert (tmp_path / "again.html").read_text() == text  # and it is the same each time


def test_a_report_escapes_names(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    take("photos", {"<b>&'": 12, "b": 12}, size=(24, 24))
    small = ["--dim", 24, "--depth", 1, "--epochs", 2, "--warmup-epochs", 1]
    assert run("retrain", "--data", "folder:photos", *small, "--out", "r")[0] == 0
    assert run("report", "r", "-o", "r.html")[0] == 0
    assert "<b>" not in Path("r.html").read_text()


def test_temperature_is_what_makes_the_loss_least():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator)
    labels = torch.distributions.Categorical(logits=logits).sample()  # of these logits, the truth
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)
    assert calibration_error(logits.softmax(1), labels) < 0.05 < calibration_error((3 * logits).softmax(1), labels)


def test_nothing_to_calibrate_by():
    sure = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    assert 0.05 <= fit_temperature(sure, torch.tensor([0, 1])) < 0.5  # bounded, however sure it may be


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((120, 160), ((56, 72), 8)),
        ((300, 300), (64, 8)),
        ((32, 32), (32, 4)),
        ((8, 8), (8, 1)),
        ((200, 100), ((88, 48), 8)),
    ],
)
def test_proposed_sizes(size, expected, tmp_path):
    take(tmp_path, {"a": 5, "b": 5}, size=size, suffix="png")
    proposal = propose(f"folder:{tmp_path}")
    assert (proposal.search.image_size, proposal.search.patch_size) == expected
    assert proposal.search.image_size == proposal.retrain.image_size
    data = load_data(proposal.search.data, image_size=proposal.search.image_size)
    assert len(data.train) == 8


def test_a_size_that_is_settled_is_kept(tmp_path):
    take(tmp_path, {"a": 5, "b": 5}, size=(120, 160))
    assert (propose(f"folder:{tmp_path}", image_size=(60, 80)).search.patch_size) == 10
    proposal = propose(f"folder:{tmp_path}", patch_size=4)
    assert (proposal.search.image_size, proposal.search.patch_size) == ((28, 36), 4)


def test_what_is_odd_about_a_folder_is_told(tmp_path):
    take(tmp_path, {"many": 30, "few": 5}, size=(30, 30))
    (tmp_path / "few" / "a.heic").write_bytes(b"x")
    (tmp_path / "few" / "._000.jpg").write_bytes(b"of a Mac")
    told = "\n".join(propose(f"folder:{tmp_path}").reasons)
    assert "unbalanced: 4 (few) to 24 (many) images a class; judge by the balanced accuracy" in told
    assert "left out, as they are no images that can be read: 1 .heic" in told


def test_a_validation_part_of_its_own(tmp_path):
    for part, count in (("train", 8), ("val", 5), ("test", 3)):
        take(tmp_path / part, {"a": count, "b": count}, size=(30, 30))
    data = load_data(DataSettings(f"folder:{tmp_path}"), image_size=16)
    assert [len(images) for images in data] == [16, 6, 10]
    assert data.val.classes == data.train.classes


def animated(path):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def text_chunks(path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 10_000)
    Image.new("RGB", (20, 20)).save(path, pnginfo=info)


def photo(mode, size=(20, 20), **how):
    return lambda path: Image.new(mode, size).save(path, **how)


def noise(size):
    return lambda path: Image.effect_noise(size, 80).convert("RGB").save(path)


ODD = {  # what simply works
    "grey with alpha.png": photo("LA"),
    "alpha.png": photo("RGBA"),
    "palette.png": lambda path: Image.new("P", (20, 20)).save(path, transparency=0),
    "bytes of transparency.png": lambda path: Image.new("P", (20, 20)).save(path, transparency=bytes(range(256))),
    "print.jpg": photo("CMYK"),
    "bits.png": photo("1"),
    "deep.png": lambda path: Image.fromarray(np.full((20, 20), 40_000, dtype=np.uint16)).save(path),
    "animated.png": animated,
    "animated.webp": animated,
    "pages.tiff": animated,
    "one pixel.png": photo("RGB", (1, 1)),
    "tall.png": noise((5, 400)),
    "large.jpg": noise((2000, 1500)),
    "UPPER.JPG": noise((30, 30)),
    "comments.png": text_chunks,
    "progressive.jpg": lambda path: Image.new("RGB", (40, 30)).save(path, progressive=True),
    "wrong suffix.png": lambda path: Image.new("RGB", (20, 20)).save(path, "JPEG"),
    "naïve 寺院 храм 🌸.jpg": noise((30, 30)),
    "sub folder/deeper/a.jpg": noise((30, 30)),
    ".DS_Store": lambda path: path.write_bytes(b"x"),
    "._0.jpg": lambda path: path.write_bytes(b"of a Mac"),
    "notes.txt": lambda path: path.write_text("x"),
    "empty folder/x": lambda path: None,
}


def put(make, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


@pytest.mark.parametrize("name", ODD)
def test_odd_images_simply_work(name, tmp_path):
    take(tmp_path, {"a": 6, "b": 6}, size=(24, 24))
    put(ODD[name], tmp_path / "a" / name)
    proposal = propose(f"folder:{tmp_path}")
    data = load_data(proposal.search.data, image_size=proposal.search.image_size)
    used = len(data.train) + len(data.test)
    assert used == (12 if name in (".DS_Store", "._0.jpg", "notes.txt", "empty folder/x") else 13)


def truncated(path):
    noise((40, 40))(path)
    path.write_bytes(path.read_bytes()[:300])


def one_class(root):
    shutil.rmtree(root / "b")


def flat(root):
    for name in ("a", "b"):
        for path in (root / name).iterdir():
            path.rename(root / f"{name}{path.name}")
        (root / name).rmdir()


def classes(count, each):
    def make(root):
        content = (root / "a" / "000.jpg").read_bytes()
        for i in range(count):
            (root / f"{i:05}").mkdir()
            for j in range(each):
                (root / f"{i:05}" / f"{j}.jpg").write_bytes(content)

    return make


BAD = {  # what is answered in one line
    "empty": (lambda root: put(lambda p: p.write_bytes(b""), root / "a" / "x.jpg"), "cannot read image {}/a/x.jpg"),
    "text": (lambda root: put(lambda p: p.write_text("x"), root / "a" / "x.jpg"), "cannot read image {}/a/x.jpg"),
    "truncated": (lambda root: put(truncated, root / "a" / "x.jpg"), "cannot read image {}/a/x.jpg"),
    "thin": (lambda root: put(noise((1, 500)), root / "a" / "x.png"), "more than 100 times the other"),
    "floats": (lambda root: put(photo("F"), root / "a" / "x.tiff"), "its numbers are no colours (mode F)"),
    "pipe": (lambda root: os.mkfifo(root / "a" / "x.jpg"), "it is no regular file"),
    "dangling link": (lambda root: (root / "a" / "x.jpg").symlink_to("nowhere"), "cannot read image {}/a/x.jpg"),
    "folder called .jpg": (lambda root: put(noise((9, 9)), root / "x.jpg" / "y.jpg"), "'x.jpg' has one"),
    "one class": (one_class, "has 1 class folders: at least two are needed"),
    "no classes": (flat, "has 0 class folders: at least two are needed"),
    "an empty class": (lambda root: (root / "c").mkdir(), "has no image of class 'c'"),
    "a class of one": (lambda root: put(noise((9, 9)), root / "c" / "x.jpg"), "5 a class are needed; 'c' has one"),
    "too few": (classes(3, 2), "too few to split: 5 a class are needed"),
    "10,000 classes": (classes(10_000, 1), "10,012 images of 10,002 classes are too few to split: 5 a class"),
    "only train": (lambda root: (root / "a").rename(root / "train"), "has only one of train and test (or val)"),
    "no folder": (lambda root: shutil.rmtree(root), "data folder {} does not exist"),
    "a file": (lambda root: (shutil.rmtree(root), root.write_text("x")), "data folder {} does not exist"),
}


@pytest.mark.parametrize(
    ("command", "name"),  # that many folders are made once: they take long
    [("search", name) for name in BAD] + [("retrain", name) for name in BAD if name != "10,000 classes"],
)
def test_a_folder_that_cannot_be_used_is_one_line(name, command, tmp_path, run):
    root, (make, words) = tmp_path / "photos", BAD[name]
    take(root, {"a": 6, "b": 6}, size=(24, 24))
    make(root)
    code, out, err = run(command, "--data", f"folder:{root}", "--out", tmp_path / "run")
    lines = [line for line in err.splitlines() if not line.startswith(("dasvit: settings proposed", "  "))]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert words.format(root).replace("10,012", "10012").replace("10,002", "10002") in lines[0]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


WRONG = [
    (["predict", "trained"], "images"),
    (["predict", "trained", "none.jpg"], "none.jpg does not exist: name image files, or a folder with images"),
    (["predict", "trained", "EMPTY"], "has no image: name files, or a folder with images"),
    (["predict", "found", "photos"], "holds a search run, a retrain run is needed"),
    (["predict", "none", "photos"], "none is no run directory"),
    (["predict", "trained", "photos", "--top", "0"], "top 0 is below one"),
    (["draw", "trained", "--images", "none.jpg", "-o", "F.png"], "none.jpg does not exist"),
    (["draw", "photos", "-o", "F.png"], "photos is no run directory"),
    (["draw", "found/genotype.json", "--images", "photos", "-o", "F.png"], "has no weights"),
    (["report", "photos", "-o", "r.html"], "photos is no run directory"),
    (["report", "trained", "-o", "r.txt"], "let its name end in .html"),
    (["report", "trained", "-o", "none/r.html"], "folder none does not exist"),
    (
        ["search", "--data", "folder:photos", "--image-size", "64x48", "--out", "O"],
        "'64x48' is no size: write the side",
    ),
    (
        ["search", "--data", "folder:photos", "--image-size", "50,70", "--patch-size", "8", "--out", "O"],
        "does not divide",
    ),
    (["search", "--data", "folder:photos", "--fit", "pad", "--out", "O"], "--fit"),
    (["search", "--data", "folder:photos", "--target-macs", "2X", "--out", "O"], "'2X' is no amount: write e.g."),
    (
        ["search", "--data", "folder:photos", "--target-macs", "1K", "--out", "O"],
        "networks of this space, width and depth",
    ),
    (
        ["search", "--data", "folder:photos", "--target-latency", "1ms", "--out", "O"],
        "go together: dasvit latency writes",
    ),
    (
        ["search", "--data", "folder:photos", "--target-latency", "1ms", "--latency-table", "none", "--out", "O"],
        "latency table none cannot be read",
    ),
    (["latency", "--checks", "1", "-o", "t.json"], "checks 1 is outside 3 to 1000"),
    (["latency", "--dim", "25", "-o", "t.json"], "dim 25 is not divisible by 4 heads"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(a)[:70] for a, _ in WRONG])
def test_wrong_arguments_are_one_line(arguments, words, inside, run, tmp_path):
    code, out, err = run(*(str(tmp_path) if a == "EMPTY" else a for a in arguments))
    lines = [line for line in err.splitlines() if not line.startswith(("dasvit: settings proposed", "  "))]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert words in lines[0]
    assert not (inside / "O").exists()
