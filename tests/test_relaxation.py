import random

import pytest
import torch
from plain_supernet import PlainSupernet

from dasvit import Operation, SearchSpace, Supernet, derive, prune
from dasvit.engine.memory import saved_bytes
from dasvit.lean import normalise
from dasvit.relaxation import MixedEdge

SMALL = {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 5, "dim": 24, "depth": 2}
SPACE = SearchSpace()
ALL = (SPACE.operations,) * 5


def supernet(space=SPACE, **settings):
    return Supernet(space, **SMALL | settings).double()


def one_hot(genotype, space=SPACE):
    """Mixing weights that stand for exactly one architecture: zero on the edges it leaves out."""
    chosen = dict(genotype.edges)
    rows = [[float(op == chosen.get(edge, space.operations[0])) for op in space.operations] for edge in space.edges]
    return torch.tensor(rows, dtype=torch.double)


def test_mixed_edge_is_the_weighted_sum():
    edge, x = MixedEdge(SPACE.operations, 24).double(), torch.randn(2, 5, 24, dtype=torch.double)
    p = torch.rand(8, dtype=torch.double)
    total = sum(w * edge.module(op)(x) for w, op in zip(p, SPACE.operations, strict=True))
    torch.testing.assert_close(edge(x, p), total)


def random_edges(count):
    rng = random.Random(0)
    return [SPACE.sample(rng) for _ in range(count)]


@pytest.mark.parametrize("edge", SPACE.edges, ids=str)
@pytest.mark.parametrize("operation", SPACE.operations, ids=str)
def test_one_hot_weights_give_the_derived_network(edge, operation):
    model, images = supernet(), torch.randn(2, 1, 8, 8, dtype=torch.double)
    rng = random.Random(SPACE.edges.index(edge))
    genotype = next(g for g in (SPACE.sample(rng) for _ in range(999)) if edge in dict(g.edges))
    nodes = [
        tuple((s, operation if (s, t) == edge else op) for s, op in node) for t, node in enumerate(genotype.nodes, 2)
    ]
    genotype = type(genotype)(tuple(nodes))
    torch.testing.assert_close(model(images, one_hot(genotype)), model.extract(genotype)(images), atol=1e-12, rtol=0)


def test_one_hot_holds_in_other_spaces_too():
    for space in (SearchSpace(nodes=3), SearchSpace(nodes=2, inputs=1), SearchSpace(heads=(2,), mlp_ratios=())):
        model, images = supernet(space), torch.randn(2, 1, 8, 8, dtype=torch.double)
        genotype = space.sample(random.Random(1))
        got = model(images, one_hot(genotype, space))
        torch.testing.assert_close(got, model.extract(genotype)(images), atol=1e-12, rtol=0)


def test_alpha_is_saved_with_the_weights():
    model = supernet()
    assert model.state_dict()["alpha"].shape == (5, 8)
    assert [n for n in model.state_dict() if "alpha" in n] == ["alpha"]
    assert all(p is not model.alpha for p in model.network_parameters)
    assert len(model.network_parameters) == len(list(model.parameters())) - 1


def test_mixing_weights_start_uniform_and_sum_to_one():
    p = supernet().mixing_weights()
    torch.testing.assert_close(p.sum(1), torch.ones(5, dtype=torch.double))
    torch.testing.assert_close(p, torch.full((5, 8), 1 / 8, dtype=torch.double), atol=1e-3, rtol=0)


def test_mixing_weights_stay_exact_in_half_precision():
    model = Supernet(SPACE, **SMALL).to(torch.bfloat16)
    assert model.mixing_weights().dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        model = Supernet(SPACE, **SMALL)
        assert model.mixing_weights().dtype == torch.float32
        assert model(torch.randn(2, 1, 8, 8)).isfinite().all()


def test_every_alpha_but_that_of_a_lone_zero_gets_a_gradient():
    model = supernet()
    model(torch.randn(2, 1, 8, 8, dtype=torch.double)).square().sum().backward()
    assert model.alpha.grad.abs().min() > 0


def test_derive_by_hand():
    p = torch.tensor(
        [
            # none skip msa4 msa8 msa12 mlp.5 mlp1 mlp2
            [0.90, 0.01, 0.02, 0.01, 0.01, 0.03, 0.01, 0.01],  # 0-2: mlp:0.5, zero never wins
            [0.10, 0.10, 0.10, 0.40, 0.10, 0.10, 0.05, 0.05],  # 1-2: msa:8
            [0.00, 0.50, 0.10, 0.10, 0.10, 0.10, 0.05, 0.05],  # 0-3: skip, the strongest
            [0.00, 0.20, 0.10, 0.10, 0.10, 0.10, 0.10, 0.30],  # 1-3: mlp:2, the weakest: dropped
            [0.00, 0.10, 0.10, 0.10, 0.40, 0.10, 0.10, 0.10],  # 2-3: msa:12
        ]
    )
    genotype = derive(p, ALL, SPACE)
    assert genotype.to_json() == (
        '{"format": 1, "nodes": [[[0, "mlp:0.5"], [1, "msa:8"]], [[0, "skip"], [2, "msa:12"]]]}'
    )
    assert genotype in SPACE


