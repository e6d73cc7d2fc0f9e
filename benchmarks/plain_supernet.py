"""The supernet the plain way, as ports of DARTS have it: the reference that ours is tested and timed against.

A list of modules on each edge and a loop of ``weight · op(x)``, zero and identity included; attention written out;
every layer computes every token; gradients of everything in both steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dasvit.layers import Attention, Mlp, layer_norm
from dasvit.operations import Zero
from dasvit.relaxation import Supernet
from dasvit.space import Operation
from dasvit.vit import VisionTransformer


class PlainAttention(Attention):
    """Attention with its map written out."""

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Let every token gather from all tokens."""
        q, k, v = self.split(self.qkv(x))
        attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return self.proj(rearrange(attention @ v, "b h n d -> b n (h d)"))


def plain_operation(operation: Operation, dim: int) -> nn.Module:
    """Return an operation as a module on tokens."""
    if operation.kind == "none":
        return Zero()
    if operation.kind == "skip":
        return nn.Identity()
    assert operation.size is not None
    if operation.kind == "msa":
        return nn.Sequential(layer_norm(dim), PlainAttention(dim, int(operation.size)))
    return nn.Sequential(layer_norm(dim), Mlp(dim, operation.size))


class PlainMixedOp(nn.Module):
    """All candidates of an edge, mixed in a loop."""

    def __init__(self, operations: tuple[Operation, ...], dim: int) -> None:
        super().__init__()
        self.operations = nn.ModuleList(plain_operation(operation, dim) for operation in operations)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return ``Σ weight · op(x)``."""
        return sum(weight * operation(x) for weight, operation in zip(weights, self.operations, strict=True))


class PlainCell(nn.Module):
    """Two nodes on two inputs, every edge mixed."""

    def __init__(self, edges: list[tuple[int, int]], candidates: tuple[tuple[Operation, ...], ...], dim: int) -> None:
        super().__init__()
        self.wiring = edges
        self.edges = nn.ModuleList(PlainMixedOp(operations, dim) for operations in candidates)

    def forward(self, x_prev_prev: Tensor, x_prev: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of the nodes."""
        states = [x_prev_prev, x_prev]
        for target in (2, 3):
            states.append(
                sum(
                    edge(states[i], row)
                    for (i, j), edge, row in zip(self.wiring, self.edges, weights, strict=True)
                    if j == target
                )
            )
        return states[2] + states[3]


class PlainSupernet(nn.Module):
    """The same network as a supernet of ours, with its weights.

    Args:
        ours: The supernet to copy; of the default space, without token selection.
    """

    def __init__(self, ours: Supernet) -> None:
        super().__init__()
        settings = {k: v for k, v in ours.settings.items() if k != "depth"}
        edges = list(ours.space.edges)
        self.trunk = VisionTransformer(
            lambda: PlainCell(edges, ours.candidates, ours.dim), depth=len(ours.layers), dim=ours.dim, **settings
        )
        self.alpha = nn.Parameter(ours.alpha.detach().clone())
        names = [name for name, _ in self.trunk.named_parameters()]  # both have their parameters in the same order
        theirs = [p.detach().clone() for name, p in ours.named_parameters() if name != "alpha"]
        self.trunk.load_state_dict(dict(zip(names, theirs, strict=True)), assign=True)  # dtype and device are theirs

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.trunk(images, self.alpha.softmax(dim=-1))


def plain_steps(
    model: PlainSupernet,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    term: Callable[[Tensor], Tensor],
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return one step of α and one of the weights.

    Args:
        model: The supernet.
        train: Images and labels for the weights.
        val: Images and labels for α.
        term: The regularisation, of the mixing weights.
        autocast: Makes the context of the forward pass.
    """
    weights = torch.optim.AdamW(model.trunk.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    alphas = torch.optim.AdamW([model.alpha], lr=1e-2, betas=(0.5, 0.999), weight_decay=1e-3)

    def alpha_step() -> None:
        model.zero_grad()
        with autocast():
            logits = model(val[0])
        (F.cross_entropy(logits.float(), val[1]) + term(model.alpha.softmax(dim=-1))).backward()
        alphas.step()

    def weight_step() -> None:
        model.zero_grad()
        with autocast():
            logits = model(train[0])
        F.cross_entropy(logits.float(), train[1]).backward()
        weights.step()

    return alpha_step, weight_step
