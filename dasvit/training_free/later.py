"""Indicators that are younger than TF-TAS: ZiCo, MeCo, AZ-NAS, Auto-Prox, read on a transformer (chapter 9; A30)."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vit import VisionTransformer
from .diversity import absolute, see_ones
from .probing import Probe, Score, differentiable, evaluated
from .roles import record_linear

CHANNELS = 8
"""How many channels of a layer MeCo draws."""


def zico(model: nn.Module, probe: Probe) -> Score:
    """ZiCo (Li et al. 2023): ``Σ_layers log Σ_w E|g_w| / √Var g_w``, g the gradients of w by two batches.

    The layers are the linear ones and the convolutions; the batches are the halves of the probe's. A weight whose
    gradients are equal has no ratio and is left out.

    Raises:
        ValueError: If the probe has fewer than two images.
    """
    images, labels = probe.batch(model)
    if len(images) < 2:
        raise ValueError(f"zico compares the gradients of two batches: {len(images)} image(s) cannot be divided")
    with differentiable(model):
        weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        by_batch = []
        for x, y in zip(images.tensor_split(2), labels.tensor_split(2), strict=True):
            by_batch.append(torch.autograd.grad(F.cross_entropy(model(x), y), weights, allow_unused=True))
    total = 0.0
    for g, h in zip(*by_batch, strict=True):
        if g is None or h is None:
            continue
        deviation = (g - h).abs() / 2  # of two numbers, from their mean
        varies = deviation > 0
        ratios = ((g.abs() + h.abs())[varies] / 2 / deviation[varies]).double().sum().item()
        total += math.log(ratios) if ratios > 0 else 0.0
    return {"total": total}


def meco(model: nn.Module, probe: Probe) -> Score:
    """MeCo (Jiang et al. 2023), its optimised form: ``Σ_layers (C / 8) λ_min(P)``, P the correlations of 8 channels.

    A layer is a linear one that reads tokens; its C channels are the dimensions of its output, seen at all tokens of
    one image; 8 of them are drawn by the probe's seed. A channel that is constant correlates with none.
    """
    images, _ = probe.batch(model)
    generator = torch.Generator().manual_seed(probe.seed)
    with torch.no_grad(), evaluated(model):
        _, calls = record_linear(model, images[:1])
    total = 0.0
    for y in (c.y[0] for c in calls if c.y.ndim == 3):
        drawn = torch.randperm(y.shape[-1], generator=generator)[:CHANNELS]
        matrix = torch.corrcoef(y[:, drawn].T.double()).nan_to_num(0.0, 0.0, 0.0)
        total += y.shape[-1] / len(drawn) * torch.linalg.eigvalsh(matrix)[0].item()
    return {"total": total}


def az_nas(model: nn.Module, probe: Probe) -> Score:
    """AZ-NAS (Lee and Ham 2024): expressivity, progressivity and trainability of the blocks, here the encoder layers.

    - Expressivity: the sum over blocks of the entropy of the eigenvalues of the covariance of their output, tokens
      being the samples, eigenvalues divided by their sum.
    - Progressivity: the smallest increment of that entropy from block to block.
    - Trainability: the mean over blocks of ``2 − σ − 1/σ``, σ the spectral norm of ``uᵀv / n``: v is random signs for
      the n tokens of a block's output, u what comes of them at its input.

    AZ-NAS ranks candidates by each of these and by complexity, and adds the logarithms of the ranks
    (:func:`~dasvit.training_free.statistics.sum_of_log_ranks`). One network alone has no rank: its total is the sum
    of the three numbers, and all are told.
    """
    images, _ = probe.batch(model)
    generator = torch.Generator().manual_seed(probe.seed)
    with differentiable(model):
        outputs = _block_outputs(model, images)
        entropies = [_entropy(x.detach()) for x in outputs]
        norms = [_jacobian_norm(x, y, generator) for x, y in pairwise(outputs)]
    if not norms:
        raise ValueError(f"az-nas compares neighbouring layers: this {type(model).__name__} has one")
    expressivity = sum(entropies)
    progressivity = min(after - before for before, after in pairwise(entropies))
    trainability = sum(2 - s - 1 / s if s else -math.inf for s in norms) / len(norms)
    parts = {"expressivity": expressivity, "progressivity": progressivity, "trainability": trainability}
    return {"total": sum(parts.values()), **parts}


def autoprox(model: nn.Module, probe: Probe) -> Score:
    """Auto-Prox's discovered proxy (Wei et al. 2024): ``Σ_attention ‖G‖₁ + Σ_MLP mean σ(G)``, σ the logistic function.

    ``G = ∂S/∂W`` at absolute parameters and an image of ones, as for DSS; attention's weights are those of queries,
    keys and values and of the output projection, the MLPs' those of their two layers.
    """
    with absolute(model, everything=True), torch.enable_grad():
        logits, calls = see_ones(model, probe.image_size)
        scored = [c for c in calls if c.role in ("qkv", "projection", "mlp")]
        if not scored:
            raise ValueError(f"{type(model).__name__} has no linear layers whose role is known: nothing to score")
        gradients = torch.autograd.grad(logits.sum(), [c.y for c in scored])
    msa = mlp = 0.0
    for call, dy in zip(scored, gradients, strict=True):
        g = dy.flatten(0, -2).T @ call.x.detach().flatten(0, -2)
        if call.role == "mlp":
            mlp += g.sigmoid_().double().mean().item()
        else:
            msa += g.abs_().double().sum().item()
    return {"total": msa + mlp, "msa": msa, "mlp": mlp}


def _block_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return what each encoder layer makes of images, ``[b, n, d]`` each, for all tokens."""
    blocks = getattr(model, "layers", getattr(model, "blocks", None))
    if not isinstance(blocks, nn.ModuleList | nn.Sequential):
        raise ValueError(f"{type(model).__name__} has no encoder layers under the name layers or blocks")
    outputs: dict[int, Tensor] = {}

    def keep(index: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[index] = output

    handles = [block.register_forward_hook(partial(keep, i)) for i, block in enumerate(blocks)]
    try:
        run = model.forward_features if isinstance(model, VisionTransformer) else model
        run(images)
    finally:
        for handle in handles:
            handle.remove()
    return [outputs[i] for i in range(len(blocks))]


def _entropy(x: Tensor) -> float:
    """Return the entropy of the eigenvalues of the covariance of tokens ``[b, n, d]``, divided by their sum."""
    tokens = x.flatten(0, 1).double()
    tokens = tokens - tokens.mean(0)
    values = torch.linalg.eigvalsh(tokens.T @ tokens).clamp_min(0)
    return torch.special.entr(values / values.sum()).sum().item()


def _jacobian_norm(x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    """Return the spectral norm of ``uᵀv / n`` for random signs v at y and what comes of them at x."""
    signs = torch.randint(2, y.shape, generator=generator).to(y) * 2 - 1
    (u,) = torch.autograd.grad(y, x, signs, retain_graph=True, materialize_grads=True)
    product = (u.flatten(0, 1).T @ signs.flatten(0, 1)).double() / signs[..., 0].numel()
    return math.sqrt(max(0.0, torch.linalg.eigvalsh(product.T @ product)[-1].item()))
