import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dasvit import SearchSettings, SearchSpace, Supernet, derive, search
from dasvit.engine.hardware import Hardware, make_fabric
from dasvit.methods.settings import RelaxationSettings, ScheduleSettings
from dasvit.monitor import dominant_eigenvalue, drift, entropy, kinds, margins, undecided, watched
from dasvit.search_stage import SearchStage
from dasvit.space import edge_name

SPACE = SearchSpace()
ALL = (SPACE.operations,) * 5
NAMES = [edge_name(edge) for edge in SPACE.edges]


def row(alpha, epoch=0, stage=0):
    p = alpha.softmax(1)
    named = {
        name: dict(zip(map(str, SPACE.operations), own, strict=True))
        for name, own in zip(NAMES, alpha.tolist(), strict=True)
    }
    return {"stage": stage, "epoch": epoch, "alpha": named, **watched(p, ALL, SPACE, derive(p, ALL, SPACE))}


def test_entropy_is_a_share_of_that_of_a_uniform_choice():
    assert entropy(torch.full((5, 8), 0.3)) == pytest.approx(1)  # sigmoids need not sum to one
    assert entropy(torch.eye(8)[:5]) == 0
    half = torch.zeros(5, 8)
    half[:, :2] = 0.5
    assert entropy(half) == pytest.approx(math.log(2) / math.log(8))


def test_margins_by_hand():
    p = torch.tensor(
        [
            [0.9, 0.06, 0.04, 0, 0, 0, 0, 0],  # the strongest but zero: 0.06 before 0.04
            [0, 0.5, 0.3, 0.2, 0, 0, 0, 0],
            [0, 0.4, 0.35, 0.25, 0, 0, 0, 0],
            [0, 0.7, 0.3, 0, 0, 0, 0, 0],
            [0, 0.45, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05],
        ]
    )
    expected = {"0-2": 0.02, "1-2": 0.2, "0-3": 0.05, "1-3": 0.4, "2-3": 0.35, "node 3": 0.45 - 0.4}
    assert margins(p, ALL, SPACE) == pytest.approx(expected, abs=1e-6)
    cuts = {name: value for name, value in margins(p, ALL, SPACE, keep=2).items() if name.endswith("cut")}
    assert cuts == pytest.approx(
        {"0-2 cut": 0.02, "1-2 cut": 0.1, "0-3 cut": 0.1, "1-3 cut": 0.3, "2-3 cut": 0.0}, abs=1e-6
    )
    assert not [name for name in margins(p, ALL, SPACE, keep=8) if name.endswith("cut")]


def test_what_is_watched_is_of_the_weights():
    p = torch.randn(5, 8).softmax(1)
    genotype = derive(p, ALL, SPACE)
    found = watched(p, ALL, SPACE, genotype)
    assert found["skip_weight"] == pytest.approx(float(p[:, 1].sum()))
    assert found["kinds"] == kinds(genotype)
    assert sum(found["kinds"].values()) == 4


def test_a_search_that_has_not_decided_is_told():
    torch.manual_seed(0)
    flat, decided = 1e-3 * torch.randn(5, 8), 6 * torch.eye(8)[[1, 2, 3, 4, 5]] + torch.arange(8) / 8
    told = undecided([row(flat), row(flat, 1)])
    assert told.startswith("α has hardly moved: the entropy of its choices is 100.0 %")
    assert "\n" not in told
    assert undecided([row(decided), row(decided, 1)]) is None
    jumped = decided.flip(1)
    assert "α has not settled" in undecided([row(jumped), row(decided, 1)])
    assert undecided([row(jumped), row(decided, 0, stage=1)]) is None  # rows of two stages are not compared
    assert undecided([]) is None


def test_drift_is_the_most_that_a_weight_has_moved():
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    assert drift(row(a), row(b)) == pytest.approx(float((a.softmax(1) - b.softmax(1)).abs().max()), rel=1e-5)


