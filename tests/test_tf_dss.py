import pytest
import timm
import torch
from plain_dss import plain_dss

from dasvit import build, genotypes
from dasvit.autoformer import build_autoformer
from dasvit.training_free import SPACES, Shape, dss
from dasvit.training_free.diversity import nuclear_norm, nuclear_norm_of_product
from dasvit.training_free.roles import attentions, record_linear

SMALL = {"image_size": 32, "patch_size": 8, "num_classes": 10}


def networks():
    yield "vit_b16", lambda: build("vit_b16", dim=24, depth=2, **SMALL)
    for name in genotypes():
        yield name, lambda name=name: build(name, dim=24, depth=3, **SMALL)
    skips = '{"format": 1, "nodes": [[[0, "skip"], [1, "msa:4"]], [[1, "skip"], [2, "mlp:2"]]]}'
    yield "with skips", lambda: build(skips, dim=24, depth=3, **SMALL)
    yield "autoformer", lambda: build_autoformer(20, [1, 2], [3.5, 4], head_dim=8, **SMALL)
    plain = {"head_dim": 8, "relative_position": False}
    yield "no relative position", lambda: build_autoformer(20, [1, 2], [3.5, 4], **plain, **SMALL)
    # more dimensions than tokens, so that gradients go through their triangular factors
    yield "wide", lambda: build_autoformer(64, [2, 3], [1, 1], head_dim=32, **SMALL)


@pytest.fixture(params=[pytest.param(make, id=name) for name, make in networks()])
def network(request):
    model = request.param().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_equals_the_plain_way(network, mode):  # ledger A27, A28
    state = {name: value.clone() for name, value in network.state_dict().items()}
    score = dss(network, 32, mode)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    msa, mlp = plain_dss(network, 32, mode)
    assert score.msa == pytest.approx(msa, rel=1e-9)
    assert score.mlp == pytest.approx(mlp, rel=1e-9)
    assert score.total == score.msa + score.mlp
    network.load_state_dict(state)
    single = dss(network.float(), 32, mode)
    assert (single.msa, single.mlp) == pytest.approx((score.msa, score.mlp), rel=5e-5)


def test_a_candidate_of_the_published_space():
    space, shape = SPACES["autoformer-t"], Shape(seed=3)
    model = space.build(123456789, shape)
    candidate = space[123456789]
    double = build_autoformer(candidate.dim, candidate.num_heads, candidate.mlp_ratios, gathered=True).double()
    double.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    for mode in ("released", "paper"):
        assert dss(model, 224, mode).total == pytest.approx(sum(plain_dss(double, 224, mode)), rel=5e-5)


def test_known_norms_change_nothing():
    space, shape, norms = SPACES["autoformer-xs"], Shape(16, 4, 3, 10), {}
    for number in (5, 12345, 1234567, 1234568, 5):
        for mode in ("paper", "released"):
            known = dss(space.build(number, shape), 16, mode, norms)
            assert known == dss(space.build(number, shape), 16, mode)
    assert norms


def test_deep_networks_and_overflow():
    model = build("vit_b16", dim=24, depth=24, **SMALL)
    exact = dss(model.double(), 32)
    assert dss(model.float(), 32).total == pytest.approx(exact.total, rel=5e-5)
    with torch.no_grad():
        model.head.weight.mul_(1e38)  # the gradients overflow float32, and are taken in float64
    score = dss(model, 32)
    assert next(model.parameters()).dtype == torch.float32
    assert score.total == pytest.approx(dss(model.double(), 32).total, rel=1e-6)
    with torch.no_grad():
        model.head.weight.mul_(float("nan"))
    with pytest.raises(ValueError, match=r"the DSS score of this VisionTransformer is nan, also in float64"):
        dss(model, 32)


