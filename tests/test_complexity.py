import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from dasvit import Supernet, build
from dasvit.autoformer import RelativeAttention
from dasvit.counting import CONVENTIONS, KINDS, complexity
from dasvit.encoder import make_operation
from dasvit.space import SearchSpace

N, D = 17, 24  # tokens and width of the closed forms


class OnTokens(nn.Module):
    """Gives ``module`` the tokens [1, N, D] that an image of side N has in its first D channels."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images):
        return self.module(images[:, :, :, 0].transpose(1, 2))


def count(module, **more):
    return complexity(OnTokens(module), N, in_channels=D, **more)


def test_closed_form_of_every_operation_of_the_space():
    forms = {
        "none": (0, {}),
        "skip": (0, {}),
        "msa": (4 * D * D + 4 * D + 2 * D, {"attention projection": 4 * N * D * D, "attention": 2 * N * N * D}),
    }
    for operation in SearchSpace().operations:
        parameters, kinds = forms.get(operation.kind, (0, {}))
        if operation.kind == "mlp":
            hidden = int(D * operation.size)
            parameters, kinds = 2 * D * hidden + hidden + D + 2 * D, {"linear": 2 * N * D * hidden}
        counted = count(make_operation(operation, D))
        assert counted.parameters == parameters, operation
        assert counted.products[""] == dict.fromkeys(KINDS, 0) | kinds, operation


def test_closed_form_of_relative_position():
    heads, head_dim = 3, 8
    counted = count(RelativeAttention(D, heads, grid=4, head_dim=head_dim, gathered=True))
    pairs = N * N * head_dim * heads
    kinds = {
        "attention projection": 4 * N * D * heads * head_dim,
        "attention": 2 * pairs,
        "relative position": 2 * pairs,
    }
    assert counted.products[""] == dict.fromkeys(KINDS, 0) | kinds


@pytest.mark.parametrize("name", ["vit_b16", "dasvit-cifar10"])
def test_published_networks_by_component(name):
    with torch.device("meta"):
        model = build(name, num_classes=10)
    counted = complexity(model, 224)
    n, d, layers = 197, 768, 12
    hidden = {"vit_b16": 4 * d, "dasvit-cifar10": 3 * d // 2}[name]  # of one MLP, or of three together
    assert counted.products[""] == {
        "convolution": 196 * 768 * d,
        "linear": layers * 2 * n * d * hidden + 10 * d,
        "attention projection": layers * 4 * n * d * d,
        "attention": layers * 2 * n * n * d,
        "relative position": 0,
    }


def test_conventions_differ_by_what_they_say():
    model = build("vit_b16", image_size=16, patch_size=4, dim=D, depth=2, num_classes=10)
    counted = complexity(model, 16)
    kinds = counted.products[""]
    assert counted.macs == counted.under("A").macs == sum(kinds.values())
    assert counted.under("B").macs == counted.macs - kinds["attention"]
    assert counted.under("C").macs == counted.macs - kinds["attention projection"]
    assert complexity(model, 16, convention="C") == counted.under("C")
    with pytest.raises(ValueError, match="unknown convention 'D'; known: A, B, C"):
        counted.under("D")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_module_is_the_sum_of_its_parts(convention):
    supernet = Supernet(SearchSpace(), depth=2, dim=D, image_size=8, patch_size=2, in_channels=1, num_classes=10)
    counted = complexity(supernet, 8, convention=convention)
    parts = counted.macs_by_module
    assert parts["layers"] == parts["layers.0"] + parts["layers.1"]
    assert parts[""] == sum(parts[name] for name, _ in supernet.named_children())
    assert counted.parameters == sum(p.numel() for p in supernet.parameters())


@pytest.mark.skipif(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry,
    reason="this torch does not count attention on a CPU",
)
def test_agrees_with_the_counter_of_torch():
    for model in (
        build("vit_b16", image_size=16, patch_size=4, dim=D, depth=2, num_classes=10),
        build("dasvit-imagenet100", image_size=16, patch_size=4, dim=D, depth=2, num_classes=10),
    ):
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, 16, 16))
        assert counter.get_total_flops() == 2 * complexity(model, 16).macs


@pytest.mark.parametrize("name", ["vit_b16", "dasvit-cifar10"])
def test_agrees_with_fvcore_which_traces(name):
    """It has no cost for fused attention: all the rest is what convention B counts."""
    with warnings.catch_warnings():  # it calls what torch has begun to deprecate
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        model = build(name, image_size=16, patch_size=4, dim=D, depth=2, num_classes=10).eval()
        witness = FlopCountAnalysis(model, torch.zeros(1, 3, 16, 16)).unsupported_ops_warnings(False)
        products = {kind: n for kind, n in witness.by_operator().items() if kind in ("conv", "linear")}
    assert sum(products.values()) == complexity(model, 16, convention="B").macs


def test_meta_device_counts_the_same_and_nothing_is_changed():
    sizes = {"image_size": 16, "patch_size": 4, "dim": D, "depth": 2, "num_classes": 10}
    model = build("dasvit-cifar10", **sizes)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.device("meta"):
        shadow = build("dasvit-cifar10", **sizes)
    assert complexity(model, 16) == complexity(shadow, 16)
    assert next(shadow.parameters()).is_meta
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Weighted(nn.Module):
    """A product with a weight written four ways, and one of two activations."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(D, 5))

    def forward(self, x):
        y = x @ self.weight + torch.einsum("bnd,dh->bnh", x, self.weight)
        y = y + F.linear(x, self.weight.T) + torch.matmul(x, self.weight.T.transpose(0, 1))
        return torch.einsum("bih,bjh->bij", y, y)


