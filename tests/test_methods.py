"""The methods of the DARTS family against closed forms, and each as a search that is stopped and goes on."""

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributions import Dirichlet

from dasvit import SearchSettings, SearchSpace, Supernet, derive
from dasvit.engine.hardware import Hardware
from dasvit.methods.edges import EntangledEdge, PartialEdge, edge_maker
from dasvit.methods.inherited import inherited_accuracy, path_weights, random_path
from dasvit.methods.mixing import Moment, edge_weights, expected_weights, step_weights
from dasvit.methods.registry import METHODS
from dasvit.methods.regularisers import alpha_term, anchor, beta_decay, zero_one
from dasvit.methods.settings import RelaxationSettings, ScheduleSettings
from dasvit.plan import plan
from dasvit.relaxation import MixedEdge
from dasvit.space import Operation

SPACE = SearchSpace()
OPERATIONS = SPACE.operations
ALL = (OPERATIONS,) * len(SPACE.edges)
TARGETS = tuple(target for _, target in SPACE.edges)
SKIPS = torch.tensor([[op.kind == "skip" for op in OPERATIONS]] * 5)
QUICK = SearchSettings(
    dim=48,
    patch_size=4,
    stages=((1, 8, 2), (1, 4, 2)),
    schedule=ScheduleSettings(paths=8),
    hardware=Hardware("cpu"),
)


def at(step, steps=11, use="weights", seed=0, stage=0):
    return Moment(seed, stage, step, steps, use)


@pytest.fixture(scope="module")
def images(few_digits):
    return few_digits.train


# how α becomes mixing weights


def test_expected_weights_in_closed_form():
    alpha = torch.randn(5, 8, dtype=torch.float64)
    e = alpha.exp()
    softmax = expected_weights(alpha, RelaxationSettings(), TARGETS)
    torch.testing.assert_close(softmax, e / e.sum(1, keepdim=True))
    torch.testing.assert_close(
        expected_weights(alpha, RelaxationSettings(mix="sigmoid"), TARGETS), 1 / (1 + (-alpha).exp())
    )
    c = torch.where(alpha > 0, alpha + 1, e)  # elu(α) + 1
    dirichlet = expected_weights(alpha, RelaxationSettings(mix="dirichlet"), TARGETS)
    torch.testing.assert_close(dirichlet, c / c.sum(1, keepdim=True))
    uniform = expected_weights(alpha, RelaxationSettings(mix="uniform"), TARGETS)
    assert uniform.unique().tolist() == [1 / 8]


def test_weights_of_edges_are_a_softmax_over_what_enters_a_node():
    logits = torch.randn(5, dtype=torch.float64)
    own = edge_weights(logits, TARGETS)
    first, second = logits[:2].exp(), logits[2:].exp()
    torch.testing.assert_close(own, torch.cat([first / first.sum(), second / second.sum()]))
    mixed = edge_weights(logits, (2, 3, 2, 3, 3))  # whatever their order
    torch.testing.assert_close(mixed[[0, 2]], logits[[0, 2]].softmax(0))
    alpha = torch.cat([torch.randn(5, 8, dtype=torch.float64), logits[:, None]], dim=1)
    p = expected_weights(alpha, RelaxationSettings(partial=2), TARGETS)
    torch.testing.assert_close(p, alpha[:, :8].softmax(1) * own[:, None])
    strong = alpha.clone()
    strong[4, 8] += 100  # edge 2-3
    found = derive(expected_weights(strong, RelaxationSettings(partial=2), TARGETS), ALL, SPACE)
    assert 2 in [source for source, _ in found.nodes[1]]


def test_an_auxiliary_skip_is_a_weight_that_decays_to_zero():
    alpha, how = torch.randn(5, 8), RelaxationSettings(skip_bonus=1.0)
    p = alpha.softmax(1)
    for step, bonus in ((0, 1.0), (5, 0.5), (10, 0.0)):
        torch.testing.assert_close(step_weights(alpha, how, TARGETS, SKIPS, at(step)), p + bonus * SKIPS)
    torch.testing.assert_close(expected_weights(alpha, how, TARGETS), p)  # what is derived has no bonus


