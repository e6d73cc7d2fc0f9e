"""Files from elsewhere: a genotype, settings, a data folder. They are read or refused in one line, nothing else."""

import copy
import json
import math
from operator import mul

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import fill
from test_space import any_genotype

from dasvit import DataSettings, Genotype, RetrainSettings, SearchSettings, cli, load_data
from dasvit.export import export
from dasvit.loop import Hardware
from dasvit.retrain import retrain
from dasvit.runs import as_plain, from_plain
from dasvit.search import search
from dasvit.training_free import TFSearchSettings

SETTINGS = (SearchSettings, RetrainSettings, TFSearchSettings)

many = settings(max_examples=300, deadline=2000)  # milliseconds; what takes longer hangs

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


@pytest.mark.parametrize("cls", SETTINGS)
def test_flags_are_read_or_refused(cls):
    flags = st.sampled_from(
        ["--seed", "--stages", "--space", "--data", "--mlp-ratios", "--image-size", "--lr", "--x", "-"]
    )
    words = flags | leaves.map(str) | st.text(max_size=8)

    @settings(max_examples=50, deadline=2000)
    @given(st.lists(words, max_size=6).filter(lambda given: not {"-h", "--help"} & set(given)))
    def check(arguments):
        read_or_refused(lambda given: cli._parse(cls, "test", given), arguments)

    check()


def test_what_steers_a_terminal_is_not_printed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["search", "--data", "folder:\x1b[2J\ud800" + "x" * 10_000, "--out", "out"])
    message = capsys.readouterr().err
    assert r"folder \x1b[2J\ud800xxx" in message
    assert len(message) < 1100


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
