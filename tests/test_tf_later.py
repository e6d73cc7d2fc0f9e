"""ZiCo, MeCo, AZ-NAS and Auto-Prox against closed forms and independent computations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import nn

from dasvit import build
from dasvit.training_free import Probe, score

SMALL = {"image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 5}


@pytest.fixture
def model():
    return build("dasvit-cifar10", dim=24, depth=3, **SMALL).double()


@pytest.fixture
def probe():
    return Probe(8, torch.randn(6, 1, 8, 8, dtype=torch.double), torch.arange(6) % 5, seed=3)


class Blocks(nn.Module):
    """Tokens, the rows of an image times a parameter, through blocks that scale them."""

    in_channels = 1

    def __init__(self, *factors):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.layers = nn.ModuleList(Scale(factor) for factor in factors)

    def forward(self, images):
        x = images[:, 0] * self.one
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def orthogonal(count=8):
    """Columns that correlate with none of the others, ``[1, 1, 16, count]``."""
    return torch.tensor(hadamard(16)[:, 1 : 1 + count], dtype=torch.float)[None, None]


def test_zico_by_hand():
    """With zero weights both classes have probability 1/2, and the gradient of a row is ± x / 2."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(network[1].weight)
    network.in_channels = 1
    images = torch.stack([torch.ones(1, 2, 2), 3 * torch.ones(1, 2, 2)])
    opposite = Probe(2, images, torch.tensor([0, 1]))  # gradients ∓1/2 and ±3/2: E|g| = 1, deviation 1
    assert score(network, "zico", opposite)["total"] == pytest.approx(math.log(8))
    alike = Probe(2, images, torch.tensor([0, 0]))  # ∓1/2 and ∓3/2: E|g| = 1, deviation 1/2
    assert score(network, "zico", alike)["total"] == pytest.approx(math.log(16))
    equal = Probe(2, images[:1].repeat(2, 1, 1, 1), torch.tensor([0, 0]))
    assert score(network, "zico", equal)["total"] == 0
    with pytest.raises(ValueError, match=r"zico compares the gradients of two batches: 1 image\(s\) cannot be divided"):
        score(network, "zico", Probe(2, images[:1], torch.tensor([0])))


def test_zico_is_the_sum_over_layers_of_the_logarithm_of_a_sum(model, probe):
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    gradients = []
    for part in (slice(0, 3), slice(3, 6)):
        model.zero_grad()
        F.cross_entropy(model(probe.images[part]), probe.labels[part]).backward()
        gradients.append([m.weight.grad.numpy().copy() for m in layers])
    expected = 0.0
    for both in zip(*gradients, strict=True):
        mean, deviation = np.abs(both).mean(0), np.std(both, axis=0)
        expected += np.log((mean[deviation > 0] / deviation[deviation > 0]).sum())
    model.zero_grad()
    assert score(model, "zico", probe)["total"] == pytest.approx(expected, rel=1e-9)


class Reader(nn.Module):
    """One linear layer that reads the rows of an image."""

    in_channels = 1

    def __init__(self, weight):
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0])
        self.layer.weight.data.copy_(weight)

    def forward(self, images):
        return self.layer(images[:, 0])


def test_meco_by_hand():
    """Channels that do not correlate have only the eigenvalue 1, two equal ones the eigenvalue 0."""
    assert score(Reader(torch.eye(8)), "meco", Probe(16, orthogonal()))["total"] == pytest.approx(1)
    few = Reader(torch.eye(4))  # all of four are drawn
    assert score(few, "meco", Probe(16, orthogonal(4)))["total"] == pytest.approx(1)
    twins = torch.eye(8)[[0, 0, 2, 3, 4, 5, 6, 7]]
    assert score(Reader(twins), "meco", Probe(16, orthogonal()))["total"] == pytest.approx(0, abs=1e-7)
    many = Reader(torch.eye(8).repeat(2, 1))  # 16 channels, of which 8 are drawn: 16 / 8 times an eigenvalue
    value = score(many, "meco", Probe(16, orthogonal(), seed=1))["total"]
    drawn = torch.randperm(16, generator=torch.Generator().manual_seed(1))[:8] % 8
    assert value == pytest.approx(2 * (len(set(drawn.tolist())) == 8), abs=1e-7)
    between = torch.eye(8)
    between[1, 0] = 1  # the second channel is the sum of two: a correlation of 1/√2, eigenvalues 1 ± 1/√2
    expected = 1 - 1 / math.sqrt(2)
    assert score(Reader(between), "meco", Probe(16, orthogonal()))["total"] == pytest.approx(expected)


