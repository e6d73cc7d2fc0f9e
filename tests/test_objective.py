import json
import math
from dataclasses import replace

import own_operations  # noqa: F401  (registers operations)
import pytest
import torch

from dasvit import Genotype, SearchSettings, SearchSpace, build, complexity, latency, search
from dasvit.choosing import NEAR, likeliest, reach
from dasvit.costs import (
    Shape,
    Target,
    _counted,
    expected_cost,
    operation_cost,
    price_list,
    read_amount,
    read_seconds,
    trunk_cost,
)
from dasvit.engine.hardware import Hardware
from dasvit.methods.settings import RelaxationSettings, ScheduleSettings
from dasvit.objective import Heading
from dasvit.relaxation import derive
from dasvit.space import Operation

SPACE = SearchSpace()
ALL = (SPACE.operations,) * len(SPACE.edges)
SIZES = {"image_size": (12, 8), "patch_size": 4, "in_channels": 3, "num_classes": 7}
SHAPE = Shape(tokens=7, dim=24, depth=3, patch_pixels=48, classes=7)
TINY = SearchSettings(dim=24, stages=((1, 8, 2), (2, 5, 2), (2, 3, 2)), lr=2e-3, hardware=Hardware("cpu", "32-true"))


def drawn(seed):
    return torch.randn(len(SPACE.edges), len(SPACE.operations), generator=torch.Generator().manual_seed(seed)).softmax(
        1
    )


@pytest.mark.parametrize("seed", range(20))
def test_without_conditions_the_likeliest_is_what_is_derived(seed):
    assert likeliest(drawn(seed), ALL, SPACE) == derive(drawn(seed), ALL, SPACE)


def macs(op, _target=None):
    return operation_cost(op, "macs", SHAPE)


@pytest.fixture(scope="module")
def encoders():
    """Every encoder of the space, with what a layer of it costs."""
    return [(genotype, sum(macs(op) for _, op in genotype.edges)) for genotype in SPACE]


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("share", [None, 0.2, 0.5, 0.9])
def test_the_choice_is_the_best_of_all(encoders, attends, share):
    weights, edges = drawn(0), SPACE.edges
    prices = [price for _, price in encoders]
    least, most = reach(ALL, SPACE, macs)
    assert (least, most) == pytest.approx((min(prices), max(prices)))
    target = None if share is None else least + share * (most - least)
    found = likeliest(weights, ALL, SPACE, attends=attends, cost=macs, target=target)
    allowed = [(genotype, price) for genotype, price in encoders if genotype.has_attention or not attends]
    if target is not None:
        nearest = min(abs(price / target - 1) for _, price in allowed)
        reached = max(NEAR, nearest)
        allowed = [(genotype, price) for genotype, price in allowed if abs(price / target - 1) <= reached + 1e-9]

    def likelihood(genotype):
        return sum(math.log(weights[edges.index(e), SPACE.operations.index(op)]) for e, op in genotype.edges)

    assert found in [genotype for genotype, _ in allowed]
    assert likelihood(found) >= max(likelihood(genotype) for genotype, _ in allowed) - 1e-9


@pytest.mark.parametrize("unit", ["params", "macs"])
@pytest.mark.parametrize("text", ["published", "dwconv"])
def test_costs_are_those_of_the_network(unit, text):
    extra = '{"format": 1, "nodes": [[[0, "mlp:2"], [1, "dwconv:3"]], [[1, "skip"], [2, "msa:4"]]]}'
    genotype = Genotype.from_json(extra) if text == "dwconv" else SPACE[4711]
    network = build(genotype, dim=24, depth=3, **SIZES)
    counted = complexity(network, (12, 8))
    cost = trunk_cost(unit, SHAPE) + 3 * sum(operation_cost(op, unit, SHAPE) for _, op in genotype.edges)
    assert cost == (counted.parameters if unit == "params" else counted.macs)


@pytest.mark.parametrize("name", ["msa:4", "mlp:0.5", "dwconv:3", "gated:2"])
def test_an_operation_without_closed_form_is_counted(name):
    operation = Operation.parse(name)
    assert _counted(operation, SHAPE) == operation_cost(operation, "macs", SHAPE)


def test_an_operation_on_a_grid_is_counted_whatever_the_shape():
    """5 x 10 patches are counted as such: not a patch is left out."""
    operation, shape = Operation.parse("dwconv:3"), replace(SHAPE, tokens=51)
    assert _counted(operation, shape) == operation_cost(operation, "macs", shape)


def test_expected_cost_of_a_decided_edge_is_its_price_and_has_a_gradient():
    space = SearchSpace(nodes=1)
    candidates = (space.operations,) * 2
    prices = price_list(candidates, space, "params", SHAPE)
    alpha = torch.full((2, 8), -50.0, dtype=torch.float64)
    alpha[0, 3] = alpha[1, 6] = 50.0
    alpha.requires_grad_()
    cost = expected_cost(alpha.softmax(1), prices, space)
    assert cost.item() == pytest.approx((prices[0, 3] + prices[1, 6]).item())
    torch.autograd.gradcheck(
        lambda a: expected_cost(a.softmax(1), prices, space), torch.randn(2, 8).double().requires_grad_()
    )


