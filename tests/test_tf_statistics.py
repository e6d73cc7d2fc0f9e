import numpy as np
import pytest
from scipy import stats

from dasvit.training_free.statistics import binned_kendall, kendall, partial_spearman


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


def test_what_only_size_explains_vanishes_given_size(numbers):
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
