import random
from dataclasses import replace

import pytest

from dasvit import Genotype, RetrainSettings, SearchSpace, build
from dasvit.encoder import layer_parameters
from dasvit.peers import TOLERANCE, count_parameters, peers, random_peers
from dasvit.retraining import make_network

SETTINGS = RetrainSettings(dim=24, depth=2)
FOUND = Genotype.from_json('{"format": 1, "nodes": [[[0, "msa:12"], [1, "mlp:0.5"]], [[0, "mlp:1"], [1, "mlp:2"]]]}')


def test_peers_differ_in_the_architecture_alone(few_digits):  # ledger A40
    got = peers(FOUND, SETTINGS, few_digits.train, count=3)
    assert list(got) == ["found", "published", "random-0", "random-1", "random-2", "vit"]
    for settings in got.values():
        assert replace(settings, genotype=SETTINGS.genotype, depth=SETTINGS.depth) == SETTINGS
    sizes = {name: count_parameters(settings, few_digits.train) for name, settings in got.items()}
    for number in range(3):
        assert abs(sizes[f"random-{number}"] - sizes["found"]) <= TOLERANCE * sizes["found"]
    for depth in range(1, 4):
        plain = replace(got["vit"], depth=depth)
        assert abs(sizes["vit"] - sizes["found"]) <= abs(count_parameters(plain, few_digits.train) - sizes["found"])


def test_random_peers_are_drawn_by_a_seed_of_their_own(few_digits):
    drawn = random_peers(FOUND, SETTINGS, few_digits.train)
    assert len(drawn) == 10
    assert random_peers(FOUND, replace(SETTINGS, seed=1), few_digits.train) == drawn
    assert random_peers(FOUND, SETTINGS, few_digits.train, count=4) == drawn[:4]
    assert random_peers(FOUND, SETTINGS, few_digits.train, seed=1) != drawn
    got = peers(FOUND, SETTINGS, few_digits.train, seed=1)
    assert [got[f"random-{i}"].genotype for i in range(10)] == [
        g.to_json() for g in random_peers(FOUND, SETTINGS, few_digits.train, seed=1)
    ]


def size(genotype, dim):
    """A layer's parameters, by the formulas of chapter 2."""
    sizes = {"skip": lambda _: 0, "msa": lambda _: 4 * dim**2 + 6 * dim}
    sizes["mlp"] = lambda ratio: int(2 * ratio * dim**2 + (3 + ratio) * dim)
    return sum(sizes[operation.kind](operation.size) for _, operation in genotype.edges)


def test_random_peers_are_different_functions_with_attention_and_none_is_the_found_one(few_digits):  # ledger A40
    space = SearchSpace(heads=(4, 12), mlp_ratios=(1,))
    nodes = '[[[0, "mlp:1"], [1, "mlp:1"]], [[0, "msa:12"], [1, "mlp:1"]]]'
    found = Genotype.from_json(f'{{"format": 1, "nodes": {nodes}}}')
    assert sum(genotype.formula == found.formula for genotype in space) == 2
    limit = TOLERANCE * count_parameters(replace(SETTINGS, genotype=found.to_json()), few_digits.train)
    near = (g for g in space if g.has_attention and abs(size(g, 24) - size(found, 24)) * SETTINGS.depth <= limit)
    expected = {genotype.formula for genotype in near} - {found.formula}
    drawn = random_peers(found, SETTINGS, few_digits.train, count=len(expected), space=space)
    assert {genotype.formula for genotype in drawn} == expected
    assert len(drawn) == len(expected) > 20
    with pytest.raises(ValueError, match=rf"only {len(expected)} of 1000 random encoders found within 5% of "):
        random_peers(found, SETTINGS, few_digits.train, count=1000, space=space)


def test_a_space_too_large_to_be_listed_gives_different_functions_too(few_digits):
    space = SearchSpace(nodes=3)
    found = space.sample(random.Random(0))
    drawn = random_peers(found, SETTINGS, few_digits.train, count=3, space=space)
    assert len({found.formula, *(genotype.formula for genotype in drawn)}) == 4


@pytest.mark.parametrize("genotype", ["vit_b16", "dasvit-cifar10"])
def test_parameters_are_those_of_the_network(genotype, few_digits):
    settings = replace(SETTINGS, genotype=genotype)
    network = make_network(settings, few_digits.train)
    assert count_parameters(settings, few_digits.train) == sum(p.numel() for p in network.parameters())


def test_parameters_of_a_layer_are_those_of_the_module():
    for number in (0, 17, 4711, 7202):
        genotype = SearchSpace()[number]
        layers = build(genotype, depth=2, dim=24, image_size=8, patch_size=4).layers
        assert layer_parameters(genotype, 24) == size(genotype, 24)
        assert 2 * size(genotype, 24) == sum(p.numel() for p in layers.parameters())