@pytest.mark.parametrize(("text", "value"), [("2G", 2e9), ("350k", 350e3), ("1.5M", 1.5e6), ("12", 12.0)])
def test_amounts(text, value):
    assert read_amount(text) == value


@pytest.mark.parametrize(("text", "value"), [("5ms", 5e-3), ("800us", 8e-4), ("0.1s", 0.1)])
def test_times(text, value):
    assert read_seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "0", "2X", "-1", "G", "nan", "1e400"])
def test_no_amounts(text):
    with pytest.raises(ValueError, match="is no amount: write"):
        read_amount(text)
    with pytest.raises(ValueError, match="is no time: write"):
        read_seconds(text)


def times(depth, tokens, price=lambda op: 1e-4):
    """A table of times in which an operation in the last node takes four fifths of what it takes in another."""
    added = {str(op): price(op) for op in SPACE.operations if op.spec.module is not None} | {"skip": 0.0}
    sizes = {"format": 2, "tokens": tokens, "dim": 24, "depth": depth}
    return sizes | {"seconds": {"trunk": 2e-4, **added}, "last": {name: 0.8 * t for name, t in added.items()}}


TIMES = json.dumps(times(2, 17, lambda op: {"msa": 9e-5, "mlp": 4e-5}[op.kind] + 1e-6 * float(op.size)))


def aim(unit, value):
    table = {"latency_table": TIMES} if unit == "latency" else {}
    return Target(**{f"target_{unit}": value}, **table)


def spread(unit, images, shares):
    """Targets so far into the range of what networks of ``TINY`` cost."""
    heading = Heading(replace(TINY, target=aim(unit, 4e-4 if unit == "latency" else 1.5e4)), images)
    least, most = (heading.trunk + 2 * cost for cost in reach(ALL, SPACE, heading.price))
    return [least + share * (most - least) for share in shares]


def test_an_operation_in_the_last_node_has_its_own_time():
    where = {
        last: operation_cost(Operation.parse("msa:4"), "latency", SHAPE, json.dumps(times(3, 7)), last=last)
        for last in (False, True)
    }
    assert where == {False: 1e-4, True: 0.8e-4}
    prices = price_list(ALL, SPACE, "latency", SHAPE, json.dumps(times(3, 7)))
    into_last = [target == SPACE.edges[-1][1] for _, target in SPACE.edges]
    for row, last in zip(prices, into_last, strict=True):
        assert row[SPACE.operations.index(Operation.parse("msa:4"))] == where[last]
    genotype = Genotype.from_json('{"format": 1, "nodes": [[[0, "msa:4"], [1, "skip"]], [[1, "skip"], [2, "mlp:2"]]]}')
    foretold = latency.predict(genotype, SHAPE, json.dumps(times(3, 7)), SPACE)
    assert foretold == pytest.approx(2e-4 + 3 * (1e-4 + 0.8e-4))


@pytest.mark.parametrize("slower", [1.0, 1.25])
def test_a_table_is_right_where_times_add_up(slower, monkeypatch):
    """Whole networks whose operations take so much longer than alone are foretold to the last digit."""
    price = {"skip": 0.0, "msa:4": 3e-4, "msa:8": 4e-4, "msa:12": 5e-4, "mlp:0.5": 1e-4, "mlp:1": 2e-4, "mlp:2": 4e-4}

    def timed(genotypes, images, **sizes):
        found = []
        for genotype in genotypes:
            node = genotype.inputs + len(genotype.nodes) - 1
            added = [(0.8 if target == node else 1.0) * price[str(op)] for (_, target), op in genotype.edges]
            whole = sum(op.kind != "skip" for _, op in genotype.edges) > 1
            found.append(1e-3 + 3 * sum(added) * (slower if whole else 1.0))
        return found

    monkeypatch.setattr(latency, "timed", timed)
    table = latency.measure(SPACE, image_size=(12, 8), patch_size=4, dim=24, depth=3, num_classes=7, checks=5)
    assert table["factor"] == pytest.approx(slower)
    assert table["seconds"]["msa:8"] == pytest.approx(slower * 4e-4)
    assert table["last"]["msa:8"] == pytest.approx(0.8 * slower * 4e-4)
    assert len(table["checked"]) == 5
    for row in table["checked"]:
        assert row["predicted"] == pytest.approx(row["measured"])


def test_a_factor_is_the_median_of_what_operations_take_longer():
    assert latency.factor([2.0, 3.0, 5.0], [2.5, 4.0, 5.4], 1.0) == pytest.approx(1.5)
    assert latency.factor([1.0], [1.0], 1.0) == 1  # of identities alone
    assert latency.factor([2.0], [0.5], 1.0) == 0


