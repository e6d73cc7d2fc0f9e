"""Seeds of different uses never meet."""

import itertools

import pytest

from dasvit.engine.seeds import check_seed, derive


def test_every_key_has_a_seed_of_its_own():
    several = itertools.product(range(50), ("weights", "order", "halves"), range(5))
    keys = [*several, *((seed, "weights") for seed in range(50))]
    seeds = {derive(seed, use, *numbers) for seed, use, *numbers in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_seed_is_the_same_everywhere():
    """On every machine and in every version: recorded runs rest on it."""
    assert [derive(0, "weights"), derive(0, "weights", 1), derive(7, "order", 0)] == [247828565, 780882847, 800865361]


def test_seeds_are_checked():
    with pytest.raises(ValueError, match="split_seed 2147483648 is outside"):
        check_seed(2**31, "split_seed")
    check_seed(2**31 - 1)
