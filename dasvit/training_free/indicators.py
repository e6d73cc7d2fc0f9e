"""Indicators that rank untrained networks: each one function of a model and a probe (chapter 9; ledger A30)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..counting import complexity
from .diversity import DSS, absolute, channels_of, dss
from .later import autoprox, az_nas, meco, zico
from .probing import Probe, Score, differentiable, evaluated
from .roles import LinearCall, linear_call, record_linear


def params(model: nn.Module, probe: Probe) -> Score:
    """Number of parameters: the baseline that an indicator has to beat."""
    return {"total": float(sum(p.numel() for p in model.parameters()))}


def macs(model: nn.Module, probe: Probe) -> Score:
    """Multiply-accumulates of one image."""
    return {"total": float(complexity(model, probe.image_size).macs)}


def dss_paper(model: nn.Module, probe: Probe) -> Score:
    """DSS by its formula, see :func:`~dasvit.training_free.diversity.dss`."""
    return _parts(dss(model, probe.image_size, "paper", probe.norms))


def dss_released(model: nn.Module, probe: Probe) -> Score:
    """DSS as the published program computes it."""
    return _parts(dss(model, probe.image_size, "released", probe.norms))


def _parts(score: DSS) -> Score:
    return {"total": score.total, "msa": score.msa, "projection": score.projection, "mlp": score.mlp}


def synflow(model: nn.Module, probe: Probe) -> Score:
    """Synaptic flow (Tanaka et al. 2020): ``Σ |θ · ∂S/∂θ|`` over the matrices of the network with absolute parameters.

    S is the sum of the logits of an image of ones. LayerNorm makes terms negative, hence their absolute values;
    products over many layers overflow float32, hence float64.
    """
    with absolute(model, everything=True), differentiable(model, torch.float64) as matrices:
        image = torch.ones(1, channels_of(model), probe.image_size, probe.image_size).to(matrices[0])
        gradients = torch.autograd.grad(model(image).sum(), matrices, allow_unused=True)
        return {"total": _sum_of_products(matrices, gradients)}


def snip(model: nn.Module, probe: Probe) -> Score:
    """Connection sensitivity (Lee et al. 2019): ``Σ |θ · ∂L/∂θ|`` over the matrices, L the cross-entropy of a batch."""
    images, labels = probe.batch(model)
    with differentiable(model) as matrices:
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), matrices, allow_unused=True)
        return {"total": _sum_of_products(matrices, gradients)}


def grasp(model: nn.Module, probe: Probe) -> Score:
    """Gradient signal preservation (Wang et al. 2020): ``−Σ θ · H g`` over the matrices; Hessian H, gradient g."""
    images, labels = probe.batch(model)
    with differentiable(model) as matrices, sdpa_kernel(SDPBackend.MATH):  # only this one can be derived twice
        loss = F.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, matrices, create_graph=True, allow_unused=True)
        used = [(w, g) for w, g in zip(matrices, gradients, strict=True) if g is not None]
        product = torch.stack([(g * g.detach()).sum() for _, g in used]).sum()
        hg = torch.autograd.grad(product, [w for w, _ in used])
        return {"total": -sum((w.detach() * h).sum().item() for (w, _), h in zip(used, hg, strict=True))}


def naswot(model: nn.Module, probe: Probe) -> Score:
    """Overlap of activation patterns (Mellor et al. 2021): ``log |K|``, K counts the units on which two images agree.

    A unit is a hidden unit of an MLP and a token; it is on where what enters its activation is positive.
    """
    images, _ = probe.batch(model)
    patterns = (_patterns(model, images) > 0).float()
    off = 1 - patterns
    kernel = patterns @ patterns.T + off @ off.T
    return {"total": float(torch.linalg.slogdet(kernel.double())[1])}


def te(model: nn.Module, probe: Probe) -> Score:
    """TE-NAS (Chen et al. 2021): many linear regions, well-conditioned neural tangent kernel: ``log R − log κ``.

    R is the number of different activation patterns of 1,000 points of the plane through three random images; κ the
    condition number of the kernel of a batch. TE-NAS adds the ranks of the two among candidates; one network alone has
    no rank, so their logarithms are added here, and both are told.
    """
    images, _ = probe.batch(model)
    if len(images) < 3:
        raise ValueError(f"te looks at the plane through three images: {len(images)} are too few")
    with differentiable(model) as matrices:
        rows = [torch.autograd.grad(model(image[None]).sum(), matrices, allow_unused=True) for image in images]
        kernel = torch.zeros(len(images), len(images), dtype=torch.float64)
        for some in zip(*rows, strict=True):  # the gradients of one matrix, image by image
            if some[0] is not None:
                jacobian = torch.stack([gradient.flatten() for gradient in some]).double()
                kernel += (jacobian @ jacobian.T).cpu()
    values = torch.linalg.eigvalsh(kernel)
    condition = float(values[-1] / values[0].clamp_min(torch.finfo(torch.float64).tiny))
    generator = torch.Generator().manual_seed(probe.seed)
    second, third = torch.rand(1000, 2, generator=generator).to(images).unbind(1)
    points = torch.stack([1 - second - third, second, third], dim=1) @ images[:3].flatten(1)
    found = regions(model, points.unflatten(1, images.shape[1:]))
    return {"total": math.log(found) - math.log(condition), "regions": float(found), "condition": condition}


def regions(model: nn.Module, images: Tensor, batch_size: int = 50) -> int:
    """Count the different activation patterns of images, which are the linear regions they lie in for TE-NAS.

    Images that differ in the units of the first MLP differ in all units. So the network is computed up to there, and
    the rest of it only for images that are equal so far. Of a thousand points at 224 pixels no two are.

    Args:
        model: A network with MLPs.
        images: ``[b, c, h, w]``, in the network's precision.
        batch_size: Images computed at once.

    Raises:
        ValueError: If the network has no MLP.
    """
    with torch.no_grad(), evaluated(model):
        first = _hidden(record_linear(model, images[:1])[1], model)[0]
        begun = [d for part in images.split(batch_size) for d in _digests(linear_call(model, part, first).y)]
        count = 0
        for numbers in _equal(begun):
            some = images[numbers].split(batch_size) if len(numbers) > 1 else ()
            count += len({d for part in some for d in _digests(_patterns(model, part))}) or 1
    return count


def _equal(values: Sequence[Hashable]) -> Iterable[list[int]]:
    """Return the places of values, those of equal ones together."""
    places: dict[Hashable, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return places.values()


def _digests(units: Tensor) -> list[bytes]:
    """Return, for each image, what tells its pattern of units ``[b, …]`` from any other, in 32 bytes."""
    return [hashlib.sha256(row.numpy()).digest() for row in (units > 0).flatten(1).cpu()]


def _hidden(calls: Sequence[LinearCall], model: nn.Module) -> list[int]:
    """Return which calls feed an activation, the first of each MLP's two."""
    hidden = [i for i, call in enumerate(calls) if call.role == "mlp"][::2]
    if not hidden:
        raise ValueError(f"{type(model).__name__} has no MLP: it has no activation patterns")
    return hidden


