import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from dasvit import SearchSpace, Supernet
from dasvit.bilevel import first_order_gradient, frozen, second_order_gradient
from dasvit.fairness import fairness_term

SPACE = SearchSpace(heads=(2,), mlp_ratios=(1,))
LR = 0.1


@pytest.fixture
def problem():
    """A small supernet in float64, with one batch for the weights and one for α."""
    settings = {"image_size": 4, "patch_size": 2, "in_channels": 1, "num_classes": 3, "dim": 16, "depth": 2}
    model = Supernet(SPACE, **settings).double()
    torch.nn.init.normal_(model.alpha)
    images, labels = torch.randn(2, 8, 1, 4, 4, dtype=torch.double), torch.randint(3, (2, 8))

    def lower(m=model):
        return F.cross_entropy(m(images[0]), labels[0])

    def upper(m=model):
        return F.cross_entropy(m(images[1]), labels[1]) + fairness_term(model.mixing_weights(), model.candidates)

    return model, upper, lower


def exact_hypergradient(model, upper, lower, lr):
    """Differentiate through the inner step itself, with a second backward pass."""
    names = [name for name, _ in model.named_parameters() if name != "alpha"]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        inner = torch.autograd.grad(lower(), model.network_parameters, create_graph=True)
        stepped = [w - lr * g for w, g in zip(model.network_parameters, inner, strict=True)]
        values = dict(zip(names, stepped, strict=True))

        outer = upper(lambda x: functional_call(model, values, (x,)))
        return torch.autograd.grad(outer, [model.alpha])[0]


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_second_order_is_the_exact_hypergradient(problem):
    model, upper, lower = problem
    exact = exact_hypergradient(model, upper, lower, LR)
    got, loss = second_order_gradient(model.alpha, model.network_parameters, upper, lower, LR)
    assert relative(got, exact) < 1e-6
    assert loss.requires_grad is False


def test_second_order_is_not_first_order(problem):
    model, upper, lower = problem
    first, _ = first_order_gradient(model.alpha, model.network_parameters, upper)
    second, _ = second_order_gradient(model.alpha, model.network_parameters, upper, lower, LR)
    assert relative(first, second) > 1e-2


def test_the_correction_matters_to_the_check(problem):
    """A product divided wrongly by as little as a percent would be seen."""
    model, upper, lower = problem
    exact = exact_hypergradient(model, upper, lower, LR)
    stepped, _ = second_order_gradient(model.alpha, model.network_parameters, upper, lambda: 0 * lower(), LR)
    got, _ = second_order_gradient(model.alpha, model.network_parameters, upper, lower, LR)
    assert relative(got + 0.01 * (got - stepped), exact) > 1e-6


def test_second_order_with_a_tiny_step_tends_to_first_order(problem):
    model, upper, lower = problem
    first, _ = first_order_gradient(model.alpha, model.network_parameters, upper)
    second, _ = second_order_gradient(model.alpha, model.network_parameters, upper, lower, 1e-10)
    assert relative(first, second) < 1e-6


def test_first_order_is_autograd(problem):
    model, upper, _ = problem
    expected = torch.autograd.grad(upper(), [model.alpha])[0]
    got, loss = first_order_gradient(model.alpha, model.network_parameters, upper)
    torch.testing.assert_close(got, expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(loss, upper())


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_is_left_behind(problem, order):
    model, upper, lower = problem
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if order == 1:
        first_order_gradient(model.alpha, model.network_parameters, upper)
    else:
        second_order_gradient(model.alpha, model.network_parameters, upper, lower, LR)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_weights_ask_for_no_gradient_in_the_alpha_step(problem):
    model, upper, _ = problem
    asked = []
    first_order_gradient(
        model.alpha,
        model.network_parameters,
        lambda: asked.extend(p.requires_grad for p in model.parameters()) or upper(),
    )
    assert sum(asked) == 1


def test_frozen_restores_after_an_error(problem):
    model, *_ = problem
    model.head.weight.requires_grad_(False)
    seen = []

    def fail():
        seen.extend(p.requires_grad for p in model.parameters())
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), frozen(list(model.parameters())):
        fail()
    assert not any(seen)
    assert not model.head.weight.requires_grad
    assert model.alpha.requires_grad
