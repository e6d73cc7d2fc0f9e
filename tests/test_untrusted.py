"""Files from elsewhere: a genotype, settings, a data folder. They are read or refused in one line, nothing else."""

import copy
import hashlib
import json
import math
import random
import re
import shutil
from dataclasses import dataclass
from functools import partial
from operator import mul
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save
from test_data import fill
from test_space import any_genotype

from dasvit import DataSettings, Genotype, RetrainSettings, SearchSettings, cli, load_data
from dasvit.engine.checkpoint import VERSION
from dasvit.engine.flags import changed, parse
from dasvit.engine.hardware import Hardware
from dasvit.engine.runs import Run, as_plain, from_plain
from dasvit.exporting import export
from dasvit.retraining import LATER, check_rows, retrain
from dasvit.searching import WATCHED, search
from dasvit.searching import check_rows as check_searched
from dasvit.training_free import TFSearchSettings
from dasvit.training_free.search import check_row as check_scored
from dasvit.training_free.search import draw

SETTINGS = (SearchSettings, RetrainSettings, TFSearchSettings)

many = settings(max_examples=150, deadline=None)  # how long an input takes depends on what else the machine does

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.integers(),
    st.sampled_from([-1, 2**31, -(2**63), 10**400, -0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf]),
    st.floats(),  # with NaN and the infinities
    st.text(st.characters(), max_size=8),  # with surrogates and control characters
    st.sampled_from(["msa:8", "mlp:0.5", "mlp:nan", "mlp:1e999", "none", "skip", "digits", "tiny"]),
    st.sampled_from(["\0", "folder:/", "../../x"]),
    st.sampled_from([("x", 100_000), ("9", 4000), ("msa:" + "9" * 100, 50)]).map(lambda repeated: mul(*repeated)),
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def places(node):
    """Yield every container of a tree of JSON with each of its keys."""
    for key in list(node) if isinstance(node, dict) else range(len(node) if isinstance(node, list) else 0):
        yield node, key
        yield from places(node[key])


@st.composite
def damaged(draw, documents):
    """A valid document with one to three places replaced, removed, doubled or wrapped."""
    tree = copy.deepcopy(draw(documents))
    for _ in range(draw(st.integers(1, 3))):
        if not (found := list(places(tree))):
            break
        holder, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "wrap"])):
            case "replace":
                holder[key] = draw(leaves | trees)
            case "remove":
                del holder[key]
            case "double":
                other = draw(st.text(max_size=5)) if isinstance(holder, dict) else key
                holder.update({other: holder[key]}) if isinstance(holder, dict) else holder.insert(other, holder[key])
            case "wrap":
                holder[key] = [holder[key]] * draw(st.sampled_from([1, 2, 17, 2000]))
    return tree


genotype_documents = any_genotype().map(lambda genotype: json.loads(genotype.to_json()))


@st.composite
def damaged_text(draw, trees):
    """Text of a damaged document, damaged itself in half of the cases."""
    text = json.dumps(draw(trees), ensure_ascii=draw(st.booleans()))
    at = draw(st.integers(0, len(text)))
    extra = st.sampled_from([("[", 10**5), ('{"a":', 10**5), ("9", 5000), ('"nodes": 1, ', 1), ("NaN", 1), ("\n", 1)])
    return draw(st.sampled_from([text, text, text[:at], text[:at] + mul(*draw(extra)) + text[at:]]))


def read_or_refused(read, data):
    """Return what ``read`` makes of the data, or ``None`` where it refuses it as it should."""
    try:
        return read(data)
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
    return None


@many
@given(damaged_text(damaged(genotype_documents)) | damaged_text(trees))
def test_a_genotype_is_read_or_refused(text):
    if (genotype := read_or_refused(Genotype.from_json, text)) is not None:
        assert Genotype.from_json(genotype.to_json()) == genotype


def with_nodes(text):
    return f'{{"format": 1, "nodes": {text}}}'


