import pytest
import torch

from dasvit import FairnessSettings, SearchSpace, fairness_term
from dasvit.fairness import skip_term, type_term, type_weights
from dasvit.space import Operation

SPACE = SearchSpace()
ALL = (SPACE.operations,) * 5
# one edge's weights: none skip msa:4 msa:8 msa:12 mlp:0.5 mlp:1 mlp:2
ROW = [0.05, 0.15, 0.10, 0.20, 0.05, 0.05, 0.30, 0.10]  # MSA 0.35, MLP 0.45


def weights(*rows):
    return torch.tensor([*rows, *[ROW] * (5 - len(rows))], dtype=torch.double)


def test_skip_term_is_the_mean_skip_weight():
    p = weights([0.0, 1.0, 0, 0, 0, 0, 0, 0])
    assert float(skip_term(p, ALL)) == pytest.approx((1.0 + 4 * 0.15) / 5)


def test_skip_term_counts_only_the_skips_still_in_play():
    pair = Operation("skip"), Operation("msa", 4)
    other = Operation("mlp", 1), Operation("msa", 4)
    p = torch.tensor([[0.3, 0.7]] * 5, dtype=torch.double)
    assert float(skip_term(p, (pair, pair, other, other, other))) == pytest.approx(0.3)
    assert float(skip_term(p, (other,) * 5)) == 0


def test_type_weights_are_totals_averaged_over_edges():
    """Ledger A18."""
    got = type_weights(weights([0, 0, 1, 0, 0, 0, 0, 0]), ALL)
    assert float(got["msa"]) == pytest.approx((1.0 + 4 * 0.35) / 5)
    assert float(got["mlp"]) == pytest.approx(4 * 0.45 / 5)


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (0.30, 0.60, 0.0),  # both inside
        (0.40, 0.60, 3.0 * (0.40 - 0.35)),  # MSA starved
        (0.30, 0.40, 2.0 * (0.45 - 0.40)),  # MLP above
        (0.40, 0.40, 3.0 * 0.05 + 2.0 * 0.05),
    ],
)
def test_type_term_by_hand(lower, upper, expected):
    settings = FairnessSettings(lower=lower, upper=upper, penalty=2.0, reward=3.0)
    assert float(type_term(weights(), ALL, settings)) == pytest.approx(expected)


def test_whole_term_by_hand():
    settings = FairnessSettings(skip_weight=0.5, type_weight=4.0, lower=0.4, upper=0.6, penalty=2.0, reward=3.0)
    assert float(fairness_term(weights(), ALL, settings)) == pytest.approx(0.5 * 0.15 + 4.0 * 3.0 * 0.05)


def test_a_type_that_is_no_longer_there_is_not_missed():
    only_mlp = ((Operation("skip"), Operation("mlp", 1)),) * 5
    p = torch.tensor([[0.5, 0.5]] * 5, dtype=torch.double)
    assert set(type_weights(p, only_mlp)) == {"mlp"}
    assert float(type_term(p, only_mlp, FairnessSettings())) == 0


def gradient(settings, p):
    alpha = p.log().requires_grad_()  # softmax(log p) = p
    (g,) = torch.autograd.grad(fairness_term(alpha.softmax(-1), ALL, settings), [alpha])
    return g


def test_descent_lowers_skip():
    g = gradient(FairnessSettings(type_weight=0.0), weights())
    assert (g[:, 1] > 0).all()
    assert (g[:, [0, *range(2, 8)]] < 0).all()
    torch.testing.assert_close(g[:, 1], torch.full((5,), 0.15 * (1 - 0.15) / 5, dtype=torch.double))


def test_descent_raises_a_starved_type():
    """Ledger A19: the sign of the reward."""
    g = gradient(FairnessSettings(skip_weight=0.0, lower=0.4, upper=0.6), weights())
    assert (g[:, 2:5] < 0).all()
    assert (g[:, [0, 1, 5, 6, 7]] > 0).all()


def test_descent_lowers_a_type_above_its_limit():
    g = gradient(FairnessSettings(skip_weight=0.0, lower=0.3, upper=0.4), weights())
    assert (g[:, 5:] > 0).all()
    assert (g[:, :5] < 0).all()


def test_inside_the_limits_types_feel_nothing():
    assert not gradient(FairnessSettings(skip_weight=0.0), weights()).any()


@pytest.mark.parametrize(
    "settings",
    [{"skip_weight": -1}, {"penalty": float("nan")}, {"lower": 0.6, "upper": 0.3}, {"upper": 1.5}, {"lower": -0.1}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="fairness"):
        FairnessSettings(**settings)
