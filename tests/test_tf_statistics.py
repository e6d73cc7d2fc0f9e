import math
from itertools import combinations, product
from statistics import mean

import numpy as np
import pytest
from scipy import stats

from dasvit.training_free.statistics import (
    binned_kendall,
    expected_best,
    holm,
    kendall,
    partial_spearman,
    precision_at_top,
    ranks_of_top,
    spearman,
    sum_of_log_ranks,
    within_kendall,
)


@pytest.fixture
def numbers():
    rng = np.random.default_rng(0)
    size = rng.normal(size=80)
    return size + 0.3 * rng.normal(size=80), size + 0.3 * rng.normal(size=80), size


def test_kendall(numbers):
    x, y, _ = numbers
    found = kendall(x, y)
    assert found.value == stats.kendalltau(x, y).statistic
    assert found.low < found.value < found.high
    assert found.count == 80
    assert found == kendall(x, y)  # the bootstrap is seeded
    narrow = kendall(np.tile(x, 10), np.tile(y, 10))
    assert narrow.high - narrow.low < (found.high - found.low) / 2


def test_what_only_size_explains_vanishes_given_size(numbers):  # ledger A31
    x, y, size = numbers
    found = partial_spearman(x, y, size)
    ranks = [stats.rankdata(v) for v in (x, y, size)]
    left = [v - np.polyval(np.polyfit(ranks[2], v, 1), ranks[2]) for v in ranks[:2]]  # what size does not explain
    assert found.value == pytest.approx(stats.pearsonr(*left).statistic)
    assert abs(found.value) < 0.2 < kendall(x, y).value
    assert found.low < 0 < found.high
    assert abs(binned_kendall(x, y, size, bins=8).value) < kendall(x, y).value
    assert np.isnan(partial_spearman(size, y, size).value)  # size itself says nothing beyond size


def test_what_is_more_than_size_stays(numbers):
    x, _, size = numbers
    residue = x - size
    assert partial_spearman(residue, 2 * residue + 0.1 * size, size).low > 0.5
    assert binned_kendall(residue, residue, size).value == 1


def test_by_hand():
    assert kendall([1, 2, 3], [1, 3, 2]).value == pytest.approx(1 / 3)
    x, y, z = [1, 2, 3, 4], [1, 3, 2, 4], [4, 3, 2, 1]
    assert kendall(x, z).value == -1
    assert np.isnan(partial_spearman(x, y, z).value)


def test_too_few():
    with pytest.raises(ValueError, match="three or more of each"):
        kendall([1, 2], [1, 2])
    with pytest.raises(ValueError, match="three or more of each"):
        kendall([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="8 networks in 3 bins: three to a bin are needed"):
        binned_kendall(range(8), range(8), range(8))


def test_spearman(numbers):
    x, y, _ = numbers
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]).value == pytest.approx(0.8)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]).value)


def test_the_interval_of_a_correlation_covers_it_as_often_as_it_says():
    """Of pairs that depend on each other in nothing, 95 % of the intervals hold zero."""
    rng = np.random.default_rng(0)
    found = [spearman(*rng.normal(size=(2, 60)), resamples=150, seed=i) for i in range(100)]
    assert 88 <= sum(c.low < 0 < c.high for c in found) <= 99


def test_within_groups():
    """Within each group x orders y the other way round; over all it does not."""
    x, y, groups = [1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 12, 11], [0, 0, 0, 1, 1, 1]
    assert within_kendall(x, y, groups).value == -1
    assert kendall(x, y).value > 0
    one, other = [1, 2, 3, 4], [1, 2]  # six pairs and one
    found = within_kendall(one + other, [*one, 2, 1], [0] * 4 + [1] * 2)
    assert found.value == pytest.approx((6 * 1 + 1 * -1) / 7)
    assert np.isnan(within_kendall([1, 2, 3], [1, 2, 3], [0, 1, 2]).value)


def test_the_top():
    y = np.arange(100)
    assert precision_at_top(y, y) == 1
    assert precision_at_top(-y, y) == 0
    x = y.copy()
    x[[99, 98]] = -1  # two of the five best are lost
    assert precision_at_top(x, y) == pytest.approx(3 / 5)
    assert ranks_of_top(y, y) == (1, 10)
    assert ranks_of_top(x, y) == (3, 12)
    assert ranks_of_top(-y, y, 3) == (98, 100)
    assert ranks_of_top([3, 2, 1], [5, 5, 1], 2) == (1, 1)  # equal values share the better rank


@pytest.mark.parametrize("x", [[5, 1, 4, 2, 3], [1, 1, 2, 2, 0], [0, 0, 0, 0, 0]])
def test_what_a_search_returns_is_the_mean_over_all_draws(x):
    y = [10.0, 20.0, 50.0, 100.0, 7.0]

    def best(draw):
        top = max(x[i] for i in draw)
        return mean(y[i] for i in draw if x[i] == top)  # equal ones are as likely to be kept

    for count in range(1, 6):
        assert expected_best(x, y, count) == pytest.approx(mean(map(best, combinations(range(5), count))))
        draws = product(range(5), repeat=count)
        assert expected_best(x, y, count, repeats=True) == pytest.approx(mean(map(best, draws)))
    assert expected_best(x, y, 1) == pytest.approx(mean(y))
    with pytest.raises(ValueError, match="cannot draw 6 of 5 networks"):
        expected_best(x, y, 6)


def test_log_ranks():
    a, b = [10, 30, 20], [1, 1, 5]
    expected = [math.log(1 / 3) + math.log(1.5 / 3), math.log(1) + math.log(1.5 / 3), math.log(2 / 3) + math.log(1)]
    assert sum_of_log_ranks([a, b]) == pytest.approx(expected)


def test_holm():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == {"a": 0.06, "b": 0.03, "c": 0.06}
    found = holm({"a": 0.04, "b": math.nan, "c": 0.9})
    assert (found["a"], found["c"]) == (0.08, 0.9)
    assert math.isnan(found["b"])