@pytest.mark.parametrize(
    "text",
    [
        with_nodes(f'[[[0, "{"x" * 10**6}"]]]'),
        with_nodes(f'[[[{"9" * 4000}, "skip"]]]'),
        with_nodes(str([[[0, "skip"]] * 10_000]).replace("'", '"')),
        with_nodes(str([[[0, "skip"]]] * 10_000).replace("'", '"')),
        f'{{"format": 1, "{"x" * 10**6}": 1}}',
    ],
    ids=["operation", "source", "edges", "nodes", "field"],
)
def test_a_huge_genotype_gets_a_short_answer(text):
    with pytest.raises(ValueError, match=r"genotype |unknown operation ") as caught:
        Genotype.from_json(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("cls", SETTINGS)
def test_settings_are_read_or_refused(cls):
    whole = as_plain(cls())

    @many
    @given(damaged(st.just(whole)) | trees)
    def check(tree):
        if (found := read_or_refused(lambda data: from_plain(cls, data), tree)) is not None:
            assert from_plain(cls, as_plain(found)) == found

    check()


@dataclass(frozen=True)
class Nothing:
    """No options."""


@pytest.mark.parametrize("cls", SETTINGS)
def test_flags_are_read_or_refused(cls):
    flags = st.sampled_from(
        ["--seed", "--stages", "--space", "--data", "--mlp-ratios", "--image-size", "--lr", "--x", "-"]
    )
    words = flags | leaves.map(str) | st.text(max_size=8)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(words, max_size=6).filter(lambda given: not {"-h", "--help"} & set(given)))
    def check(arguments):
        read_or_refused(lambda given: changed(cls(), parse("test", given, Nothing, cls)[1]), arguments)

    check()


def test_what_steers_a_terminal_is_not_printed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["search", "--data", "folder:\x1b[2J\ud800" + "x" * 10_000, "--out", "out"])
    message = capsys.readouterr().err
    assert r"folder \x1b[2J\ud800xxx" in message
    assert len(message) < 1100


FIXTURES = Path(__file__).parent / "fixtures" / f"checkpoint-{VERSION}"

BENDS = [
    lambda x: x.flatten()[:-1],
    lambda x: x[None],
    lambda x: x.mT if x.ndim > 1 else x.repeat(2),
    lambda x: x.new_zeros((0,)),
    torch.zeros_like,
    lambda x: x.double() * math.nan,
    lambda x: -1e30 * (1 + x.double()),
    *(partial(torch.Tensor.to, dtype=d) for d in (torch.float64, torch.float16, torch.complex64, torch.bool)),
    *(partial(torch.Tensor.to, dtype=d) for d in (torch.uint8, torch.int64, torch.float8_e4m3fn)),
]

ODD = [None, True, -1, 0, 7, 10**400, 0.5, math.nan, math.inf, "", "0", "skip", "\ud800", [], [[]], {}, {"dict": []}]
ODD += [{"dict": [[{"tuple": []}, 1]]}, {"tensor": "0"}, {"tensor": "999"}, {"array": "0"}, {"tuple": [1]}, {"list": 3}]


def bent(tree, rng):
    """Replace or remove a random part of a tree, near the root as likely as far from it."""
    holder = key = None
    node = tree
    while isinstance(node, dict | list) and node and (holder is None or rng.random() < 0.85):
        holder, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
    holder[key] = copy.deepcopy(rng.choice([*ODD, [node, node], {"list": [node]}]))
    if rng.random() < 0.2:
        del holder[key]
    return tree


def forge(run, change, tensors=MappingProxyType({})):
    """Change the checkpoint of a run, and give it the digest that it then has; return the old file and the new one."""
    (path,) = (run / "checkpoints").glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()["state"])
    parts = load_file(path)
    for key in tensors.keys() & parts.keys():
        parts[key] = tensors[key](parts[key]).contiguous()
    content = save(parts, metadata={"version": VERSION, "state": json.dumps(change(tree))})
    new = path.with_name(f"{int(path.name[:6]) + 1:06d}-{hashlib.sha256(content).hexdigest()}.safetensors")
    new.write_bytes(content)
    return path, new