def test_an_auxiliary_skip_is_the_residual_that_it_stands_for():
    """DARTS−: ``β x + Σ p_o o(x)``."""
    edge = MixedEdge(OPERATIONS, 24)
    x, p = torch.randn(2, 5, 24), torch.rand(5, 8).softmax(1)[0]
    torch.testing.assert_close(edge(x, p + 0.3 * SKIPS[0]), edge(x, p) + 0.3 * x)


def test_identities_are_dropped_at_the_rate_of_the_stage():
    alpha, how = torch.randn(5, 8), RelaxationSettings(skip_dropout=(0.0, 0.4))
    p = expected_weights(alpha, how, TARGETS)
    assert torch.equal(step_weights(alpha, how, TARGETS, SKIPS, at(0)), p)
    moments = [at(step, 20_001, stage=1) for step in range(200)]
    drawn = torch.stack([step_weights(alpha, how, TARGETS, SKIPS, moment) for moment in moments])
    others, skip = drawn[:, ~SKIPS], drawn[:, SKIPS]
    assert torch.equal(others, p[~SKIPS].expand_as(others))
    assert 0.3 < (skip == 0).float().mean() < 0.5
    kept = (skip / p[SKIPS])[skip > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.6), rtol=0.02, atol=0)  # the mean stays
    assert torch.equal(step_weights(alpha, how, TARGETS, SKIPS, at(10, stage=1)), p)  # its last step


def test_a_dirichlet_draw_has_the_mean_and_the_variance_of_its_concentrations():
    alpha, how = torch.randn(5, 8, dtype=torch.float64), RelaxationSettings(mix="dirichlet")
    drawn = torch.stack([step_weights(alpha, how, TARGETS, SKIPS, at(step)) for step in range(4000)])
    known = Dirichlet(torch.nn.functional.elu(alpha) + 1)
    torch.testing.assert_close(drawn.sum(2), torch.ones(4000, 5, dtype=torch.float64))
    assert (drawn.mean(0) - known.mean).abs().max() < 6 * (known.variance / 4000).sqrt().max()
    torch.testing.assert_close(drawn.var(0), known.variance, rtol=0.25, atol=1e-4)


def test_a_dirichlet_draw_passes_a_gradient():
    """In the mean over draws, the gradient of ``Σ θ_o v_o`` is that of its expectation ``Σ c_o v_o / Σ c``."""
    alpha, how, v = torch.zeros(5, 8, requires_grad=True), RelaxationSettings(mix="dirichlet"), torch.arange(8.0)
    loss = sum((step_weights(alpha, how, TARGETS, SKIPS, at(step)) * v).sum() for step in range(4000)) / 4000
    (found,) = torch.autograd.grad(loss, alpha)
    torch.testing.assert_close(found, ((v - v.mean()) / 8).expand(5, 8), atol=0.06, rtol=0)


@pytest.mark.parametrize("how", [RelaxationSettings(mix="dirichlet"), RelaxationSettings(skip_dropout=(0.5,))])
def test_a_step_draws_by_its_own_key(how):
    alpha = torch.randn(5, 8)

    def drawn(moment):
        return step_weights(alpha, how, TARGETS, SKIPS, moment)

    state = torch.get_rng_state()
    expected = drawn(at(3, 1000))
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(7)
    assert torch.equal(drawn(at(3, 1000)), expected)
    others = [drawn(at(s, 1000)) for s in range(4, 24)]
    assert len({tuple(x.flatten().tolist()) for x in others}) > 10
    assert any(not torch.equal(drawn(at(s, 1000)), drawn(at(s, 1000, use="alpha"))) for s in range(20))


# the terms of α alone


def test_regularisers_in_closed_form():
    alpha = torch.randn(5, 8, dtype=torch.float64)
    p = 1 / (1 + (-alpha).exp())
    torch.testing.assert_close(zero_one(p), -((p - 0.5) ** 2).sum() / 40)
    torch.testing.assert_close(beta_decay(alpha), alpha.exp().sum(1).log().sum() / 5)
    c = torch.where(alpha > 0, alpha + 1, alpha.exp())
    torch.testing.assert_close(anchor(alpha), ((c - 1) ** 2).sum())
    assert zero_one(torch.tensor([[0.0, 1.0]])) < zero_one(torch.tensor([[0.4, 0.6]]))


