"""Formulas are held against what they stand for: the sum that an encoder computes, whatever its weights are called."""

import itertools
import json
import math
import random
from collections import Counter
from hashlib import blake2b

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_space import any_genotype

from dasvit import Genotype, SearchSpace, build, genotypes
from dasvit.encoder import make_cell

SPACE = SearchSpace()
SMALL = {"depth": 2, "dim": 24, "image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 10}


def make(nodes, inputs=2):
    return Genotype.from_json(json.dumps({"format": 1, "inputs": inputs, "nodes": nodes}))


def calls(genotype):
    """The edges that have weights, by operation."""
    found = {}
    for edge, operation in genotype.edges:
        if operation.kind not in ("none", "skip"):
            found.setdefault(str(operation), []).append(edge)
    return found


def oracle(label, which, argument):
    """A function drawn at random: of equal operations each ``which`` is another one."""
    return int.from_bytes(blake2b(f"{label} {which} {argument}".encode(), digest_size=8).digest())


def outcome(genotype, which):
    """The encoder's value at fixed inputs if each edge has a function of its own in the place of its operation."""
    values = [1 << 70, 1 << 80][2 - genotype.inputs :]
    for target, node in enumerate(genotype.nodes, start=genotype.inputs):
        value = 0
        for source, operation in node:
            if operation.kind == "skip":
                value += values[source]
            elif operation.kind != "none":
                value += oracle(str(operation), which[source, target], values[source])
        values.append(value)
    return sum(values[genotype.inputs :])


def renamings(genotype):
    """How many ways there are to hand functions to the edges."""
    return math.prod(math.factorial(len(edges)) for edges in calls(genotype).values())


def invariant(genotype):
    """The least outcome over all ways to hand functions to the edges.

    It is equal for two encoders that differ by the names of their weights and, functions being random, for no others.
    """
    edges = calls(genotype)
    orders = itertools.product(*(itertools.permutations(group) for group in edges.values()))
    named = ({edge: i for group in order for i, edge in enumerate(group)} for order in orders)
    return tuple(sorted((k, len(v)) for k, v in edges.items())), min(outcome(genotype, which) for which in named)


def test_the_formula_of_the_published_encoder():
    formula = genotypes()["dasvit-cifar10"].formula
    assert str(formula) == (
        "y1 = mlp:0.5(x0), y2 = mlp:0.5(x1), y3 = mlp:0.5(x1), y4 = msa:8(y1 + y3), E = y1 + y2 + y3 + y4"
    )
    assert formula.edges == ((0, 2), (1, 3), (1, 2), (2, 3))


@pytest.mark.parametrize(
    ("nodes", "inputs", "text"),
    [
        ([[[0, "none"]]], 2, "E = 0"),
        ([[[0, "skip"], [1, "skip"]], [[2, "skip"]]], 2, "E = 2 x0 + 2 x1"),
        ([[[0, "skip"]], [[0, "none"], [1, "skip"]]], 1, "E = 2 x1"),
        ([[[0, "mlp:1"]], [[0, "skip"], [2, "skip"]]], 2, "y1 = mlp:1(x0), E = x0 + 2 y1"),
        ([[[0, "none"]], [[2, "msa:4"]]], 2, "y1 = msa:4(0), E = y1"),
        ([[[0, "skip"], [1, "mlp:1"]], [[2, "skip"]], [[3, "msa:4"]]], 2,
         "y1 = mlp:1(x1), y2 = msa:4(x0 + y1), E = 2 x0 + 2 y1 + y2"),
    ],
)  # fmt: skip
def test_formulas_by_hand(nodes, inputs, text):
    assert str(make(nodes, inputs).formula) == text


def test_one_operation_used_twice_is_not_two_operations():
    twice = make([[[0, "mlp:1"]], [[2, "msa:4"]], [[2, "msa:8"]]])
    two = make([[[0, "mlp:1"]], [[0, "mlp:1"]], [[2, "msa:4"]], [[3, "msa:8"]]])
    assert str(twice.formula) == "y1 = mlp:1(x0), y2 = msa:4(y1), y3 = msa:8(y1), E = y1 + y2 + y3"
    assert str(two.formula) == ("y1 = mlp:1(x0), y2 = mlp:1(x0), y3 = msa:4(y1), y4 = msa:8(y2), E = y1 + y2 + y3 + y4")


def test_inputs_are_named_by_how_far_they_look_back():
    assert make([[[0, "mlp:1"]]], inputs=1).formula == make([[[1, "mlp:1"]]], inputs=2).formula
    assert make([[[0, "mlp:1"]]], inputs=1).formula != make([[[0, "mlp:1"]]], inputs=2).formula


def graph(*edges):
    """An operation for each corner of a graph, and another on the sum of each edge's two: as symmetric as the graph."""
    corners = [[[0, "mlp:1"]]] * max(map(max, edges))
    sums = [[[a, "skip"], [b, "skip"]] for a, b in edges]
    return make([*corners, *sums, [[len(corners) + 1 + number, "mlp:2"] for number in range(len(sums))]], inputs=1)


def test_symmetric_encoders_that_no_refinement_tells_apart():
    hexagon = graph((1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (1, 6))
    triangles = graph((1, 2), (2, 3), (1, 3), (4, 5), (5, 6), (4, 6))
    assert hexagon.formula != triangles.formula
    assert hexagon.formula == graph((1, 4), (4, 6), (2, 6), (2, 5), (3, 5), (1, 3)).formula


def test_corners_that_look_alike_and_are_not():
    triangle_and_square = graph((1, 2), (2, 3), (1, 3), (4, 5), (5, 6), (6, 7), (4, 7))
    square_and_triangle = graph((1, 2), (2, 3), (3, 4), (1, 4), (5, 6), (6, 7), (5, 7))
    assert triangle_and_square.formula == square_and_triangle.formula
    assert triangle_and_square.formula != graph((1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (1, 7)).formula


def test_many_equal_parts():
    chains = [edge for i in range(8) for edge in ([[0, "mlp:1"]], [[2 * i + 1, "msa:1"]])]
    for parts in ([[[0, "mlp:1"]]] * 16, chains):  # 16! and 8! orders, of which few are tried
        assert len(make(parts, inputs=1).formula.edges) == 16


@st.composite
def reordered(draw, genotype):
    """The same encoder, its nodes in another order that puts each behind those it reads."""
    left, places = list(range(genotype.inputs, genotype.inputs + len(genotype.nodes))), {}
    while left:
        free = [
            n for n in left if all(s < genotype.inputs or s in places for s, _ in genotype.nodes[n - genotype.inputs])
        ]
        places[chosen := draw(st.sampled_from(free))] = genotype.inputs + len(places)
        left.remove(chosen)
    nodes = (genotype.nodes[n - genotype.inputs] for n in places)
    moved = (sorted(((places.get(s, s), o) for s, o in node), key=lambda edge: edge[0]) for node in nodes)
    return Genotype(tuple(map(tuple, moved)), genotype.inputs)


@given(st.data(), any_genotype())
def test_the_order_of_the_nodes_does_not_matter(data, genotype):
    other = data.draw(reordered(genotype))
    assert other.formula == genotype.formula
    assert outcome(genotype, named(genotype)) == outcome(other, named(other))


def named(genotype):
    """Hand functions to the edges in the order in which the formula names them."""
    operations, count = dict(genotype.edges), Counter()
    which = {}
    for edge in genotype.formula.edges:
        which[edge] = count[operations[edge]]
        count[operations[edge]] += 1
    return which


spaces = st.builds(
    SearchSpace,
    heads=st.sampled_from([(), (4,)]),
    mlp_ratios=st.sampled_from([(1,), (1, 2)]),
    nodes=st.integers(1, 4),
    inputs=st.integers(1, 2),
    keep=st.integers(1, 3),
)


@settings(max_examples=25, deadline=None)
@given(spaces, st.integers(0, 2**32))
def test_formulas_are_equal_where_encoders_are_up_to_names(space, seed):
    rng = random.Random(seed)
    drawn = [space.sample(rng) for _ in range(100)]
    drawn = list({genotype for genotype in drawn if renamings(genotype) <= 24})
    assume(drawn)
    formulas, invariants = [g.formula for g in drawn], list(map(invariant, drawn))
    assert len(set(formulas)) == len(set(invariants)) == len(set(zip(formulas, invariants, strict=True)))


def test_the_default_space_counted_without_formulas():
    """7,203 architectures are 5,586 functions, 4,974 of them with attention."""
    first = {}
    canonical = [first.setdefault(invariant(genotype), number) for number, genotype in enumerate(SPACE)]
    assert len(first) == 5586 == 7**2 * 3 * 7**2 - 7**4 + math.comb(8, 2) ** 2
    assert sum(SPACE[number].has_attention for number in first.values()) == 4974
    assert tuple(first.values()) == SPACE.functions()
    assert canonical == list(map(SPACE.canonical, range(len(SPACE))))


def with_weights(other, model, pairs):
    """Give each operation of another encoder or network the weights of its partner."""
    state = {name: value for name, value in model.state_dict().items() if "edges." not in name}
    for (a, b), (c, d) in pairs:
        state |= {k.replace(f"{a}-{b}", f"{c}-{d}"): v for k, v in model.state_dict().items() if f"edges.{a}-{b}." in k}
    other.load_state_dict(state)
    return other


def test_architectures_of_one_function_give_equal_logits_once_weights_are_renamed():
    rng, images = random.Random(0), torch.randn(4, 1, 8, 8, dtype=torch.float64)
    names = [number for number in range(len(SPACE)) if SPACE.canonical(number) != number]
    assert len(names) == 7203 - 5586
    for number in rng.sample(names, 10):
        one, other = SPACE[number], SPACE[SPACE.canonical(number)]
        model = build(one, **SMALL).double()
        renamed = with_weights(
            build(other, **SMALL).double(), model, zip(one.formula.edges, other.formula.edges, strict=True)
        )
        torch.testing.assert_close(renamed(images), model(images), rtol=1e-12, atol=1e-12)


def test_of_different_functions_no_renaming_gives_equal_outputs():
    x0, x1 = torch.randn(2, 2, 5, 24, dtype=torch.float64)
    alike = {}
    for number in SPACE.functions():
        labels = {label: len(edges) for label, edges in calls(SPACE[number]).items()}
        alike.setdefault(tuple(sorted(labels.items())), []).append(SPACE[number])
    rng, tried = random.Random(0), 0
    for group in rng.sample([group for group in alike.values() if len(group) > 1], 15):
        one, other = rng.sample(group, 2)
        cell = make_cell(one, 24).double()
        orders = itertools.product(*(itertools.permutations(edges) for edges in calls(other).values()))
        own = [edge for label in calls(other) for edge in calls(one)[label]]
        for order in orders:
            pairs = zip(own, itertools.chain(*order), strict=True)
            renamed = with_weights(make_cell(other, 24).double(), cell, pairs)
            assert (renamed(x0, x1) - cell(x0, x1)).abs().max() > 1e-3
            tried += 1
    assert tried > 15