def resumed(command, folder, change, tensors=MappingProxyType({})):
    """Resume a stopped run with a forged checkpoint: the exit code, and whether that line was on stderr."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(FIXTURES / command.replace("evaluate", "retrain"), run)
    whole, path = forge(run, change, tensors)
    whole.unlink()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as caught:
        cli.main([command, *([str(run)] if command == "evaluate" else ["--out", str(run), "--resume"])])
    if caught.value.code == 2:
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == before
    return caught.value.code, path


@pytest.mark.usefixtures("_unchecked")  # without the tests' own checks of types
@pytest.mark.parametrize("command", ["search", "retrain", "evaluate"])
def test_a_forged_checkpoint_is_loaded_or_refused(command, tmp_path, capsys):
    rng, codes = random.Random(0), []
    for _ in range(80):
        tensors = {str(rng.randrange(60)): rng.choice(BENDS) for _ in range(rng.choice([0, 0, 1, 2]))}
        capsys.readouterr()
        code, path = resumed(command, tmp_path, copy.copy if tensors else partial(bent, rng=rng), tensors)
        *_, line = capsys.readouterr().err.splitlines() or [""]
        if code == 2:
            assert line.startswith(f"dasvit: checkpoint {path} cannot be used: ")
        elif code:  # weights that are not finite
            assert code == 1
            assert "is not finite after step" in line or " is nan at step " in line
        codes.append(code)
    assert codes.count(2) > 40
    assert codes.count(0) > 1


def part(tree, *keys):
    """Return a part of a tree as it is encoded in a checkpoint, to be changed: a pair of key and value."""
    pair = [None, tree]
    for key in keys:
        pair = next(entry for entry in pair[1]["dict"] if entry[0] == key)
    return pair


def set_(value, *keys):
    def change(tree):
        part(tree, *keys)[1] = value
        return tree

    return change


@pytest.mark.parametrize("command", ["search", "retrain"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_(-1, "epoch"), "position.epoch"),
        (set_(10**400, "step"), "position.step"),
        (set_(True, "step"), "position.step"),
        (set_(0, "rows"), "rows is not"),
        (set_("x", "seconds"), "position.seconds"),
        (set_(math.nan, "seconds"), "position.seconds"),
        (set_({"dict": [[{"tuple": []}, {"tensor": "0"}]]}, "totals"), "position.totals"),
        (set_({"dict": []}, "job"), "holds something else (KeyError"),
        (set_([], "random"), "holds something else (Type"),
        (set_({"dict": [["last_epoch", 10**6]]}, "job", "schedule"), "job.schedule.last_epoch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_forged_is_named(command, change, words, tmp_path, capsys):
    code, path = resumed(command, tmp_path, change)
    message = capsys.readouterr().err
    assert code == 2
    assert message.startswith(f"dasvit: checkpoint {path} cannot be used: ")
    assert words in message


@pytest.mark.parametrize("command", ["search", "retrain"])
def test_the_checkpoint_before_takes_over_from_a_forged_one(command, tmp_path, capsys):
    shutil.copytree(FIXTURES / command, tmp_path / "run")
    _, path = forge(tmp_path / "run", set_(-1, "epoch"))
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--out", str(tmp_path / "run"), "--resume"])
    assert caught.value.code == 0
    assert capsys.readouterr().err.startswith(f"dasvit: checkpoint {path} cannot be used: it is not of this run: ")


def test_a_generator_does_not_read_beyond_its_state(tmp_path, capsys):
    def change(tree):
        part(tree, "random", "numpy")[1]["tuple"][2] = 10**6
        return tree

    assert resumed("retrain", tmp_path, change)[0] == 2
    assert "random.numpy is not what the run would have saved there" in capsys.readouterr().err


SIZES = "--train-images 40 --batch-size 10 --patch-size 4 --dim 4 --device cpu"
TINY = {
    "search": f"search {SIZES} --heads 1 --mlp-ratios 0.5 --nodes 1 --keep 1 --stages 1 4 2 1 3 1",
    "retrain": f"retrain {SIZES} --test-images 20 --depth 1 --epochs 3 --warmup-epochs 1",
    "tf-search": "tf-search --space autoformer-xs --image-size 8 --patch-size 4 --samples 3 --indicators dss params",
}
NETWORKS = TFSearchSettings("autoformer-xs", 3, ("dss", "params"), image_size=8, patch_size=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished run of each command."""
    folder = tmp_path_factory.mktemp("finished")
    genotype = folder / "genotype.json"
    genotype.write_text(with_nodes('[[[1, "msa:1"]]]'))
    for command, arguments in TINY.items():
        more = ["--genotype", str(genotype)] if command == "retrain" else []
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments.split(), *more, "--out", str(folder / command)])
        assert caught.value.code == 0
    return folder


