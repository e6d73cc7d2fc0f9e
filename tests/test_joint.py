"""A layer in few large products is the layer operation by operation, values and gradients, to rounding."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dasvit import SearchSpace
from dasvit.joint import JointCell
from dasvit.operations import KINDS, Kind, register
from dasvit.plan import survivors
from dasvit.relaxation import Supernet

SPACE = SearchSpace()
SIZES = {"dim": 24, "image_size": 16, "patch_size": 4, "in_channels": 1, "num_classes": 5, "depth": 3}


def pair_of(space=SPACE, candidates=None, **changes):
    """The same supernet twice, in float64: operation by operation, and joint; its biases and norms are not trivial."""
    torch.manual_seed(3)
    ours = Supernet(space, candidates=candidates, **SIZES | changes).double()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.05 * torch.randn_like(p))
        ours.alpha.copy_(torch.randn_like(ours.alpha))
    joint = Supernet(space, candidates=candidates, joint=True, **SIZES | changes).double()
    joint.load_state_dict(ours.state_dict())
    return ours, joint


def batch():
    torch.manual_seed(4)
    return torch.randn(6, 1, 16, 16, dtype=torch.float64), torch.arange(6) % 5


def computed(net, asked):
    """Logits, and gradients by name of the parameters that are asked for."""
    images, labels = batch()
    for name, p in net.named_parameters():
        p.requires_grad_(asked == "both" or (name == "alpha") is (asked == "alpha"))
    logits = net(images)
    found = {n: p for n, p in net.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), found.values(), materialize_grads=True)
    return logits, dict(zip(found, gradients, strict=True))


def agree(ours, joint, asked, tolerance=1e-10):
    (logits, gradients), (other, others) = computed(ours, asked), computed(joint, asked)
    torch.testing.assert_close(other, logits, atol=tolerance, rtol=tolerance)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=tolerance, rtol=tolerance, msg=name)
        assert others[name].shape == gradient.shape


@pytest.mark.torch
@pytest.mark.parametrize(
    ("asked", "keep_ratio", "last"), [*itertools.product(["alpha", "weights", "both"], [1.0, 0.5], [False, True])]
)
def test_values_and_gradients(asked, keep_ratio, last):
    agree(*pair_of(keep_ratio=keep_ratio, class_token_last=last), asked)


@pytest.mark.parametrize("kept", [5, 3])
@pytest.mark.parametrize("space", [SPACE, replace(SPACE, nodes=3), replace(SPACE, inputs=1)])
def test_other_candidates_and_wirings(kept, space):
    agree(*pair_of(space, survivors(space, kept), class_token_last=True), "both")


def test_an_edge_of_identities_and_zeros_alone():
    space = SearchSpace(heads=(2,), mlp_ratios=(1.0,))
    named = {str(op): op for op in space.operations}
    simple, full = (named["none"], named["skip"]), (named["msa:2"], named["mlp:1"])
    for edges in ([simple] * 5, [simple, full, simple, simple, full]):
        agree(*pair_of(space, tuple(edges), class_token_last=True), "both")


@pytest.fixture
def odd():
    """An operation without halves."""
    register(Kind("odd", lambda dim, _size: nn.Linear(dim, dim), type="mlp", few="each"))
    yield
    del KINDS["odd"]


@pytest.mark.usefixtures("odd")
def test_an_operation_without_halves_is_computed_by_itself():
    agree(*pair_of(replace(SPACE, extra=("odd",)), class_token_last=True), "both")


def test_with_bf16_it_is_as_close_as_the_other_way():
    ours, joint = (net.float() for net in pair_of(class_token_last=True))
    exact, _ = computed(pair_of(class_token_last=True)[0], "alpha")
    images, _ = batch()
    errors = []
    for net in (ours, joint):
        with torch.autocast("cpu", torch.bfloat16):
            errors.append(
                float((net(images.float()).detach() - exact.detach()).abs().max() / exact.detach().abs().max())
            )
    assert errors[1] < max(2 * errors[0], 0.02)


def test_someone_who_listens_hears_every_operation():
    _, joint = pair_of()
    images, _ = batch()
    heard, layer = [], joint.layers[1]
    assert isinstance(layer, JointCell)
    attention = next(m for n, m in layer.named_modules() if n.endswith("msa_12.msa"))
    handle = attention.register_forward_hook(lambda *_: heard.append(1))
    joint(images)
    assert heard == [1]
    handle.remove()
    joint(images)
    assert heard == [1]


def test_nothing_is_added_to_the_weights():
    ours, joint = pair_of()
    joint(batch()[0])
    assert ours.state_dict().keys() == joint.state_dict().keys()
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in joint.named_parameters()]


def test_it_is_not_computed_again():
    with pytest.raises(ValueError, match=r"joint with recompute: .* choose one of the two"):
        pair_of(recompute=True)
