import random

import pytest
import torch

from dasvit import SearchSpace
from dasvit.training_free import SPACES, AutoFormerSpace, Candidate, DasvitSpace, Shape
from dasvit.training_free.space import find

XS = Shape(16, 4, 3, 10)


def test_sizes_of_the_published_spaces():
    assert len(SPACES["autoformer-t"]) == 3 * (4**12 + 4**13 + 4**14)
    assert len(SPACES["autoformer-s"]) == 3 * (9**12 + 9**13 + 9**14)
    assert len(SPACES["autoformer-b"]) == 3 * (6**14 + 6**15 + 6**16)
    assert len(SPACES["dasvit"]) == 7203


def test_numbers_and_candidates_are_one_to_one():
    space = AutoFormerSpace((8, 16), (1, 3), (1, 2), (1, 2, 4))
    every = [space[number] for number in range(len(space))]
    assert len(set(every)) == len(space) == 2 * (6 + 6**3)
    assert [space.number(candidate) for candidate in every] == list(range(len(space)))
    with pytest.raises(IndexError, match="444 is no number of a network"):
        space[len(space)]
    for outside in (Candidate(8, (3,), (1,)), Candidate(9, (1,), (1,)), Candidate(8, (1, 1), (1, 1))):
        with pytest.raises(ValueError, match="is not in the space"):
            space.number(outside)
    largest = SPACES["autoformer-b"]
    assert largest.number(largest[len(largest) - 1]) == len(largest) - 1


def test_samples_are_in_the_space_and_follow_the_seed():
    for space in SPACES.values():
        drawn = [space.sample(random.Random(1)) for _ in range(2)] + [space.sample(random.Random(2))]
        assert drawn[0] == drawn[1] != drawn[2]
        assert all(0 <= number < len(space) for number in drawn)
    depths = {len(SPACES["autoformer-t"][SPACES["autoformer-t"].sample(random.Random(i))].num_heads) for i in range(30)}
    assert depths == {12, 13, 14}  # every depth as likely, though most networks are deep


@pytest.mark.parametrize("name", SPACES)
def test_parameters_are_counted_without_building(name):
    space, rng = SPACES[name], random.Random(0)
    for _ in range(3):
        number, shape = space.sample(rng), XS if name.endswith("xs") else Shape()
        with torch.device("meta"):
            model = space.fresh(number, shape) if isinstance(space, AutoFormerSpace) else space._make(number, shape)
        assert space.parameters(number, shape) == sum(p.numel() for p in model.parameters())


def test_networks_share_their_weights():  # ledger A29
    space = AutoFormerSpace((8, 16), (1, 2), (1, 2), (1, 2), head_dim=4)
    small = space.build(space.number(Candidate(8, (1,), (1,))), XS).state_dict()
    large = space.build(space.number(Candidate(16, (2, 1), (2, 1))), XS).state_dict()
    q, k, v = large["layers.0.attn.qkv.weight"].chunk(3)
    assert torch.equal(small["layers.0.attn.qkv.weight"], torch.cat([part[:4, :8] for part in (q, k, v)]))
    for name in ("layers.0.mlp.fc1.weight", "layers.0.attn.proj.weight", "pos_embed", "head.weight"):
        ours = small[name]
        assert torch.equal(ours, large[name][tuple(slice(n) for n in ours.shape)])
    assert torch.equal(space.build(0, XS).state_dict()["pos_embed"], space.build(0, XS).state_dict()["pos_embed"])
    other = space.build(0, Shape(16, 4, 3, 10, seed=1)).state_dict()
    assert not torch.equal(other["pos_embed"], space.build(0, XS).state_dict()["pos_embed"])


def test_a_network_to_be_scored_cannot_be_trained_by_mistake_and_a_fresh_one_can():
    space = SPACES["autoformer-xs"]
    images = torch.randn(2, 3, 16, 16)
    assert not space.build(7, XS)(images).requires_grad
    fresh = space.fresh(7, XS)
    fresh(images).sum().backward()
    assert all(p.grad is not None for p in fresh.parameters())


def test_our_space():
    space = DasvitSpace(dim=24, depth=2)
    assert space.describe(17)["genotype"] == SearchSpace()[17].to_json()
    first, again = (space.build(17, XS).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_our_space_is_drawn_by_function():  # ledger A29
    space = DasvitSpace(SearchSpace(heads=(4,), mlp_ratios=()))
    assert (len(space), space.count_functions()) == (48, 41)
    rng = random.Random(0)
    drawn = [space.sample(rng) for _ in range(4100)]
    assert set(drawn) == set(space.space.functions()) == set(map(space.canonical, range(48)))
    assert max(drawn.count(number) for number in set(drawn)) < 150  # by name some would have 340
    largest = SPACES["autoformer-b"]
    assert largest.count_functions() == len(largest)
    assert largest.canonical(4711) == 4711


def test_find():
    assert find("autoformer-t:4711") == ("autoformer-t", 4711)
    assert find("vit_b16") is None
    assert find('{"format": 1}') is None
    with pytest.raises(ValueError, match="unknown space 'autoformer-x'; known: autoformer-t"):
        find("autoformer-x:1")
    for number in ("7203", "-1", "x", ""):
        with pytest.raises(ValueError, match="is no number of a network: dasvit has 7,203"):
            find(f"dasvit:{number}")