@pytest.mark.parametrize(("unit", "lowest"), [("params", 0.3), ("macs", 0.2), ("latency", 0.2)])
def test_the_found_cost_follows_the_target(unit, lowest, few_digits):
    """Over the range of the space every target is met within a tenth, so costs grow with their targets."""
    targets, found = spread(unit, few_digits.train, (lowest, 0.5, 0.9)), []
    for value in targets:
        settings = replace(TINY, target=aim(unit, value))
        result = search(settings, few_digits)
        found.append(Heading(settings, few_digits.train).cost(result.genotype))
        if unit == "latency":
            shape = Heading(settings, few_digits.train).shape
            assert found[-1] == pytest.approx(latency.predict(result.genotype, shape, TIMES, SPACE))
            continue
        network = build(result.genotype, dim=24, depth=2, image_size=8, patch_size=2, in_channels=1, num_classes=10)
        counted = complexity(network, 8)
        assert found[-1] == (counted.parameters if unit == "params" else counted.macs)
    assert found == sorted(found)
    assert [cost / target for cost, target in zip(found, targets, strict=True)] == pytest.approx([1] * 3, abs=0.1)


def test_the_term_pulls_alpha_towards_the_target(few_digits):
    """Without the choice at the end: what α expects to pay is less for a low target, and more for a high one."""
    expected = []
    for value in spread("macs", few_digits.train, (0.15, 0.9)):
        settings = replace(TINY, target=Target(target_macs=value, cost_weight=20.0), stages=((2, 8, 4),))
        net = search(settings, few_digits).supernet
        prices = price_list(net.candidates, SPACE, "macs", Heading(settings, few_digits.train).shape)
        expected.append(expected_cost(net.mixing_weights().detach().double(), prices, SPACE).item())
    untouched = expected_cost(torch.full((5, 8), 1 / 8).double(), prices, SPACE).item()
    assert expected[0] < 0.97 * untouched
    assert expected[1] > 1.03 * untouched


def test_a_target_out_of_reach_is_refused_with_what_can_be_reached(few_digits, tmp_path):
    settings = replace(TINY, target=Target(target_macs=1e12))
    with pytest.raises(ValueError, match=r"target of 1e\+12 multiply-accumulates: networks of this space, .* have "):
        search(settings, few_digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_must_attend_does(few_digits):
    alpha = torch.zeros(5, 8)
    alpha[:, 7] = 9.0  # mlp:2 everywhere
    assert not derive(alpha.softmax(1), ALL, SPACE).has_attention
    found = likeliest(alpha.softmax(1), ALL, SPACE, attends=True)
    assert found.has_attention
    assert sum(op.kind == "mlp" for _, op in found.edges) == 3  # no more is given up than must be
    assert search(replace(TINY, attends=True), few_digits).genotype.has_attention


def test_a_table_of_another_shape_is_refused():
    empty = {"format": 2, "tokens": 7, "depth": 3, "seconds": {"trunk": 1e-3}, "last": {}}
    table = json.dumps(empty | {"dim": 48})
    with pytest.raises(ValueError, match="latency table cannot be used: it is for dim 48, this search has 24: measure"):
        operation_cost(Operation.parse("msa:4"), "latency", SHAPE, table)
    table = json.dumps(empty | {"dim": 24})
    with pytest.raises(ValueError, match="latency table has no time of msa:4: measure again with it"):
        operation_cost(Operation.parse("msa:4"), "latency", SHAPE, table)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_macs": 1e9, "target_params": 1e6}, "targets for params and macs: give one"),
        ({"target_latency": 1e-3}, "target_latency and latency_table go together"),
        ({"target_macs": -1.0}, "target -1.0 is not above zero"),
        ({"cost_weight": -1.0}, "cost_weight -1.0 is negative"),
    ],
)
def test_targets_that_cannot_be_meant(settings, words):
    with pytest.raises(ValueError, match=words):
        Target(**settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attends": True, "schedule": ScheduleSettings(max_skips=1)}, "attends with max_skips: each chooses"),
        ({"attends": True, "relaxation": RelaxationSettings(mix="uniform")}, "attends with mix uniform"),
        ({"target": Target(target_macs=1e6), "relaxation": RelaxationSettings(mix="sigmoid")}, "a target with weights"),
        ({"target": Target(target_macs=1e6), "relaxation": RelaxationSettings(partial=2)}, "a target with weights"),
        ({"target": Target(target_macs=1e6), "schedule": ScheduleSettings(max_skips=1)}, "a target with weights"),
    ],
)
def test_what_methods_choose_by_is_not_overruled(change, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, stages=((1, 8, 2),), **change)


@pytest.mark.parametrize("relaxation", [{"mix": "sigmoid"}, {"mix": "dirichlet"}, {"partial": 2}, {"entangled": True}])
def test_any_method_with_alpha_finds_encoders_that_attend(relaxation, few_digits):
    settings = replace(
        TINY, dim=48, stages=((1, 8, 1),), attends=True, keep_ratio=1.0, relaxation=RelaxationSettings(**relaxation)
    )
    supernet = search(settings, few_digits).supernet
    supernet.alpha.data.zero_()
    for row, operations in zip(supernet.alpha.data, supernet.candidates, strict=True):
        row[[op.kind for op in operations].index("skip")] = 3.0
    images = few_digits.train
    assert not supernet.genotype().has_attention
    assert Heading(settings, images).genotype(supernet).has_attention
