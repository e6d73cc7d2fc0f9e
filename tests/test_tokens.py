import math

import pytest
import torch

from dasvit import SearchSpace, Supernet, TokenSelection


def selection(ratio, dim=12):
    return TokenSelection(dim, ratio).double()


def tokens(n=17, dim=12):
    return torch.randn(3, n, dim, dtype=torch.double)


def test_scores_are_the_mean_of_the_attention_received():
    module, x = selection(0.5), tokens()
    q, k = x @ module.query.weight.T, x @ module.key.weight.T
    a = torch.softmax(q @ k.mT / math.sqrt(12), dim=-1)
    expected = torch.stack([a[:, :, i].sum(1) / 17 for i in range(17)], dim=1)
    torch.testing.assert_close(module.scores(x), expected)
    torch.testing.assert_close(module.scores(x).sum(1), torch.ones(3, dtype=torch.double))


def test_a_mean_over_rows_could_not_be_meant():
    """Ledger A13: the mean over a row is the same for every token."""
    a = selection(0.5).attention(tokens())
    torch.testing.assert_close(a.mean(-1), torch.full((3, 17), 1 / 17, dtype=torch.double))
    assert a.mean(-2).std() > 1e-3


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0.5, 8), (0.25, 4), (0.51, 9), (1 / 16, 1), (1e-9, 1), (0.99, 16), (0.7 + 0.05, 12)]
)
def test_number_kept_is_rounded_up(ratio, kept):
    assert selection(ratio)(tokens()).shape == (3, 1 + kept, 12)


def test_rounding_of_floats_does_not_keep_one_more():
    scores = torch.rand(1, 101)
    assert [TokenSelection(4, percent / 100).select(scores).shape[1] - 1 for percent in range(1, 100)] == [
        *range(1, 100)
    ]


def test_kept_are_the_highest_scores_in_their_order_with_the_class_token():
    """Ledger A14."""
    module, x = selection(0.5), tokens()
    record = module.intermediates(x)
    for scores, kept, row in zip(record["scores"], record["kept"], module(x), strict=False):
        assert kept[0] == 0
        assert torch.equal(kept, kept.sort().values)
        left = [i for i in range(1, 17) if i not in kept.tolist()]
        assert scores[kept[1:]].min() > scores[left].max()
        assert row.shape == (9, 12)
    torch.testing.assert_close(module(x)[0], x[0, record["kept"][0]], atol=0, rtol=0)


def test_keep_ratio_one_is_the_identity():
    """Ledger A17."""
    x = tokens()
    assert selection(1.0)(x) is x
    assert isinstance(Supernet(SearchSpace(), dim=24, image_size=8, patch_size=2).token_selection, torch.nn.Identity)


def test_query_and_key_receive_the_gradient_of_a_soft_weighting():
    """Ledger A16."""
    module, x = selection(0.5), tokens().requires_grad_()
    target = torch.randn(3, 9, 12, dtype=torch.double)
    grads = torch.autograd.grad((module(x) * target).sum(), list(module.parameters()))
    assert all(g.abs().max() > 0 for g in grads)
    scores = module.scores(x)
    kept = module.select(scores)
    gate = (scores / scores.detach()).gather(1, kept)
    soft = x.detach().gather(1, kept.unsqueeze(-1).expand(-1, -1, 12)) * gate.unsqueeze(-1)
    expected = torch.autograd.grad((soft * target).sum(), list(module.parameters()))
    torch.testing.assert_close(grads, expected)


def test_tokens_receive_their_gradient_unchanged_but_for_the_scores():
    module, x = selection(0.5), tokens().requires_grad_()
    kept = module.select(module.scores(x))
    with torch.no_grad():
        module.query.weight.zero_()  # scores no longer depend on the tokens
    kept = module.select(module.scores(x))
    (grad,) = torch.autograd.grad(module(x).sum(), [x])
    expected = torch.zeros_like(x).scatter(1, kept.unsqueeze(-1).expand(-1, -1, 12), 1.0)
    torch.testing.assert_close(grad, expected)


def test_scores_that_vanish_give_no_nan():
    module, x = selection(0.5).float(), 1e4 * tokens().float()
    x.requires_grad_()
    y = module(x)
    y.sum().backward()
    assert (module.scores(x) == 0).any()
    assert y.isfinite().all()
    assert torch.equal(y.detach()[0], x.detach()[0, module.select(module.scores(x))[0]])


def test_search_trains_the_selection_and_the_derived_network_sees_every_token():
    """Ledger A15."""
    model = Supernet(SearchSpace(), keep_ratio=0.5, dim=24, depth=1, image_size=8, patch_size=2, in_channels=1)
    images = torch.randn(2, 1, 8, 8)
    logits, record = model(images, intermediates=True)
    logits.square().sum().backward()
    assert model.token_selection.query.weight.grad.any()
    assert model.token_selection.key.weight.grad.any()
    assert record["token_selection.kept"].shape == (2, 9)
    assert record["layers.0.nodes"].shape == (2, 2, 9, 24)
    derived = model.extract(model.genotype())
    assert derived(images, intermediates=True)[1]["layers.0.nodes"].shape == (2, 2, 17, 24)


@pytest.mark.parametrize("ratio", [0.0, 1.5, -0.5, float("nan")])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"keep_ratio .* is outside \(0, 1\]"):
        TokenSelection(12, ratio)