def test_the_gradient_of_beta_decay_is_the_softmax():
    """So each α is pushed down by its own share: large ones most."""
    alpha = torch.randn(5, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(beta_decay(alpha), alpha)
    torch.testing.assert_close(gradient, alpha.softmax(1) / 5)


def test_terms_are_weighted_and_beta_grows():
    alpha = torch.randn(5, 9, dtype=torch.float64)
    assert alpha_term(alpha, RelaxationSettings(), 0.5) is None
    for progress in (0.0, 0.25, 1.0):
        found = alpha_term(alpha[:, :8], RelaxationSettings(beta=50.0), progress)
        torch.testing.assert_close(found, 50 * progress * beta_decay(alpha[:, :8]))
    both = alpha_term(alpha, RelaxationSettings(mix="sigmoid", zero_one=10.0, beta=2.0, partial=2), 1.0)
    torch.testing.assert_close(both, 10 * zero_one(alpha[:, :8].sigmoid()) + 2 * beta_decay(alpha[:, :8]))


# edges


@pytest.mark.parametrize("first", [None, 1])
def test_a_partial_edge_mixes_a_part_and_lets_the_rest_pass(first):
    edge = PartialEdge(OPERATIONS, 48, 2)
    x, p = torch.randn(2, 5, 48), 0.7 * torch.rand(8).softmax(0)
    part = x[..., :24]
    mixed = sum(p[i] * edge.module(op)(part, first) for i, op in enumerate(OPERATIONS))
    expected = torch.stack([mixed, 0.7 * x[:, :first, 24:]], dim=-1).flatten(-2)  # shuffled: one of each in turn
    torch.testing.assert_close(edge(x, p, first), expected)


@pytest.mark.parametrize("first", [None, 1])
def test_an_entangled_edge_at_one_hot_weights_is_the_operation(first):
    edge = EntangledEdge(OPERATIONS, 48).double()
    for parameter in edge.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    for i, op in enumerate(OPERATIONS):
        one = torch.nn.functional.one_hot(torch.tensor(i), 8).double()
        torch.testing.assert_close(edge(x, one, first), edge.module(op)(x, first), msg=str(op))


def test_an_entangled_edge_superposes_weights():
    """Each linear layer of the MLP has the weights ``Σ q_r`` times those of ratio r, filled up with zeros."""
    edge = EntangledEdge(OPERATIONS, 48).double()
    x, p = torch.randn(2, 5, 48, dtype=torch.float64), torch.randn(8, dtype=torch.float64).softmax(0)
    mlps = [(i, op, edge.module(op)) for i, op in enumerate(OPERATIONS) if op.kind == "mlp"]
    total, widest = sum(p[i] for i, *_ in mlps), mlps[-1][2].module
    w1, b1, w2 = (torch.zeros_like(t) for t in (widest.fc1.weight, widest.fc1.bias, widest.fc2.weight))
    for i, _, module in mlps:
        own, width = module.module, module.module.fc1.out_features
        w1[:width] += p[i] / total * own.fc1.weight
        b1[:width] += p[i] / total * own.fc1.bias
        w2[:, :width] += p[i] / total * own.fc2.weight
    h = torch.nn.functional.gelu(mlps[0][2].norm(x) @ w1.T + b1)
    expected = total * (h @ w2.T + widest.fc2.bias)
    others = sum(p[i] * edge.module(op)(x) for i, op in enumerate(OPERATIONS) if op.kind != "mlp")
    torch.testing.assert_close(edge(x, p), expected + others)


def test_an_entangled_edge_has_the_weights_of_the_widest():
    edge = EntangledEdge(OPERATIONS, 48)
    widest = sum(Operation.parse(name).spec.count(48, size) for name, size in (("msa:4", 4), ("mlp:2", 2)))
    assert sum(p.numel() for p in edge.parameters()) == widest
    assert all(p.grad_fn is None for p in edge.module(OPERATIONS[2]).parameters())


def test_a_path_edge_computes_nothing_else():
    edge = edge_maker(RelaxationSettings(mix="uniform"))(OPERATIONS, 24)
    x, called = torch.randn(2, 5, 24), []
    for key, module in edge.operations.items():
        module.register_forward_hook(lambda *_, key=key: called.append(key))
    one = torch.zeros(8)
    assert torch.equal(edge(x, one), torch.zeros_like(x))
    assert torch.equal(edge(x, one, 1), torch.zeros_like(x[:, :1]))
    one[3] = 1.0
    torch.testing.assert_close(edge(x, one, 1), edge.module(OPERATIONS[3])(x, 1))
    assert set(called) == {"msa:8"}


def supernet(how, **more):
    torch.manual_seed(1)
    sizes = {"depth": 2, "dim": 48, "image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 10}
    made = Supernet(SPACE, relaxation=how, make_edge=edge_maker(how), **sizes, **more).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize(
    "how",
    [RelaxationSettings(), RelaxationSettings(entangled=True), RelaxationSettings(mix="uniform")],
    ids=["plain", "entangled", "path"],
)
def test_a_path_of_the_supernet_is_the_extracted_network(how):
    net, rng, x = supernet(how), random.Random(0), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    for _ in range(10):
        genotype = random_path(SPACE, ALL, rng)
        found = net(x, path_weights(genotype, SPACE, ALL).double())
        torch.testing.assert_close(found, net.extract(genotype)(x), atol=1e-9, rtol=1e-9)


def test_operations_on_a_part_are_no_network():
    net = supernet(RelaxationSettings(partial=2))
    with pytest.raises(ValueError, match="part of the channels have no weights"):
        net.extract(net.genotype())


def test_random_paths_are_even_and_of_the_space():
    rng = random.Random(0)
    drawn = [random_path(SPACE, ALL, rng) for _ in range(3000)]
    assert all(genotype in SPACE for genotype in drawn)
    sources = Counter(tuple(source for source, _ in genotype.nodes[1]) for genotype in drawn)
    operations = Counter(op for genotype in drawn for _, op in genotype.edges)
    assert len(sources) == 3
    assert len(operations) == 7
    assert min(sources.values()) > 850
    assert max(operations.values()) < 1.15 * min(operations.values())


def test_inherited_accuracy_is_that_of_the_extracted_network(images):
    net = supernet(RelaxationSettings()).float()
    batches = list(images.batches(64, image_size=8))
    genotype = random_path(SPACE, ALL, random.Random(3))
    network = net.extract(genotype).eval()
    with torch.no_grad():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)
    computed = []
    for edge in (module for module in net.modules() if isinstance(module, MixedEdge)):
        for operation in edge.operations.values():
            operation.register_forward_hook(lambda *_: computed.append(1))
    assert inherited_accuracy(net, genotype, batches) == right / len(images)
    assert len(computed) == len(batches) * len(net.layers) * len(list(genotype.edges))  # the path and nothing else
    assert net.training
    assert not any(edge.sparse for edge in net.modules() if isinstance(edge, MixedEdge))


def test_what_has_no_weight_is_not_computed_and_adds_nothing():
    edge, x, p = MixedEdge(OPERATIONS, 24), torch.randn(2, 5, 24), torch.rand(8)
    p[[2, 5, 6]] = 0
    expected = edge(x, p)
    edge.sparse = True
    torch.testing.assert_close(edge(x, p), expected)


# derivation


def test_at_most_so_many_identities_are_derived():
    p = torch.full((5, 8), 0.05)
    p[:, 1] = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])  # identities everywhere, ever weaker
    p[:, 4] = 0.2  # msa:12
    for limit in (None, 3, 2, 1, 0):
        found = derive(p, ALL, SPACE, limit)
        assert found in SPACE
        count = sum(op.kind == "skip" for _, op in found.edges)
        assert count == (4 if limit is None else limit)
        kept = [edge for edge, op in found.edges if op.kind == "skip"]
        assert kept == [(0, 2), (1, 2), (0, 3), (1, 3)][: len(kept)]  # the strongest
    bare = ((OPERATIONS[0], OPERATIONS[1]),) * 5
    assert sum(op.kind == "skip" for _, op in derive(p[:, :2], bare, SPACE, 1).edges) == 4  # there is nothing else


# settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relaxation": RelaxationSettings(partial=2), "joint": "on"}, "joint on with partial channels"),
        ({"relaxation": RelaxationSettings(entangled=True), "recompute": True}, "recompute with entangled"),
        ({"relaxation": RelaxationSettings(entangled=True), "hardware": Hardware(compile=True)}, "compile with entang"),
        ({"relaxation": RelaxationSettings(partial=5)}, "partial 5 does not divide dim 48"),
        ({"relaxation": RelaxationSettings(beta=1.0), "hardware": Hardware(capture="on")}, "capture on with steps"),
        ({"schedule": ScheduleSettings(alpha_warmup=0.5), "hardware": Hardware(capture="on")}, "capture on with steps"),
        ({"relaxation": RelaxationSettings(mix="uniform")}, "mix uniform with 2 stages"),
        ({"schedule": ScheduleSettings(stop_skips=2)}, "stop_skips with 2 stages"),
        ({"relaxation": RelaxationSettings(mix="uniform"), "stages": ((1, 8, 1),), "order": 2}, "order 2 with mix"),
    ],
)
def test_what_does_not_go_together_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(QUICK, **change)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"beta": -1.0}, "beta -1.0 is negative"),
        ({"anchor": 1.0}, "anchor with mix softmax"),
        ({"zero_one": 1.0}, "zero_one with mix softmax"),
        ({"skip_dropout": (0.5, 1.0)}, "skip_dropout"),
        ({"partial": 0}, "partial 0"),
        ({"partial": 2, "entangled": True}, "entangled with partial"),
        ({"mix": "uniform", "skip_bonus": 1.0}, "skip_bonus with mix uniform"),
    ],
)
def test_relaxations_are_checked(values, words):
    with pytest.raises(ValueError, match=words):
        RelaxationSettings(**values)


