"""A layer in few large products is the layer operation by operation, values and gradients, to rounding."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dasvit import DataSettings, SearchSettings, SearchSpace, load_data, search
from dasvit.counting import products_of
from dasvit.engine.hardware import Hardware
from dasvit.engine.kernels import CHUNK, Kernels
from dasvit.joint import JointCell
from dasvit.operations import KINDS, Kind, register
from dasvit.plan import count_kernels, plan_stage, survivors, unseen
from dasvit.presets import SEARCH
from dasvit.relaxation import Supernet
from dasvit.searching import choose_joint

SPACE = SearchSpace()
TINY = SearchSettings(dim=24, stages=((1, 8, 1), (2, 4, 1)), batch_size=16)
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
    exact = computed(pair_of(class_token_last=True)[0], "alpha")[0].detach()
    images, _ = batch()
    errors = []
    for net in (ours, joint):
        with torch.autocast("cpu", torch.bfloat16):
            errors.append(float((net(images.float()).detach() - exact).abs().max() / exact.abs().max()))
    assert errors[1] < max(2 * errors[0], 0.02)


def test_someone_who_listens_hears_every_operation():
    _, joint = pair_of()
    images, _ = batch()
    heard, layer = [], joint.layers[1]
    assert isinstance(layer, JointCell)
    attention = next(m for n, m in layer.named_modules() if n.endswith("msa:12.msa"))
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


PAPER = replace(SEARCH["paper"], hardware=Hardware(precision="bf16-mixed"))


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(("number", "joint", "most"), [(0, "on", 1400), (2, "on", 2500), (0, "off", 5000)])
def test_kernels_at_the_size_of_the_paper(number, joint, most):
    kernels = count_kernels(replace(PAPER, joint=joint), number, survivors(PAPER.space, PAPER.stages[number][1]))
    assert 0.8 * most < kernels.count <= most


def test_kernels_of_a_sum_by_hand():
    x, y = torch.ones(4, 8), torch.ones(8, 2)
    with Kernels(products_of) as kernels:
        z = (x.T.T.clone() @ y).add_(1)  # two views, a copy, a product, a sum in place
        z.unsqueeze(0)
        torch.empty(5)
    product = 2 * 4 * 8 * 2
    copy, mm, add = (0, 4 * 64), (product, 4 * (32 + 16 + 8)), (0, 4 * (8 + 8))
    assert kernels.work == {copy: 1, mm: 1, add: 1}
    assert kernels.seconds(product, 224, 0.5) == pytest.approx(256 / 224 + 1.0 + 0.5)


def test_a_fused_optimiser_counts_as_what_it_is_split_in():
    tensors = [torch.zeros(CHUNK * 10 + 1) for _ in range(59)]  # 11 chunks each
    with Kernels(products_of) as kernels:
        torch._foreach_add_(tensors, 1)
        torch._foreach_add_(tensors[:2] * 40, 1)
    assert kernels.count == 3 + 3  # 649 chunks of 320 at a time; 880


@pytest.mark.usefixtures("_unchecked")
def test_it_is_chosen_where_there_is_room(monkeypatch):
    settings = replace(PAPER, dim=96, stages=((1, 8, 1),))
    (images, _), _ = unseen(settings)
    candidates = (settings.space.operations,) * len(settings.space.edges)
    needed = plan_stage(replace(settings, joint="on"), 0, candidates).peak_bytes
    assert plan_stage(settings, 0, candidates).peak_bytes < needed
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for memory, choice in ((needed / 0.74, "on"), (needed / 0.76, "off")):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _device, memory=memory: SimpleNamespace(total_memory=memory)
        )
        assert choose_joint(settings, 0, candidates, images, gpu) == choice
    assert choose_joint(settings, 0, candidates, images, cpu) == "off"
    assert choose_joint(replace(settings, recompute=True), 0, candidates, images, gpu) == "off"
    assert choose_joint(replace(settings, joint="on"), 0, candidates, images, cpu) == "on"


def test_a_search_finds_the_same_either_way(images):
    """Six steps in float64: the same α to what Adam makes of rounding."""
    settings = replace(TINY, hardware=Hardware("cpu", "64-true"))
    one, other = (search(replace(settings, joint=joint), images).supernet.alpha for joint in ("on", "off"))
    torch.testing.assert_close(one, other, atol=1e-8, rtol=0)


@pytest.fixture(scope="module")
def images():
    return load_data(DataSettings(train_images=100, test_images=20), image_size=8).train


def test_it_is_not_asked_for_with_recompute():
    with pytest.raises(ValueError, match=r"joint on with recompute: .* use --joint auto"):
        replace(TINY, joint="on", recompute=True)