@pytest.mark.parametrize("classes", [1, 24, 48, 1000])
def test_the_number_of_classes_decides_about_no_role(classes):
    model = build("vit_b16", dim=24, depth=2, **SMALL | {"num_classes": classes})
    _, calls = record_linear(model, torch.ones(1, 3, 32, 32))
    roles = [call.role for call in calls]
    assert roles == ["qkv", "projection", "mlp", "mlp"] * 2 + ["classifier"]
    assert calls[-1].weight is model.head.weight


def names_by_role(model, size=224):
    names = {id(p): name for name, p in model.named_parameters()}
    _, calls = record_linear(model.eval(), torch.ones(1, 3, size, size))
    found = {}
    for call in calls:
        found.setdefault(call.role, []).append(names[id(call.weight)])
    pairs = [[[names[id(c.weight)] for c in part] for part in pair] for pair in attentions(calls)]
    return found, pairs


def test_roles_in_networks_of_timm():  # ledger A28
    found, pairs = names_by_role(timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=192))
    assert found["classifier"] == ["head.weight"]
    assert found["mlp"] == [f"blocks.{i}.mlp.fc{j}.weight" for i in (0, 1) for j in (1, 2)]
    assert pairs == [[[f"blocks.{i}.attn.qkv.weight"], [f"blocks.{i}.attn.proj.weight"]] for i in (0, 1)]
    found, _ = names_by_role(timm.create_model("deit_tiny_distilled_patch16_224", depth=1))
    assert found["classifier"] == ["head.weight", "head_dist.weight"]
    found, _ = names_by_role(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0))
    assert "classifier" not in found  # features, no logits
    _, pairs = names_by_role(timm.create_model("cait_xxs24_224", depth=1))  # separate queries, keys and values
    assert [
        ["blocks_token_only.0.attn." + n + ".weight" for n in "qkv"],
        ["blocks_token_only.0.attn.proj.weight"],
    ] in pairs


def test_timm_and_ours_score_alike():
    theirs = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, patch_size=8, num_classes=10).double()
    score = dss(theirs, 32)
    names = [n for n, _ in theirs.named_parameters()]
    attention = sum("attn" in n and n.endswith("weight") and "norm" not in n for n in names)
    assert attention == 4
    with torch.no_grad():
        for p in theirs.parameters():
            p.abs_()
    theirs(torch.ones(1, 3, 32, 32, dtype=torch.double)).sum().backward()
    parts = dict(theirs.named_parameters())
    msa = sum(torch.linalg.norm(p, "nuc") * torch.linalg.norm(p.grad, "nuc") for n, p in parts.items()
              if n.endswith(("attn.qkv.weight", "attn.proj.weight")))  # fmt: skip
    mlp = sum((p * p.grad).abs().sum() for n, p in parts.items() if n.endswith(("fc1.weight", "fc2.weight")))
    assert (score.msa, score.mlp) == pytest.approx((msa.item(), mlp.item()), rel=1e-9)


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match="unknown mode 'both'; known: paper, released"):
        dss(build("vit_b16", dim=24, depth=1, **SMALL), 32, "both")
    with pytest.raises(ValueError, match=r"nn.MultiheadAttention hides its linear layers"):
        record_linear(torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).train(), torch.ones(1, 3, 8))
    with pytest.raises(ValueError, match="Sequential has no linear layers"):
        dss(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()), 8)


@pytest.mark.parametrize(("n", "p", "q"), [(5, 40, 30), (30, 8, 12), (20, 25, 22)])
def test_nuclear_norms(n, p, q):
    a, b = torch.randn(n, p).double(), torch.randn(n, q).double()
    exact = torch.linalg.norm(a.T @ b, "nuc").item()
    assert nuclear_norm(a.T @ b) == pytest.approx(exact, rel=1e-12)
    assert nuclear_norm_of_product(a, b) == pytest.approx(exact, rel=1e-12)
    assert nuclear_norm_of_product(a.float(), b.float()) == pytest.approx(exact, rel=2e-6)