@pytest.mark.parametrize("values", [{"alpha_warmup": 1.0}, {"stop_skips": 0}, {"max_skips": -1}, {"paths": 0}])
def test_schedules_are_checked(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        ScheduleSettings(**values)


# the table


@pytest.mark.parametrize("name", METHODS)
def test_a_method_applied_twice_is_applied_once(name):
    once = METHODS[name](QUICK)
    assert METHODS[name](once) == once
    assert sum(epochs for *_, epochs in once.stages) == 4
    assert once.lr == QUICK.lr
    assert once.alpha_lr == QUICK.alpha_lr
    assert once.seed == QUICK.seed


def test_a_method_leaves_what_else_is_asked_for():
    asked = replace(QUICK, relaxation=RelaxationSettings(beta=3.0), schedule=ScheduleSettings(hessian=True))
    for name in ("darts", "tangle", "darts-minus", "p-darts", "pc-darts", "dasvit-unfair"):
        made = METHODS[name](asked)
        assert made.relaxation.beta == 3
        assert made.schedule.hessian, name
    with pytest.raises(ValueError, match="beta with mix uniform"):
        METHODS["one-shot"](asked)


def test_the_anchor_of_drnas_is_the_weight_decay_of_its_program():
    settings = METHODS["drnas"](QUICK)
    assert settings.alpha_weight_decay == 0
    alpha = torch.rand(5, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(alpha_term(alpha, settings.relaxation, 0.5), alpha)
    torch.testing.assert_close(gradient, 1e-3 * alpha)


@pytest.mark.parametrize(("dim", "parts"), [(48, 2), (96, 4), (192, 4), (768, 4)])
def test_pc_darts_takes_a_quarter_of_the_channels_where_heads_divide_it(dim, parts):
    settings = METHODS["pc-darts"](replace(QUICK, dim=dim))
    assert settings.relaxation.partial == parts
    assert all((dim // parts) % heads == 0 for heads in settings.space.heads)
    assert METHODS["pc-darts"](settings) == settings


def test_methods_differ_and_cite_a_paper_of_the_bibliography():
    made = {name: METHODS[name](QUICK) for name in METHODS}
    assert len({repr(settings) for settings in made.values()}) == len(METHODS)
    entries = (Path(__file__).parents[1] / "book/references.bib").read_text()
    for name, method in METHODS.items():
        assert f"{{{method.cites}," in entries, name
        assert method.values, name


def test_parts_of_dasvit_are_switched_off_one_at_a_time():
    whole, parts = QUICK, {name: METHODS[name](QUICK) for name in METHODS if name.startswith("dasvit-")}
    assert len(parts) == 3
    assert replace(parts["dasvit-all-tokens"], keep_ratio=whole.keep_ratio) == whole
    assert replace(parts["dasvit-unfair"], fairness=whole.fairness) == whole
    assert replace(parts["dasvit-one-stage"], stages=whole.stages) == whole
    assert whole not in parts.values()


def test_every_method_can_be_planned():
    for name, method in METHODS.items():
        assert all(stage.peak_bytes > 0 for stage in plan(method(QUICK))), name


def test_progress_runs_from_zero_to_one():
    assert [at(step, 5).progress for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert at(0, 1).progress == 0
    assert math.isclose(at(9, 5).progress, 1)
