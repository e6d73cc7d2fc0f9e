import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasvit import Genotype, Operation, SearchSpace, genotypes

operations = st.one_of(
    st.sampled_from([Operation("none"), Operation("skip")]),
    st.integers(1, 1024).map(lambda heads: Operation("msa", heads)),
    st.floats(1e-6, 64.0).map(lambda ratio: Operation("mlp", ratio)),
)


@st.composite
def any_genotype(draw):
    inputs = draw(st.integers(1, 2))
    nodes = []
    for number in range(inputs, inputs + draw(st.integers(1, 4))):
        sources = draw(st.sets(st.integers(0, number - 1), min_size=1))
        nodes.append(tuple((source, draw(operations)) for source in sorted(sources)))
    return Genotype(tuple(nodes), inputs)


def test_default_space_has_7203_architectures_all_different():
    space = SearchSpace()
    assert len(space) == 7203 == len(set(space)) == (7 * 7) * (3 * 7 * 7)
    assert all(genotype in space for genotype in space)


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace(heads=(4,), mlp_ratios=(1,)),
        SearchSpace(nodes=1),
        SearchSpace(heads=(2,), mlp_ratios=(), nodes=3, inputs=1),
        SearchSpace(heads=(), mlp_ratios=(1,), keep=5),
    ],
)
def test_length_counts_the_distinct_members(space):
    assert len(set(space)) == len(space)
    assert all(genotype in space for genotype in space)


def test_edges_and_operations_of_the_paper():
    space = SearchSpace()
    assert space.edges == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert list(map(str, space.operations)) == ["none", "skip", "msa:4", "msa:8", "msa:12", "mlp:0.5", "mlp:1", "mlp:2"]


def test_published_encoders_are_members():
    assert all(genotype in SearchSpace() for genotype in genotypes().values())


def test_members_of_another_space_are_not_members():
    space = SearchSpace()
    assert next(iter(SearchSpace(heads=(3,)))) in SearchSpace(heads=(3,))
    assert all(g not in space for g in [SearchSpace(nodes=1)[0], SearchSpace(inputs=1)[0], SearchSpace(keep=1)[0]])
    assert sum(genotype in space for genotype in SearchSpace(mlp_ratios=(3,))) == (4 * 4) * (3 * 4 * 4)
    assert "genotype" not in space


def test_samples_are_uniform_members():
    space, rng = SearchSpace(heads=(4,), mlp_ratios=(), keep=1), random.Random(0)
    drawn = [space.sample(rng) for _ in range(2400)]
    counts = {genotype: drawn.count(genotype) for genotype in space}
    assert len(counts) == 24
    assert min(counts.values()) > 50
    assert max(counts.values()) < 150


@given(any_genotype())
def test_json_round_trip(genotype):
    assert Genotype.from_json(genotype.to_json()) == genotype


@given(operations)
def test_operation_round_trip(operation):
    assert Operation.parse(str(operation)) == operation


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_a_genotype_or_a_value_error(text):
    try:
        genotype = Genotype.from_json(text)
    except ValueError:
        return
    assert Genotype.from_json(genotype.to_json()) == genotype


def test_json_is_the_documented_format():
    text = genotypes()["dasvit-cifar10"].to_json()
    assert json.loads(text) == {
        "format": 1,
        "nodes": [[[0, "mlp:0.5"], [1, "mlp:0.5"]], [[1, "mlp:0.5"], [2, "msa:8"]]],
    }


