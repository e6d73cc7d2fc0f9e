"""Edges that compute otherwise than each operation by itself on all channels (chapter 12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..encoder import make_operation
from ..layers import Attention, Mlp, attend
from ..operations import Grid, PreNorm
from ..relaxation import MixedEdge
from ..space import Operation
from .settings import RelaxationSettings


class PartialEdge(MixedEdge):
    """Operations on the first of K parts of the channels; the rest passes by (PC-DARTS).

    The parts are then shuffled, so that the next edge operates on channels of all parts. The weights are those of the
    operations times that of the edge, which is their sum and scales what passes by.

    Args:
        operations: The candidates.
        dim: Width D of a token.
        parts: K.

    Raises:
        ValueError: If K does not divide D, or the operations do not fit its part.
    """

    def __init__(self, operations: Sequence[Operation], dim: int, parts: int) -> None:
        if dim % parts:
            raise ValueError(f"dim {dim} cannot be divided in {parts} parts of the channels: choose another --partial")
        super().__init__(operations, dim // parts)
        self.parts = parts

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        weights: Float[Tensor, " operations"],
        first: int | None = None,
        x_hat: Float[Tensor, "b n d"] | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Mix the operations' outputs on a part of the channels."""
        own, passing = x.split([x.shape[-1] // self.parts, x.shape[-1] - x.shape[-1] // self.parts], dim=-1)
        mixed = super().forward(own, weights, first, None, grid)
        y = torch.cat([mixed, weights.sum().to(x.dtype) * passing[:, :first]], dim=-1)
        return rearrange(y, "b n (k d) -> b n (d k)", k=self.parts)


class EntangledEdge(MixedEdge):
    """Candidates of one kind share one LayerNorm and one module, the widest of them (TangleNAS).

    With ``P = Σ_o p_o`` of the kind and ``q_o = p_o / P``, the kind adds P times the module at the weights that q
    superposes: hidden unit j of an MLP is in ``s_j = Σ q_o`` over the ratios that contain it, and its row of W₁ and its
    column of W₂ are scaled by s_j. Attention of any number of heads has the same matrices; what the heads gather is
    mixed by q before it is projected.

    Args:
        operations: The candidates.
        dim: Width D of a token.
    """

    def __init__(self, operations: Sequence[Operation], dim: int) -> None:
        super().__init__(operations, dim)
        self.dim, self.members = dim, {}
        for kind in ("msa", "mlp"):
            own = [(index, op) for index, op in enumerate(operations) if op.kind == kind]
            if own:
                self.members[kind] = own
        widest = {kind: max((op for _, op in own), key=lambda op: op.size or 0) for kind, own in self.members.items()}
        alone = {key: self.operations[key] for index, key in self.terms if operations[index].kind not in self.members}
        self.operations = nn.ModuleDict(alone)
        self.terms = [(index, key) for index, key in self.terms if key in alone]
        widths = [[int(dim * float(op.size or 0))] for _, op in self.members.get("mlp", ())]
        contains = torch.arange(max(widths, default=[0])[0]) < torch.tensor(widths).reshape(-1, 1)
        self.register_buffer("contains", contains, persistent=False)  # which hidden units each ratio has
        self.shared = nn.ModuleDict({kind: make_operation(operation, dim) for kind, operation in widest.items()})

    def module(self, operation: Operation) -> nn.Module:
        """Return a candidate as a module of its own, with a copy of the weights that it has here."""
        if operation.kind not in self.members:
            return super().module(operation)
        shared = self.shared[operation.kind]
        assert isinstance(shared, PreNorm)
        module = make_operation(operation, self.dim).to(shared.norm.weight)
        state = shared.state_dict()
        if operation.kind == "mlp":
            hidden = int(self.dim * float(operation.size or 0))
            state = {name: value[:hidden] if "fc1" in name else value for name, value in state.items()}
            state |= {name: value[:, :hidden] for name, value in state.items() if name.endswith("fc2.weight")}
        module.load_state_dict(state)
        return module

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        weights: Float[Tensor, " operations"],
        first: int | None = None,
        x_hat: Float[Tensor, "b n d"] | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Mix the operations' outputs."""
        parts = [weights[i].to(x.dtype) * self.operations[key](x, first, grid) for i, key in self.terms]
        for kind, own in self.members.items():
            p = torch.stack([weights[index] for index, _ in own])
            total = p.sum()
            q = (p / total.clamp_min(torch.finfo(p.dtype).tiny)).to(x.dtype)
            shared: Any = self.shared[kind]
            if kind == "msa":
                made = _attention(shared.module, shared.norm(x), q, [int(op.size or 1) for _, op in own], first)
            else:
                made = _mlp(shared.module, shared.norm(x[:, :first]), q @ self.get_buffer("contains").to(q.dtype))
            parts.append(total.to(x.dtype) * made)
        if not parts:
            return torch.zeros_like(x[:, :first])
        y, *rest = parts
        return sum(rest, start=y)


def _attention(module: Attention, x: Tensor, q: Tensor, heads: Sequence[int], first: int | None) -> Tensor:
    parts = module.qkv(x).chunk(3, dim=-1)
    gathered = []
    for count in heads:
        ask, key, value = (rearrange(part, "b n (h d) -> b h n d", h=count) for part in parts)
        gathered.append(attend(ask[:, :, :first], key, value))
    return module.proj(sum(weight * part for weight, part in zip(q.unbind(), gathered, strict=True)))


def _mlp(module: Mlp, x: Tensor, scale: Tensor) -> Tensor:
    return module.fc2(scale * F.gelu(scale * module.fc1(x)))


def edge_maker(
    settings: RelaxationSettings, recompute: bool = False
) -> Callable[[Sequence[Operation], int], MixedEdge]:
    """Return what makes a mixed edge from candidates and the width of a token."""
    if settings.partial > 1:
        return lambda operations, dim: PartialEdge(operations, dim, settings.partial)
    if settings.entangled:
        return EntangledEdge

    def make(operations: Sequence[Operation], dim: int) -> MixedEdge:
        edge = MixedEdge(operations, dim, recompute)
        edge.sparse = settings.mix == "uniform"  # one random path a step
        return edge

    return make