def test_meco_sums_over_the_layers_that_read_tokens():
    model = build("dasvit-cifar10", dim=24, depth=3, **SMALL | {"image_size": 16}).double()
    probe, seen = Probe(16, torch.randn(2, 1, 16, 16, dtype=torch.double), seed=3), []
    hooks = [
        m.register_forward_hook(lambda *args: seen.append(args[2]))
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name != "head"
    ]
    model.eval()(probe.images[:1])
    for hook in hooks:
        hook.remove()
    generator, expected = torch.Generator().manual_seed(3), 0.0
    for y in seen:
        channels = torch.randperm(y.shape[-1], generator=generator)[:8]
        matrix = np.corrcoef(y[0, :, channels].detach().numpy().T)
        expected += y.shape[-1] / 8 * np.linalg.eigvalsh(matrix)[0]
    assert len(seen) == 24
    assert score(model, "meco", probe)["total"] == pytest.approx(expected, rel=1e-9)
    assert expected > 1  # 17 tokens tell 8 channels apart


def test_az_nas_by_hand():
    """One dimension: signs squared are 1, so that σ is the factor; one direction has no entropy."""
    found = score(Blocks(5, 2, 4), "az-nas", Probe(16, torch.randn(3, 1, 16, 1)))
    assert found["trainability"] == pytest.approx(((2 - 2 - 1 / 2) + (2 - 4 - 1 / 4)) / 2)
    assert found["expressivity"] == pytest.approx(0, abs=1e-9)
    found = score(Blocks(1, 3), "az-nas", Probe(16, orthogonal(), seed=2))
    assert found["expressivity"] == pytest.approx(2 * math.log(8))  # every direction has the same
    assert found["progressivity"] == pytest.approx(0, abs=1e-9)
    assert found["total"] == pytest.approx(sum(found[k] for k in ("expressivity", "progressivity", "trainability")))
    signs = torch.randint(2, (1, 16, 8), generator=torch.Generator().manual_seed(2))[0] * 2.0 - 1
    sigma = torch.linalg.matrix_norm(3 * signs.T @ signs / 16, 2).item()
    assert found["trainability"] == pytest.approx(2 - sigma - 1 / sigma)


def test_az_nas_compares_blocks(model, probe):
    found = score(model, "az-nas", probe)
    outputs = []
    hooks = [layer.register_forward_hook(lambda *args: outputs.append(args[2])) for layer in model.layers]
    model.eval()(probe.images)
    for hook in hooks:
        hook.remove()
    entropies = []
    for x in outputs:
        values = np.linalg.eigvalsh(np.cov(x.detach().numpy().reshape(-1, 24).T, bias=True)).clip(1e-300)
        shares = values / values.sum()
        entropies.append(-(shares * np.log(shares)).sum())
    assert found["expressivity"] == pytest.approx(sum(entropies), rel=1e-6)
    assert found["progressivity"] == pytest.approx(np.diff(entropies).min(), rel=1e-6)
    with pytest.raises(ValueError, match="az-nas compares neighbouring layers: this VisionTransformer has one"):
        score(build("dasvit-cifar10", dim=24, depth=1, **SMALL), "az-nas", Probe(8))
    with pytest.raises(ValueError, match="Sequential has no encoder layers under the name layers or blocks"):
        score(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "az-nas", Probe(2, torch.randn(2, 1, 2, 2)))
    with pytest.raises(ValueError, match="az-nas of this Blocks is nan: it cannot be ranked"):
        score(Blocks(1, 0), "az-nas", Probe(16, orthogonal()))


def test_autoprox(model):
    found = score(model, "autoprox", Probe(8))
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()
    model(torch.ones(1, 1, 8, 8, dtype=torch.double)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if name.endswith("weight") and p.ndim == 2}
    attention = [g for name, g in gradients.items() if name.endswith(("qkv.weight", "proj.weight"))]
    mlps = [g for name, g in gradients.items() if name.endswith(("fc1.weight", "fc2.weight"))]
    assert attention
    assert mlps
    assert found["msa"] == pytest.approx(sum(g.abs().sum().item() for g in attention), rel=1e-9)
    assert found["mlp"] == pytest.approx(sum(torch.sigmoid(g).mean().item() for g in mlps), rel=1e-9)
    assert found["total"] == found["msa"] + found["mlp"]
    with pytest.raises(ValueError, match="Sequential has no linear layers whose role is known"):
        score(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "autoprox", Probe(8))


def test_a_larger_batch_is_drawn_if_asked_for(model):
    assert [len(Probe(8, batch_size=count).batch(model)[0]) for count in (2, 5)] == [2, 5]
    with pytest.raises(ValueError, match="te looks at the plane through three images: 2 are too few"):
        score(model, "te", Probe(8, batch_size=2))