FORGED = {
    "another place": lambda rows: rows[::-1],
    "twice": lambda rows: [rows[1], *rows[1:]],
    "empty": lambda rows: [*rows[:-1], {}],
    "not a number": lambda rows: [*rows[:-1], json.loads(json.dumps(rows[-1]), parse_float=lambda _: math.nan)],
}


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("command", TINY)
def test_a_finished_run_does_not_believe_forged_rows(command, forged, finished, tmp_path, capsys):
    run = Run(tmp_path / "run")
    shutil.copytree(finished / command, run.path)
    run.rewrite(FORGED[forged](run.history()))
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--out", str(run.path), "--resume"])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(rf"dasvit: line \d of {run.metrics} cannot be used: it is not of this run: .*\n", printed)
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


def forgeries(row):
    """Yield a row with each of its parts removed, or replaced by what it cannot be."""
    row = copy.deepcopy(row)
    for holder, key in list(places(row)):
        parts = ("msa", "mlp", "qkv", "projection")
        if key in parts and "total" in holder:
            continue  # nobody computes with these
        kept = holder[key]
        for odd in ({float: math.nan, int: "0", dict: -7, str: None}[type(kept)], [kept], -math.inf):
            holder[key] = odd
            yield row
        watched = holder in (row.get("margins"), row.get("kinds"))
        if key not in LATER | WATCHED and not watched:  # which a row of an earlier version lacks
            del holder[key]
            yield row
        holder[key] = kept


@pytest.mark.parametrize("command", TINY)
def test_every_part_of_a_row_is_looked_at(command, finished):
    run = Run(finished / command)
    check = {
        "search": check_searched(from_plain(SearchSettings, Run(finished / "search").settings("search"))),
        "retrain": check_rows(RetrainSettings()),
        "tf-search": partial(check_scored, NETWORKS, draw(NETWORKS)),
    }[command]
    whole, *_ = run.history()
    run.check_rows([whole], check)
    for row in forgeries(whole):
        with pytest.raises(ValueError, match=rf"^line 1 of {run.metrics} cannot be used: it ") as caught:
            run.check_rows([row], check)
        assert "\n" not in str(caught.value)


def test_more_rows_than_networks_are_refused(finished):
    run = Run(finished / "tf-search")
    with pytest.raises(ValueError, match=r"line 3 of .* cannot be used: it holds something else"):
        run.check_rows(run.history(), partial(check_scored, NETWORKS, draw(NETWORKS)[:2]))


ODD_NAMES = ["a..", "a b", "a;rm -rf $HOME", "%s{0}", "\\..\\up", "CON", "--out", "é\u202e\n", "<script>"]


def test_odd_class_names_stay_inside_the_run_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "images", ODD_NAMES, 6)
    before = {path for path in tmp_path.rglob("*")}
    data = load_data(DataSettings("folder:images"), image_size=8)
    assert set(data.train.classes) == set(ODD_NAMES)
    sizes = {"image_size": 8, "patch_size": 4, "dim": 24, "batch_size": 16, "hardware": Hardware("cpu")}
    search(SearchSettings(stages=((1, 8, 1),), **sizes), data, "run/search")
    retrain(
        RetrainSettings(depth=1, epochs=1, warmup_epochs=0, data=DataSettings("folder:images"), **sizes), data, "run/r"
    )
    export("run/r", "run/net", "timm")
    assert json.loads((tmp_path / "run/net/config.json").read_text())["label_names"] == sorted(ODD_NAMES)
    made = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert made == {"run"}