def test_drift_is_of_the_weights_that_the_search_mixes_by():
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    sigmoid = Supernet(SPACE, depth=1, dim=24, relaxation=RelaxationSettings(mix="sigmoid"))
    assert drift(row(a), row(b), sigmoid.mixing_weights) == pytest.approx(
        float((a.sigmoid() - b.sigmoid()).abs().max())
    )
    parts = Supernet(SPACE, depth=1, dim=24, relaxation=RelaxationSettings(partial=2))
    own = {"edges": dict(zip(NAMES, (0.3, -0.2, 0.0, 1.0, 2.0), strict=True))}
    weights = [parts.mixing_weights(torch.cat([x, torch.tensor([*own["edges"].values()])[:, None]], 1)) for x in (a, b)]
    found = drift(row(a) | own, row(b) | own, parts.mixing_weights)
    assert found == pytest.approx(float((weights[0] - weights[1]).abs().max()))
    decided = 6 * torch.eye(8)[[1, 2, 3, 4, 5]]
    rows = [row(decided + shift) | {"margins": {"0-2": 0.1}} for shift in (0.0, 3.0)]  # softmax sees no shift
    assert undecided(rows) is None
    assert "α has not settled" in undecided(rows, sigmoid.mixing_weights)


def test_rows_without_a_monitor_are_read():
    recorded = Path(__file__).parents[1] / "book/results/digits_tiny.json"
    history = json.loads(recorded.read_text())["searches"][0]["history"]
    assert "margins" not in history[-1]
    assert undecided(history) is None
    assert drift(history[-2], history[-1]) > 0


def test_the_eigenvalue_of_a_known_hessian():
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    for values in (torch.arange(12.0), -torch.arange(12.0), torch.zeros(12)):
        h = q @ torch.diag(values.double()) @ q.T
        found = dominant_eigenvalue(lambda x, h=h: (h @ x.flatten()).view(3, 4), torch.randn(3, 4).double())
        assert found == pytest.approx(float(values[values.abs().argmax()]), rel=0.02, abs=1e-6)


def test_the_eigenvalue_of_a_supernet_is_that_of_the_explicit_hessian(few_digits):
    settings = SearchSettings(
        dim=24,
        patch_size=4,
        stages=((1, 8, 1),),
        keep_ratio=1.0,
        batch_size=16,
        hardware=Hardware("cpu", "64-true"),
    )
    stage = SearchStage(settings, 0, ALL, few_digits.train.halves(0), make_fabric(settings.hardware))
    with torch.no_grad():
        stage.supernet.alpha.normal_()
    found = stage._curvature(0)
    images, labels = next(iter(stage.batches(1, 0, 0)))
    for module in stage.supernet.modules():  # with someone listening, operations are computed as they are written
        if hasattr(module, "halves"):
            module.module.register_forward_hook(lambda *_: None)

    def loss(alpha):
        logits = stage.supernet(images.double(), alpha.softmax(1))
        return torch.nn.functional.cross_entropy(logits, labels)

    alpha = stage.supernet.alpha.detach()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # which has second derivatives
        hessian = torch.autograd.functional.hessian(loss, alpha).reshape(40, 40)
    values = torch.linalg.eigvalsh(hessian)
    assert found == pytest.approx(float(values[values.abs().argmax()]), rel=0.05)


def test_the_eigenvalue_is_found_in_parts_of_a_batch(few_digits, monkeypatch):
    settings = SearchSettings(
        dim=24, patch_size=4, stages=((1, 8, 1),), batch_size=16, hardware=Hardware("cpu", "64-true")
    )
    found = []
    for accumulate in (1, 4):
        own = replace(settings, accumulate=accumulate)
        stage = SearchStage(own, 0, ALL, few_digits.train.halves(0), make_fabric(own.hardware))
        sizes = set()
        stage.supernet.register_forward_pre_hook(lambda _, given, sizes=sizes: sizes.add(len(given[0])))
        found.append(stage._curvature(0))
        assert sizes == {16 // accumulate}
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_the_eigenvalue_is_logged_on_request(few_digits):
    settings = SearchSettings(dim=24, patch_size=4, stages=((1, 8, 2),), hardware=Hardware("cpu"))
    plain = search(settings, few_digits.train)
    watching = search(replace(settings, schedule=ScheduleSettings(hessian=True)), few_digits.train)
    assert all(isinstance(one["hessian"], float) for one in watching.history)
    assert "hessian" not in plain.history[0]
    assert watching.history[-1]["alpha"] == plain.history[-1]["alpha"]  # to look changes nothing