def test_derive_takes_the_first_of_equals():
    genotype = derive(torch.full((5, 8), 1 / 8), ALL, SPACE)
    assert genotype.to_json() == '{"format": 1, "nodes": [[[0, "skip"], [1, "skip"]], [[0, "skip"], [1, "skip"]]]}'


def test_prune_drops_the_weakest_and_keeps_the_order():
    alpha = torch.tensor([[5.0, 1, 4, 2, 3, 0, 8, 7]]).repeat(5, 1)
    survivors, columns = prune(alpha, ALL, 3)
    assert [str(op) for op in survivors[0]] == ["none", "mlp:1", "mlp:2"]
    assert columns == [[0, 6, 7]] * 5
    assert torch.equal(alpha.gather(1, torch.tensor(columns))[0], torch.tensor([5.0, 8, 7]))
    again, _ = prune(alpha[:, columns[0]], survivors, 2)
    assert [str(op) for op in again[4]] == ["mlp:1", "mlp:2"]


def test_pruned_supernet_has_only_the_survivors():
    survivors, _ = prune(torch.arange(40.0).view(5, 8), ALL, 3)
    model = supernet(candidates=survivors)
    assert model.alpha.shape == (5, 3)
    assert model.genotype() in SPACE
    with pytest.raises(ValueError, match="msa:4 is not a candidate of edge 0-2"):
        model.extract(next(g for g in SPACE if dict(g.edges).get((0, 2)) == Operation("msa", 4)))


@pytest.mark.parametrize("keep", [1, 0, 9])
def test_prune_refuses(keep):
    with pytest.raises(ValueError, match=f"cannot keep {keep} of 8"):
        prune(torch.zeros(5, 8), ALL, keep)


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        (ALL[:4], "candidates for 4 edges"),
        ((*ALL[:4], ALL[0][:3]), "of equal length"),
        (((Operation("none"),),) * 5, "no operation but zero"),
        (((Operation("msa", 3), Operation("skip")),) * 5, "each once, from the space"),
        (((Operation("skip"), Operation("skip")),) * 5, "each once, from the space"),
    ],
)
def test_candidates_are_checked(candidates, words):
    with pytest.raises(ValueError, match=words):
        supernet(candidates=candidates)


def everything_in_a_node(recompute=False):
    """A mixed edge and inputs, nothing of which is zero or one by accident."""
    edge = MixedEdge(SPACE.operations, 24, recompute).double()
    for parameter in edge.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 24, dtype=torch.double, requires_grad=True)
    return edge, x, torch.rand(8, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("first", [None, 1])
@pytest.mark.parametrize("asked", ["everything", "p", "p and x", "x and weights"])
def test_lean_terms_are_the_weighted_operations(first, asked, recompute):
    edge, x, p = everything_in_a_node(recompute)
    parameters = list(edge.parameters())
    wanted = {
        "everything": [x, p, *parameters],
        "p": [p],
        "p and x": [x, p],
        "x and weights": [x, *parameters],
    }[asked]
    for tensor in (x, p, *parameters):
        tensor.requires_grad_(any(tensor is w for w in wanted))
    results = []
    for x_hat in (None, normalise(x)):
        y = edge(x, p, first, x_hat)
        gradients = torch.autograd.grad(y.square().sum(), wanted, materialize_grads=True)
        results.append([y, *gradients])
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-10)


def test_the_weights_gradient_of_a_frozen_norm_is_the_same():
    edge, x, p = everything_in_a_node()
    norms = [q for name, q in edge.named_parameters() if "norm" in name]
    others = [q for name, q in edge.named_parameters() if "norm" not in name]
    for parameter in norms:
        parameter.requires_grad_(False)
    results = [torch.autograd.grad(edge(x, p, None, h).square().sum(), others) for h in (None, normalise(x))]
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_supernet_is_that_of_the_plain_way(recompute):
    ours = Supernet(SPACE, **SMALL, recompute=recompute, class_token_last=True).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain, images = PlainSupernet(ours), torch.randn(3, 1, 8, 8, dtype=torch.double)
    theirs = [plain.alpha, *plain.trunk.parameters()]
    mine = [ours.alpha, *ours.network_parameters]
    results = []
    for model, parameters in ((plain, theirs), (ours, mine)):
        logits = model(images)
        results.append([logits, *torch.autograd.grad(logits.square().sum(), parameters)])
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-10)


def test_recomputation_keeps_less():
    images, kept = torch.randn(3, 1, 8, 8), []
    for recompute in (False, True):
        model = Supernet(SPACE, **SMALL, recompute=recompute)
        kept.append(saved_bytes(lambda model=model: model(images).sum().backward()))
    assert kept[0] > 4 * kept[1] > 0


def test_attention_maps_of_the_supernet_are_those_of_the_network_in_it():
    ours = Supernet(SearchSpace(), depth=1, dim=24, image_size=8, patch_size=2, in_channels=1, num_classes=5).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(3, 1, 8, 8, dtype=torch.double)
    _, inside = ours(images, intermediates=True)
    operation = ours.layers[0].edges["0-2"].module(Operation.parse("msa:4"))
    expected = operation.msa.intermediates(operation.norm(ours.embed(images)))["attention"]
    torch.testing.assert_close(inside["layers.0.edges.0-2.operations.msa:4.msa.attention"], expected)
