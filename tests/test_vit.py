import re
from functools import partial

import pytest
import timm
import torch

from dasvit import SearchSpace, Supernet, build
from dasvit.layers import Attention, Mlp, PatchEmbed
from dasvit.vit import EncoderLayer, VisionTransformer, init_weights


def plain(dim=24, depth=2, heads=4, **settings):
    return VisionTransformer(lambda: EncoderLayer(dim, heads), depth=depth, dim=dim, **settings)


def as_timm(name):
    """Our parameter names as timm has them."""
    name = name.removeprefix("layers.") if name.startswith("layers.") else name
    return f"blocks.{name}" if name[0].isdigit() else name


def test_logits_equal_timm_with_copied_weights():
    reference = timm.create_model("vit_tiny_patch16_224").eval()
    with torch.no_grad():  # no parameter may keep a value that hides a missing term
        for p in reference.parameters():
            p.add_(0.05 * torch.randn_like(p))
    ours = plain(dim=192, depth=12, heads=3).eval()
    theirs = reference.state_dict()
    state = {as_timm(name): name for name in ours.state_dict()}
    assert set(state) == set(theirs)
    ours.load_state_dict({name: theirs[key] for key, name in state.items()})
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), reference(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "channels", "patch", "classes"), [(28, 1, 7, 10), (8, 1, 2, 3), (32, 3, 4, 100), (224, 3, 16, 1000)]
)
def test_any_size(size, channels, patch, classes):
    model = plain(depth=1, image_size=size, in_channels=channels, patch_size=patch, num_classes=classes)
    assert model(torch.randn(2, channels, size, size)).shape == (2, classes)


def test_every_parameter_gets_a_gradient():
    model = plain(image_size=8, patch_size=2, in_channels=1, num_classes=3)
    model(torch.randn(2, 1, 8, 8)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_intermediates_do_not_change_the_logits_and_leave_no_hook():
    model = plain(image_size=8, patch_size=2, in_channels=1, num_classes=3)
    images = torch.randn(2, 1, 8, 8)
    logits, record = model(images, intermediates=True)
    assert torch.equal(logits, model(images))
    assert set(record) == {"layers.0.attn.attention", "layers.1.attn.attention"}
    maps = record["layers.1.attn.attention"]
    assert maps.shape == (2, 4, 17, 17)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, 17))
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_maps_are_those_that_attention_uses():
    attention, x = Attention(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.double)
    maps = attention.intermediates(x)["attention"]
    values = attention.qkv(x)[..., 24:].reshape(2, 5, 3, 4).transpose(1, 2)
    torch.testing.assert_close(attention.proj((maps @ values).transpose(1, 2).reshape(2, 5, 12)), attention(x))


def test_patches_are_in_row_major_order():
    embed = PatchEmbed(2, 1, 4)
    torch.nn.init.zeros_(embed.proj.bias)
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert embed(image)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_without_positions_the_order_of_patches_does_not_matter():
    model = plain(image_size=8, patch_size=2, in_channels=1, num_classes=3).double()
    images = torch.randn(1, 1, 8, 8, dtype=torch.double)
    rolled = images.roll(2, dims=-1)  # moves every patch by one place
    assert not torch.allclose(model(images), model(rolled))
    torch.nn.init.zeros_(model.pos_embed)
    torch.testing.assert_close(model(images), model(rolled))


def test_init_keeps_the_scale_of_xavier_for_each_of_q_k_v():  # ledger A2
    model = plain(dim=96, depth=1, heads=4, image_size=8, patch_size=2)
    bound = (6 / (96 + 96)) ** 0.5
    for matrix in model.layers[0].attn.qkv.weight.chunk(3):
        assert 0.95 * bound < matrix.abs().max() <= bound
    init_weights(model, "trunc_normal")
    assert 0.018 < model.layers[0].attn.qkv.weight.std() < 0.022


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Attention(10, 4), "dim 10 is not divisible by 4 heads"),
        (lambda: Mlp(4, 0.2), "MLP ratio 0.2"),
        (lambda: plain(image_size=30), "patch_size 16 does not divide image_size 30"),
        (lambda: plain(num_classes=0), "num_classes 0"),
        (lambda: plain(depth=0), "depth 0"),
        (lambda: plain(image_size=32)(torch.zeros(1, 1, 32, 32)), "the model takes (3, 32, 32)"),
        (lambda: init_weights(plain(image_size=32), "zeros"), "unknown init 'zeros'"),
    ],
)
def test_what_does_not_fit_is_named(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


ONE_NODE = '{"format": 1, "nodes": [[[0, "msa:4"], [1, "skip"]]]}'


@pytest.mark.parametrize("architecture", ["vit_b16", "dasvit-cifar10", "supernet", ONE_NODE])
def test_the_last_layer_for_the_class_token_alone_gives_the_same_logits_and_gradients(architecture):
    sizes = {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 5, "dim": 24, "depth": 2}
    make = partial(Supernet, SearchSpace()) if architecture == "supernet" else partial(build, architecture)
    images = torch.randn(3, 1, 8, 8, dtype=torch.double)
    results = []
    for alone in (False, True):
        torch.manual_seed(0)
        model = make(**sizes, class_token_last=alone).double()
        logits = model(images)
        gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()), materialize_grads=True)
        results.append([logits, *gradients])
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-10)
    if architecture == "supernet":
        return
    assert model.forward_features(images).shape == (3, 17, 24)  # whoever asks for features gets them all
    assert model(images, intermediates=True)[0].shape == (3, 5)