def test_a_product_is_told_by_its_factors():
    kinds = count(Weighted()).products[""]
    assert kinds["linear"] + kinds["attention projection"] == 4 * N * D * 5
    assert kinds["attention"] == N * N * 5


class Cumulative(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, dim=1) @ torch.linalg.inv(torch.eye(D))


def test_what_cannot_be_counted_is_named():
    model = nn.Sequential(OnTokens(Cumulative()), nn.Linear(D, 1))
    with pytest.raises(
        ValueError,
        match=r"cannot count aten::_linalg_check_errors, aten::cumsum, .* in Sequential",
    ):
        complexity(model, N, in_channels=D)


@pytest.mark.usefixtures("_unchecked")
def test_the_model_of_timm_counts_as_ours():
    model = timm.create_model(
        "dasvit_base_patch16_224", num_classes=10, depth=2, embed_dim=D, img_size=16, patch_size=4
    )
    ours = build("dasvit-cifar10", image_size=16, patch_size=4, dim=D, depth=2, num_classes=10)
    counted = complexity(model, 16)
    assert (counted.parameters, counted.products[""]) == (
        complexity(ours, 16).parameters,
        complexity(ours, 16).products[""],
    )


def test_a_weight_that_is_copied_is_a_weight():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 8, 4))

        def forward(self, x):
            return torch.einsum("bnd,hdk->bhnk", x.flatten(2).transpose(1, 2), self.weight)

    counted = complexity(Heads(), 4, in_channels=8).products[""]
    assert counted["linear"] == 16 * 3 * 8 * 4
    assert counted["attention"] == 0
    model = build("vit_b16", depth=1, dim=24, image_size=8, patch_size=2)
    plain = complexity(model, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert complexity(model, 8).products == plain.products
    with torch.inference_mode():
        assert complexity(model, 8).products == plain.products


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_of_torch_is_looked_into(device):
    with torch.device(device):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                tokens = x.flatten(2).transpose(1, 2).roll(1, 1)
                mask = torch.ones(16, 16, dtype=torch.bool, device=x.device).tril()
                seen = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask)
                return self.layer(seen) @ torch.ones(8, device=x.device)

    n, d = 16, 8
    counted = complexity(Net(), 4, in_channels=8)
    assert counted.macs == 4 * n * d * d + 2 * n * d * 16 + 2 * 2 * n * n * d + n * d
    assert torch.backends.mha.get_fastpath_enabled()