def _patterns(model: nn.Module, images: Tensor) -> Tensor:
    """Return the values of the hidden units of the MLPs, which are on where positive, ``[b, units]``."""
    with torch.no_grad(), evaluated(model):
        _, calls = record_linear(model, images)
    return torch.cat([calls[i].y.flatten(1) for i in _hidden(calls, model)], dim=1)


def _sum_of_products(weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> float:
    """Return ``Σ |θ · g|``; a weight that the output does not depend on has no part in it."""
    used = ((w.detach(), g) for w, g in zip(weights, gradients, strict=True) if g is not None)
    return sum((w * g).abs().sum().item() for w, g in used)


INDICATORS: dict[str, Callable[[nn.Module, Probe], Score]] = {
    "dss": dss_paper,
    "dss-released": dss_released,
    "synflow": synflow,
    "snip": snip,
    "grasp": grasp,
    "naswot": naswot,
    "te": te,
    "zico": zico,
    "meco": meco,
    "az-nas": az_nas,
    "autoprox": autoprox,
    "params": params,
    "macs": macs,
}
"""The indicators by name.

:meta hide-value:
"""


def score(model: nn.Module, indicator: str, probe: Probe | None = None) -> Score:
    """Score an untrained network.

    Args:
        model: The network; left as it was.
        indicator: A key of :data:`INDICATORS`.
        probe: What the indicator may look at; by default noise of 224 pixels.

    Raises:
        ValueError: If the indicator is unknown, cannot be computed for this network, or is not finite.
    """
    if indicator not in INDICATORS:
        raise ValueError(f"unknown indicator {indicator!r}; known: {', '.join(INDICATORS)}")
    result = INDICATORS[indicator](model, probe or Probe())
    if not math.isfinite(result["total"]):
        raise ValueError(f"{indicator} of this {type(model).__name__} is {result['total']}: it cannot be ranked")
    return result
