"""Features that are offered together take the plain step together, every pair of them."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pairs import FEATURES, PLAIN, settings_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from dasvit import load_data
from dasvit.engine.hardware import make_fabric
from dasvit.fairness import fairness_term
from dasvit.layers import Attention, Mlp
from dasvit.searching import SearchStage, draw_halves

PAIRS = ["+".join(features) for n in (1, 2) for features in itertools.combinations(FEATURES, n)]
STEPS = 6


@pytest.fixture(scope="module")
def images():
    return load_data(PLAIN.data, image_size=PLAIN.image_size).train


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What all pairs come to: those with devices in two processes, the others in one."""
    folder, found = tmp_path_factory.mktemp("pairs"), {}
    alone = [sys.executable]
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command, where in ((alone, lambda p: "devices" not in p), (several, lambda p: "devices" in p)):
        out = folder / f"{len(command)}.pt"
        script = [*command, str(next(p for p in sys.path if p.endswith("tests")) + "/pairs.py")]
        done = subprocess.run([*script, str(out), *filter(where, PAIRS)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found |= torch.load(out)
    return found


@sdpa_kernel(SDPBackend.MATH)  # the others have no second derivative
def plain_steps(settings, images):
    """Take the steps of a search as the equations have them: no lean terms, exact derivatives, one step of all weights.

    Returns the supernet, and the mean loss of the weights of each epoch.
    """
    settings = replace(settings, hardware=PLAIN.hardware)
    candidates = (settings.space.operations,) * len(settings.space.edges)
    halves = draw_halves(settings, images)
    stage = SearchStage(settings, 0, candidates, halves, make_fabric(settings.hardware))
    net, alpha, weights = stage.supernet, stage.supernet.alpha, stage.supernet.network_parameters
    for module in net.modules():  # one that is listened to is computed in the plain way
        if isinstance(module, Attention | Mlp):
            module.register_forward_hook(lambda *_: None)

    def loss(parameters, batch):
        names = dict.fromkeys(n for n, _ in net.named_parameters())
        logits = torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (batch[0].double(),))
        return F.cross_entropy(logits, batch[1])

    order = [n for n, _ in net.named_parameters()]
    place = order.index("alpha")

    def with_alpha(values):
        return [*values[:place], alpha, *values[place:]]

    means = []
    for epoch in range(settings.stages[0][2]):
        losses = []
        for train, val in zip(*(stage.batches(part, epoch, 0) for part in (0, 1)), strict=False):
            unrolled = weights
            if settings.order == 2:
                gradients = torch.autograd.grad(loss(with_alpha(weights), train), weights, create_graph=True)
                rate = stage.schedule.get_last_lr()[0]
                unrolled = [w - rate * g for w, g in zip(weights, gradients, strict=True)]
            upper = loss(with_alpha(unrolled), val)
            upper = upper + fairness_term(net.mixing_weights(), net.candidates, settings.fairness)
            alpha.grad = torch.autograd.grad(upper, alpha)[0]
            stage.alpha_optimizer.step()
            alpha.grad = None
            lower = loss(with_alpha(weights), train)
            for w, g in zip(weights, torch.autograd.grad(lower, weights), strict=True):
                w.grad = g
            stage.weight_optimizer.step()
            stage.weight_optimizer.zero_grad()
            stage.schedule.step()
            losses.append(float(lower.detach()))
        means.append(sum(losses) / len(losses))
    return net.state_dict(), means


@pytest.fixture(scope="module")
def plain(images):
    """Return the plain steps of an order and a share of tokens, computed once each."""
    found = {}

    def get(features):
        key = features & {"order", "keep ratio", "compile"}
        if key not in found:
            found[key] = plain_steps(settings_of(key), images)
        return found[key]

    return get


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_takes_the_plain_steps(pair, results, plain):
    features = frozenset(pair.split("+"))
    (state, losses), found = plain(features), results[pair]
    assert found["steps"] == [STEPS]
    assert found["recorded"] == (2 if "capture" in features and not features & {"order", "devices"} else 0)
    broken = "joint" in features and torch.__version__ < torch.torch_version.TorchVersion("2.15")  # in several graphs
    if "compile" in features and not broken:
        graphs = 2 if "order" not in features else found["graphs"][0]  # a step of α, one of the weights
        assert found["graphs"] == (graphs, 0)
    if "precision" in features:  # bf16 rounds to 8 bits; a weight stepped twice would move twice as far
        assert found["losses"] == pytest.approx(losses, rel=0.02)
        return
    # a difference along the second order's vector is exact to about 1e-7; Adam divides by small gradients' size
    tolerance = 1e-4 if "order" in features else 1e-7
    for name, value in state.items():
        torch.testing.assert_close(
            found["state"][name], value, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert found["losses"] == pytest.approx(losses, abs=tolerance)
