import math

import pytest
import torch
import torch.nn.functional as F

from dasvit import build, complexity
from dasvit.autoformer import build_autoformer
from dasvit.training_free import INDICATORS, Probe, score
from dasvit.training_free.indicators import regions
from dasvit.training_free.roles import linear_call, record_linear

SMALL = {"image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 5}


@pytest.fixture
def model():
    return build("dasvit-cifar10", dim=24, depth=2, **SMALL).double()


@pytest.fixture
def probe():
    return Probe(8, torch.randn(6, 1, 8, 8, dtype=torch.double), torch.arange(6) % 5)


@pytest.mark.parametrize("name", INDICATORS)
@pytest.mark.parametrize("kind", ["dasvit", "autoformer", "single precision"])
def test_finite_repeatable_and_harmless(name, kind, model, probe):
    if kind == "autoformer":
        model = build_autoformer(16, [1, 2], [2, 3], head_dim=8, **SMALL).double()
    if kind == "single precision":
        model = model.float().requires_grad_(False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    first = score(model, name, probe)
    assert all(math.isfinite(value) for value in first.values())
    assert score(model, name, probe) == first
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_the_short_last_layer_changes_no_score(model, probe):
    whole = {name: score(model, name, probe) for name in INDICATORS}
    short = build("dasvit-cifar10", dim=24, depth=2, class_token_last=True, **SMALL).double()
    short.load_state_dict(model.state_dict())
    for name in set(INDICATORS) - {"macs"}:  # which counts what is computed
        assert score(short, name, probe)["total"] == pytest.approx(whole[name]["total"], rel=1e-9), name


def test_baselines(model, probe):
    assert score(model, "params", probe) == {"total": sum(p.numel() for p in model.parameters())}
    assert score(model, "macs", probe) == {"total": complexity(model, 8).macs}


def matrices(model):
    return [p for p in model.parameters() if p.ndim > 1]


def test_snip(model, probe):
    loss = F.cross_entropy(model(probe.images), probe.labels)
    loss.backward()
    expected = sum((p * p.grad).abs().sum().item() for p in matrices(model))
    model.zero_grad()
    assert score(model, "snip", probe)["total"] == pytest.approx(expected, rel=1e-12)


def test_grasp_has_the_product_of_the_hessian_and_the_gradient(model, probe):
    def gradient():
        loss = F.cross_entropy(model(probe.images), probe.labels)
        return torch.autograd.grad(loss, matrices(model))

    found = score(model, "grasp", probe)["total"]
    weights, g, step = matrices(model), gradient(), 1e-6
    values = [w.detach().clone() for w in weights]
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, value, direction in zip(weights, values, g, strict=True):
                w.copy_(value + sign * step * direction)
        sides.append(gradient())
    product = sum((v * (a - b)).sum().item() for v, a, b in zip(values, *sides, strict=True)) / (2 * step)
    assert found == pytest.approx(-product, rel=1e-5)


def test_synflow(model, probe):
    found = score(model.float(), "synflow", probe)["total"]
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()
    model(torch.ones(1, 1, 8, 8, dtype=torch.double)).sum().backward()
    expected = sum((p * p.grad).abs().sum().item() for p in matrices(model))
    assert found == pytest.approx(expected, rel=1e-9)


def test_synflow_of_a_network_with_running_statistics():
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 3, 4, bias=False), torch.nn.Flatten(), torch.nn.Linear(75, 2, bias=False)
    )
    normed = torch.nn.Sequential(plain[0], torch.nn.BatchNorm2d(3, affine=False), *plain[1:])
    expected = score(plain, "synflow", Probe(8))["total"]
    assert score(normed, "synflow", Probe(8))["total"] == pytest.approx(expected / math.sqrt(1 + 1e-5), rel=1e-12)
    assert normed[1].running_var.dtype == torch.float32


def test_naswot_counts_agreements(probe):  # ledger A30
    model = build("vit_b16", dim=24, depth=1, **SMALL).double()
    hidden = []
    hook = model.layers[0].mlp.fc1.register_forward_hook(lambda *args: hidden.append(args[2]))
    model(probe.images)
    hook.remove()
    on = (hidden[0] > 0).flatten(1)
    kernel = torch.tensor([[(a == b).sum().item() for b in on] for a in on], dtype=torch.double)
    assert score(model, "naswot", probe)["total"] == pytest.approx(torch.logdet(kernel).item(), rel=1e-9)
    twins = Probe(8, probe.images[:1].repeat(3, 1, 1, 1))  # no network tells equal images apart
    with pytest.raises(ValueError, match="naswot of this VisionTransformer is -inf: it cannot be ranked"):
        score(model, "naswot", twins)


def test_te(model, probe):  # ledger A30
    found = score(model, "te", probe)
    rows = []
    for image in probe.images:
        g = torch.autograd.grad(model(image[None]).sum(), matrices(model))
        rows.append(torch.cat([x.flatten() for x in g]))
    values = torch.linalg.eigvalsh(torch.stack(rows) @ torch.stack(rows).T)
    assert found["condition"] == pytest.approx((values[-1] / values[0]).item(), rel=1e-6)
    assert 1 <= found["regions"] <= 1000
    assert found["total"] == pytest.approx(math.log(found["regions"]) - math.log(found["condition"]))


@pytest.mark.parametrize("kind", ["dasvit", "autoformer", "short"])
def test_regions_are_those_of_the_whole_network(kind, model):
    """Points so near each other that many are equal in the first MLP, some of which later ones tell apart."""
    if kind == "autoformer":
        model = build_autoformer(16, [1, 2], [2, 3], head_dim=8, **SMALL).double()
    if kind == "short":
        model = build("dasvit-cifar10", dim=24, depth=2, class_token_last=True, **SMALL).double()
    a, b = torch.randn(2, 1, 1, 8, 8, dtype=torch.double)
    images = a + torch.linspace(0, 0.2, 200, dtype=torch.double)[:, None, None, None] * (b - a)
    calls = record_linear(model.eval(), images)[1]
    hidden = [(call.y > 0).flatten(1) for call in calls if call.role == "mlp"][::2]
    first, whole = hidden[0].unique(dim=0), torch.cat(hidden, dim=1).unique(dim=0)
    assert 1 < len(first) < len(whole) < len(images)
    computed = []
    model.head.register_forward_hook(lambda _, inputs, __: computed.append(len(inputs[0])))
    assert regions(model, images, batch_size=7) == len(whole)
    assert regions(model, 1e3 * torch.randn(99, 1, 8, 8, dtype=torch.double)) == 99
    assert computed[-1] == 1  # which different ones do not need
    with pytest.raises(ValueError, match="VisionTransformer has no MLP: it has no activation patterns"):
        regions(build('{"format": 1, "nodes": [[[0, "msa:4"]]]}', dim=24, depth=1, **SMALL), images.float())


def test_a_call_of_a_linear_layer(model, probe):
    calls = record_linear(model, probe.images)[1]
    for number, call in enumerate(calls):
        found = linear_call(model, probe.images, number)
        assert found.weight is call.weight
        assert torch.equal(found.y, call.y)
    with pytest.raises(ValueError, match=f"has {len(calls)} calls of linear layers: none is {len(calls)}"):
        linear_call(model, probe.images, len(calls))


def test_noise_is_drawn_by_the_seed(model):
    first, again, other = (Probe(8, seed=seed).batch(model) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].dtype == torch.double
    assert first[1].max() < 5


def test_unknown_indicator(model):
    with pytest.raises(ValueError, match="unknown indicator 'luck'; known: dss, dss-released, synflow"):
        score(model, "luck")
