"""The pilot of the landscape: what a recipe is worth and costs."""

from itertools import product

import numpy as np
import pilot
import pytest
from scipy import stats

SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_reliability_is_that_of_shrout_and_fleiss():
    """Their table 4 gives 0.17 for ICC(1, 1); an F test says the same as whether the interval holds zero."""
    found, low, high = pilot.reliability(SHROUT_FLEISS)
    assert found == pytest.approx(0.166, abs=1e-3)
    assert (low, high) == (pytest.approx(-0.133, abs=1e-3), pytest.approx(0.723, abs=1e-3))
    assert (low > 0) == (stats.f_oneway(*SHROUT_FLEISS).pvalue < 0.025)


def test_reliability_finds_the_share_that_was_put_in():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(2000, 1)) * 3**0.5 + rng.normal(size=(2000, 3))
    found, low, high = pilot.reliability(table.tolist())
    assert low < 0.75 < high
    assert found == pytest.approx(0.75, abs=0.02)


def row(turn, recipe, genotype, seed, value, lr=4e-3):
    val = {str(count): {"top1": value, "loss": -value} for count in pilot.TESTED}
    told = {"turn": turn, "recipe": recipe, "lr": lr, "genotype": genotype, "seed": seed}
    return told | {"val": val, "seconds": 30.0, "test_seconds": 10.0}


def test_the_rate_of_the_highest_mean_is_chosen():
    rows = [
        row("rate", recipe, g, 3, 0.4 + (lr == rate) * 0.01 + 0.1 * g, lr)
        for (recipe, rate), lr, g in product(zip(pilot.RECIPES, pilot.RATES * 3, strict=False), pilot.RATES, range(2))
    ]
    assert pilot.chosen_rates(rows) == dict(zip(pilot.RECIPES, pilot.RATES * 3, strict=False))


def test_a_recipe_costs_what_its_mean_needs_to_be_reliable():
    values = np.asarray(SHROUT_FLEISS) / 10
    rows = [row("measure", "base", g, seed, values[g, seed]) for g in range(6) for seed in range(4)]
    told = pilot.summary(rows, "base")
    icc = pilot.reliability(values.tolist())[0]
    needed = 0.8 * (1 - icc) / (0.2 * icc)
    assert needed * icc / (1 + (needed - 1) * icc) == pytest.approx(0.8)  # Spearman and Brown
    assert told["top1"]["10000"]["icc"] == told["loss"]["10000"]["icc"] == pytest.approx(icc)
    assert told["top1"]["10000"]["seconds_to_goal"] == pytest.approx(needed * 40)
    assert told["loss"]["1000"]["seconds_to_goal"] == pytest.approx(needed * 31)


def test_all_recipes_train_the_same_encoders_and_none_of_those_that_choose_the_rate():
    args = pilot.Pilot("folder:x", networks=4, seeds=2)
    rates, measured = pilot.trainings(
        args, [row("rate", r, 0, 2, lr, lr) for r, lr in product(pilot.RECIPES, pilot.RATES)]
    )
    by_recipe = {r: {(x["genotype"], x["seed"]) for x in measured if x["recipe"] == r} for r in pilot.RECIPES}
    assert len(set(map(frozenset, by_recipe.values()))) == 1
    assert {len(trained) for trained in by_recipe.values()} == {8}
    assert not {x["genotype"] for x in rates} & {x["genotype"] for x in measured}
    assert {x["lr"] for x in measured} == {max(pilot.RATES)}
