"""The DSS indicator of TF-TAS: synaptic diversity of attention plus synaptic saliency of MLPs (chapter 9; A27, A28)."""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .roles import LinearCall, attentions, record_linear

Mode = Literal["paper", "released"]
"""``paper``: the formula. ``released``: what the published program computes, where only class token and positions
become absolute, and the queries, keys and values get no gradient: diversity is that of the output projections alone."""

Norms = MutableMapping[tuple[str, tuple[int, ...]], float]
"""Nuclear norms of weights, known from before, by what names the weights and by shape."""


@dataclass(frozen=True)
class DSS:
    """The score and its parts.

    Args:
        qkv: Synaptic diversity of queries, keys and values.
        projection: Synaptic diversity of the output projections.
        mlp: Synaptic saliency of the MLPs.
    """

    qkv: float
    projection: float
    mlp: float

    @property
    def msa(self) -> float:
        """Synaptic diversity of attention: ``qkv + projection``."""
        return self.qkv + self.projection

    @property
    def total(self) -> float:
        """The score: ``msa + mlp``."""
        return self.msa + self.mlp


def dss(model: nn.Module, image_size: int = 224, mode: str = "paper", norms: Norms | None = None) -> DSS:
    """Score an untrained transformer by one forward and one backward pass on an image of ones.

    With all parameters absolute and ``S`` the sum of the logits, ``G = ∂S/∂W``, diversity is the sum of ``‖W‖_* ‖G‖_*``
    over attention's weights (queries, keys and values as one matrix, output projection), saliency the sum of
    ``|G ⊙ W|`` over the MLPs' weights. The score is computed in the model's precision, in float64 where that overflows;
    the model is left as it was.

    Args:
        model: A transformer of linear layers, e.g. ours or timm's ``VisionTransformer``.
        image_size: Side of the image in pixels.
        mode: See :data:`Mode`.
        norms: Where nuclear norms of weights are looked up and kept, for many models that share weights: those of equal
            parameter name and shape must be equal.

    Raises:
        ValueError: If the mode is unknown, the model has no linear layers, or the score is not finite in float64.
    """
    if mode not in ("paper", "released"):
        raise ValueError(f"unknown mode {mode!r}; known: paper, released")
    score = _score(model, image_size, mode, norms)
    if not math.isfinite(score.total):
        kept = {name: p.data for name, p in model.named_parameters()}
        try:
            score = _score(model.double(), image_size, mode, None)
        finally:
            for name, p in model.named_parameters():
                p.data = kept[name]
    if not math.isfinite(score.total):
        raise ValueError(f"the DSS score of this {type(model).__name__} is {score.total}, also in float64")
    return score


def _score(model: nn.Module, image_size: int, mode: str, norms: Norms | None) -> DSS:
    names = {id(p): name for name, p in model.named_parameters()}
    with absolute(model, everything=mode == "paper"), torch.enable_grad():
        logits, calls = see_ones(model, image_size)
        pairs = list(attentions(calls))
        parts = {"qkv": [qkv for qkv, _ in pairs if mode == "paper"], "projection": [made for _, made in pairs]}
        mlps = [c for c in calls if c.role == "mlp"]
        scored = mlps + [c for some in parts.values() for part in some for c in part]
        if not scored:
            raise ValueError(f"{type(model).__name__} has no linear layers whose role is known: nothing to score")
        gradients = torch.autograd.grad(logits.sum(), [c.y for c in scored])
        dy = {id(c): g.flatten(0, -2) for c, g in zip(scored, gradients, strict=True)}
        diversity = dict.fromkeys(parts, 0.0)
        with torch.no_grad():
            for kind, some in parts.items():
                for part in filter(None, some):
                    name = "|".join((mode, *(names[id(c.weight)] for c in part)))
                    norm = _weight_norm(part, name, norms)
                    diversity[kind] += norm * _gradient_norm(part, [dy[id(c)] for c in part])
            return DSS(**diversity, mlp=sum(_saliency(c, dy[id(c)]) for c in mlps))


def see_ones(model: nn.Module, image_size: int) -> tuple[Tensor, list[LinearCall]]:
    """Return the logits of an image of ones and every call of a linear layer, to be differentiated."""
    image = torch.ones(1, channels_of(model), image_size, image_size).to(next(model.parameters()))
    return record_linear(model, image.requires_grad_())


def _saliency(call: LinearCall, dy: Tensor) -> float:
    return float((dy.T @ call.x.flatten(0, -2)).mul_(call.weight).abs_().sum())


def _weight_norm(part: Sequence[LinearCall], name: str, norms: Norms | None) -> float:
    weight = torch.cat([c.weight for c in part])
    key = (name, tuple(weight.shape))
    if norms is not None and key in norms:
        return norms[key]
    value = nuclear_norm(weight)
    if norms is not None:
        norms[key] = value
    return value


def _gradient_norm(part: Sequence[LinearCall], dy: Sequence[Tensor]) -> float:
    """Return the nuclear norm of ``∂S/∂W = dYᵀ X``, whose rank is at most the number of tokens."""
    x = part[0].x.flatten(0, -2)
    if all(c.x is part[0].x for c in part):
        return nuclear_norm_of_product(torch.cat(list(dy), dim=1), x)
    return nuclear_norm(torch.cat([g.T @ c.x.flatten(0, -2) for c, g in zip(part, dy, strict=True)]))


def nuclear_norm(matrix: Tensor) -> float:
    """Return the sum of the singular values of a matrix, nan if it is not finite.

    In float32 they are the roots of the eigenvalues of the Gram matrix of the small side, taken in float64: faster than
    singular values in float32, and nearer to the truth.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if not tall.sum().isfinite():  # overflowed; the decompositions would not end
        return math.nan
    if tall.dtype == torch.float64:
        return float(torch.linalg.svdvals(tall).sum())
    tall = tall.double()
    return float(torch.linalg.eigvalsh(tall.T @ tall).clamp_min(0).sqrt().sum())


def nuclear_norm_of_product(a: Tensor, b: Tensor) -> float:
    """Return the nuclear norm of ``aᵀ b``, ``a`` ``[n, p]``, ``b`` ``[n, q]``; by triangular factors if n is low."""
    n, p, q = len(a), a.shape[1], b.shape[1]
    if n < 0.75 * min(p, q):
        a, b = (torch.linalg.qr(m.T, mode="r")[1].T for m in (a, b))
    return nuclear_norm(a.T @ b)


def channels_of(model: nn.Module) -> int:
    """Return the image channels that a model takes, 3 if it does not say."""
    return int(getattr(model, "in_channels", getattr(model, "in_chans", 3)))


@contextmanager
def absolute(model: nn.Module, *, everything: bool) -> Iterator[None]:
    """Make parameters absolute for a while, in evaluation mode and without gradients of their own.

    Args:
        model: The network; put back exactly as it was.
        everything: All parameters; else only those that belong to no submodule: class token and position embedding.
    """
    kept = [(p, p.data, p.requires_grad) for p in model.parameters()]
    own = {id(p) for p in model.parameters(recurse=False)}
    training = {m: m.training for m in model.modules()}
    try:
        model.eval()
        for p, data, _ in kept:
            p.requires_grad_(False)
            if everything or id(p) in own:
                p.data = data.abs()
        yield
    finally:
        for p, data, requires_grad in kept:
            p.data = data
            p.requires_grad_(requires_grad)
        for module, mode in training.items():
            module.training = mode