def nodes(text):
    return f'{{"format": 1, "nodes": {text}}}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not of format 1"),
        ('{"format": 2, "nodes": []}', "not of format 1"),
        (nodes("[]"), "no node"),
        (nodes("[[]]"), "node 2 has no incoming edge"),
        (nodes("7"), '"nodes", a list'),
        (nodes('[[[0, "conv:3"]]]'), "unknown operation 'conv:3'"),
        (nodes('[[[0, "msa"]]]'), "unknown operation 'msa'"),
        (nodes('[[[0, "msa:0"]]]'), "unknown operation 'msa:0'"),
        (nodes('[[[0, "msa:-4"]]]'), "unknown operation 'msa:-4'"),
        (nodes('[[[0, "msa:4.5"]]]'), "unknown operation 'msa:4.5'"),
        (nodes('[[[0, "mlp:nan"]]]'), "unknown operation 'mlp:nan'"),
        (nodes('[[[0, "mlp:1e9"]]]'), "unknown operation 'mlp:1e9'"),
        (nodes('[[[0, "skip:1"]]]'), "unknown operation 'skip:1'"),
        (nodes('[[[2, "skip"]]]'), "node 2 reads source 2: sources are 0 to 1"),
        (nodes('[[[-1, "skip"]]]'), "node 2 reads source -1"),
        (nodes('[[[true, "skip"]]]'), "edge [True, 'skip']"),
        (nodes('[[[0, "skip"], [0, "mlp:1"]]]'), "each once, in ascending order"),
        (nodes('[[[1, "skip"], [0, "mlp:1"]]]'), "each once, in ascending order"),
        (nodes("[[[0, 4]]]"), "edge [0, 4]"),
        (nodes('[[[0, "skip", 1]]]'), "is not [source"),
        ('{"format": 1, "inputs": 3, "nodes": [[[0, "skip"]]]}', "inputs 3"),
        ('{"format": 1, "nodes": [[[0, "skip"]]], "x": 1}', "unknown fields 'x'"),
    ],
)
def test_what_is_wrong_is_named(text, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        Genotype.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nodes": 0}, "nodes 0"),
        ({"inputs": 3}, "inputs 3"),
        ({"keep": 0}, "keep 0"),
        ({"heads": (4, 4)}, "lists an operation twice"),
        ({"heads": (0,)}, "unknown operation msa:0"),
        ({"mlp_ratios": (-1.0,)}, "unknown operation mlp:-1"),
    ],
)
def test_a_space_that_cannot_be_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SearchSpace(**settings)


def test_index_out_of_range():
    for number in (7203, -1):
        with pytest.raises(IndexError, match="7203"):
            SearchSpace()[number]
        with pytest.raises(IndexError, match="7203"):
            SearchSpace().canonical(number)


def test_functions_are_the_first_architectures_that_compute_something_new():
    space = SearchSpace(heads=(4,), mlp_ratios=(1,))
    formulas = [genotype.formula for genotype in space]
    firsts = [number for number, formula in enumerate(formulas) if formula not in formulas[:number]]
    assert list(space.functions()) == firsts
    assert len(firsts) == 3**2 * 3 * 3**2 - 3**4 + 6**2
    for number, formula in enumerate(formulas):
        first = space.canonical(number)
        assert formulas[first] == formula
        assert space.canonical(first) == first <= number


def test_what_has_attention():
    space = SearchSpace()
    assert sum(not genotype.has_attention for genotype in space) == 4**4 * 3
    assert sum(space[number].has_attention for number in space.functions()) == 4974


def test_functions_are_drawn_once_and_not_by_how_many_architectures_they_are():
    space = SearchSpace(heads=(4,), mlp_ratios=())
    assert len(space.functions()) == 2**2 * 3 * 2**2 - 2**4 + 3**2
    drawn = list(space.shuffled(random.Random(0)))
    assert len({genotype.formula for genotype in drawn}) == len(drawn) == len(space.functions())
    assert drawn == list(space.shuffled(random.Random(0))) != list(space.shuffled(random.Random(1)))
    firsts = [next(space.shuffled(random.Random(seed))) for seed in range(1000)]
    counts = [firsts.count(space[number]) for number in space.functions()]
    assert sum(counts) == 1000
    assert max(counts) < 50  # 24 are expected; of the 48 architectures, 4 are one function, which would have 83


def test_a_space_too_large_to_be_listed(monkeypatch):
    with pytest.raises(ValueError, match="space of 2,117,682 architectures: its functions are listed up to 100,000"):
        SearchSpace(nodes=3).functions()
    with pytest.raises(ValueError, match="are listed up to 100,000"):
        SearchSpace(nodes=16).canonical(0)
    monkeypatch.setattr("dasvit.space.LISTED", 40)
    space = SearchSpace(heads=(4,), mlp_ratios=())
    drawn = list(space.shuffled(random.Random(0)))
    assert 20 < len({genotype.formula for genotype in drawn}) == len(drawn) < 40
    assert all(genotype in space for genotype in drawn)
