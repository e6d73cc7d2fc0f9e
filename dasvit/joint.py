"""A layer of the supernet in few large products, since many small ones leave a GPU waiting (page on memory).

Attention and MLP are both two linear layers with something between them. The first ones of all edges that leave a node
read the same normalised tokens, so their matrices are put on top of each other and one product serves them all. The
outputs of the second ones of all edges that enter a node are added, so their matrices are put side by side, and the
product adds. As in :mod:`dasvit.lean`, scale and shift of each LayerNorm become part of the first matrix and the mixing
weight part of the second one. The same function as computed there, with more kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from .encoder import Cell
from .lean import normalise, outer_and_sum
from .operations import Grid, Halves, PreNorm
from .space import edge_name


class Layout:
    """What belongs to what, where tensors of several operations are put together.

    Args:
        sizes: How many rows (or columns) each operation has.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self._made: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each row whose it is, ``[rows]``, and for each operation which rows are its own, as 0 and 1.

        They are made once on each device: to send them there in each step would be to wait.
        """
        key = like.device, like.dtype
        if key not in self._made:
            owner = torch.cat([torch.full((size,), i, dtype=torch.long) for i, size in enumerate(self.sizes)])
            members = owner == torch.arange(len(self.sizes)).unsqueeze(1)
            self._made[key] = owner.to(like.device), members.to(*key)
        return self._made[key]


class Term(NamedTuple):
    """An operation on an edge: its place in the mixing weights, flattened; its modules; whether few tokens are wanted.

    :meta private:
    """

    place: int
    norm: nn.LayerNorm
    module: Any
    halves: Halves
    few: bool

    @property
    def first(self) -> nn.Linear:
        """The linear layer that reads the tokens."""
        return getattr(self.module, self.halves.first)

    @property
    def second(self) -> nn.Linear:
        """The linear layer whose output is mixed."""
        return getattr(self.module, self.halves.second)


class Group:
    """Terms whose first layers read the same tokens of one node: all of them, or the few that are wanted.

    :meta private:

    Args:
        source: The node.
        cut: Whether they read only the tokens that are wanted.
        terms: The terms.
    """

    def __init__(self, source: int, cut: bool, terms: Sequence[Term]) -> None:
        self.source, self.cut, self.terms = source, cut, terms
        self.layout = Layout([term.first.out_features for term in terms])

    def hidden(self, x_hat: Tensor, first: int | None) -> dict[int, Tensor]:
        """Return what the second layer of each term reads, by the term's place.

        Args:
            x_hat: The normalised tokens.
            first: How many tokens are wanted of terms of which few are.
        """
        layers, norms = [term.first for term in self.terms], [term.norm for term in self.terms]
        parameters = [layer.weight for layer in layers] + [layer.bias for layer in layers]
        parameters += [norm.weight for norm in norms] + [norm.bias for norm in norms]
        y = FirstLayers.apply(x_hat[:, :first] if self.cut else x_hat, self.layout, *parameters)
        parts = zip(self.terms, y.split(self.layout.sizes, dim=-1), strict=True)
        return {t.place: t.halves.between(t.module, part, first if t.few else None) for t, part in parts}


class Node:
    """All that enters a node.

    :meta private:

    Args:
        terms: Those with two halves.
        others: The rest: place in the mixing weights, node that it reads, module.
    """

    def __init__(self, terms: Sequence[Term], others: Sequence[tuple[int, int, nn.Module]]) -> None:
        self.terms, self.others = terms, others
        self.layout = Layout([term.second.in_features for term in terms])
        places = [term.place for term in terms] + [place for place, *_ in others]
        self._places = places
        self._index: dict[torch.device, Tensor] = {}

    def places(self, device: torch.device) -> Tensor:
        """Return the places of all terms in the mixing weights, flattened; sent to the device once."""
        if device not in self._index:
            self._index[device] = torch.tensor(self._places).to(device)
        return self._index[device]

    def output(
        self, states: Sequence[Tensor], hidden: dict[int, Tensor], weights: Tensor, first: int | None, grid: Grid | None
    ) -> Tensor:
        """Return the sum of all terms; what it takes of ``hidden`` is taken out."""
        p = weights.flatten().index_select(0, self.places(weights.device))
        parts = []
        if self.terms:
            layers = [term.second for term in self.terms]
            tensors = [hidden.pop(term.place) for term in self.terms]
            tensors += [layer.weight for layer in layers] + [layer.bias for layer in layers]
            parts.append(SecondLayers.apply(p[: len(layers)], self.layout, *tensors))
        for (_, source, operation), weight in zip(self.others, p[len(self.terms) :].unbind(), strict=True):
            x = states[source]
            parts.append(weight.to(x.dtype) * operation(x, first, grid))
        y, *rest = parts
        return sum(rest, start=y)


class JointCell(Cell):
    """A layer of the supernet that computes its operations together; its weights and its function are those of a cell.

    An operation that has no two halves is computed by itself. If someone listens to an operation by a hook, the whole
    layer is computed as a cell is.
    """

    def nodes(
        self,
        x_prev_prev: Tensor,
        x_prev: Tensor,
        weights: Tensor | None = None,
        first: int | None = None,
        grid: Grid | None = None,
    ) -> list[Tensor]:
        """Return the outputs of the nodes as :meth:`~dasvit.encoder.Cell.nodes` does."""
        groups, nodes = self._plan(first is not None)
        apart = weights is None or not torch.is_grad_enabled() or torch.jit.is_tracing()
        if apart or any(term.module._forward_hooks for group in groups for term in group.terms):
            return super().nodes(x_prev_prev, x_prev, weights, first, grid)
        assert weights is not None
        states = [x_prev_prev, x_prev][2 - self.inputs :]
        hidden: dict[int, Tensor] = {}
        ready = 0  # nodes whose first layers are computed
        for number, node in enumerate(nodes):
            for source in range(ready, len(states)):
                leaving = [group for group in groups if group.source == source]
                x_hat = normalise(states[source]) if leaving else states[source]
                for group in leaving:
                    hidden |= group.hidden(x_hat, first)
            ready = len(states)
            states.append(node.output(states, hidden, weights, first if number == len(nodes) - 1 else None, grid))
        return states[self.inputs :]

    def _plan(self, few: bool) -> tuple[list[Group], list[Node]]:
        """Return what is computed together, where of the last node a ``few`` tokens are wanted or all."""
        plans: dict[bool, tuple[list[Group], list[Node]]] = self.__dict__.setdefault("_plans", {})
        if few not in plans:
            plans[few] = self._make_plan(few)
        return plans[few]

    def _make_plan(self, few: bool) -> tuple[list[Group], list[Node]]:
        targets, place = dict.fromkeys(target for _, target in self.wiring), 0
        groups: dict[tuple[int, bool], list[Term]] = {}
        terms: dict[int, list[Term]] = {target: [] for target in targets}
        others: dict[int, list[tuple[int, int, nn.Module]]] = {target: [] for target in targets}
        for source, target in self.wiring:
            edge: Any = self.edges[edge_name((source, target))]
            for index, key in edge.terms:
                operation = edge.operations[key]
                if not (isinstance(operation, PreNorm) and operation.halves is not None):
                    others[target].append((place + index, source, operation))
                    continue
                cut = few and target == self.wiring[-1][1]
                term = Term(place + index, operation.norm, operation.module, operation.halves, cut)
                groups.setdefault((source, cut and not term.halves.sees_all), []).append(term)
                terms[target].append(term)
            place += edge.width
        made = [Group(source, cut, found) for (source, cut), found in groups.items()]
        return made, [Node(terms[target], others[target]) for target in targets]


class FirstLayers(Function):
    """``W_i (γ_i x̂ + β_i) + b_i`` of all terms of a group, side by side ``[b, n, Σ outputs]``: one product.

    :meta private:
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, *parameters: Tensor) -> Tensor:
        """Return the outputs; ``parameters`` are all matrices, then all biases, scales and shifts."""
        count = len(layout.sizes)
        weights, biases = parameters[:count], parameters[count : 2 * count]
        scale, shift = torch.stack(parameters[2 * count : 3 * count]), torch.stack(parameters[3 * count :])
        owner, _ = layout.on(scale)
        with torch.autocast(x.device.type, enabled=False):  # or it would round what is put together
            weight = torch.cat(weights)
            folded = torch.mul(weight, scale[owner], out=weight.new_empty(weight.shape, dtype=x.dtype))
            shifted = (weight @ shift.T).gather(1, owner.unsqueeze(1)).squeeze(1) + torch.cat(biases)
            ctx.layout = layout
            ctx.save_for_backward(x, folded, scale, shift, *weights)
            return F.linear(x, folded, shifted.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients."""
        x, folded, scale, shift, *weights = ctx.saved_tensors
        dx = dy @ folded if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[2:]):
            return dx, None, *(4 * len(weights) * [None])
        owner, members = ctx.layout.on(scale)
        outer, total = outer_and_sum(dy, x, scale.dtype)
        totals = members * total
        dw = torch.addmm(outer * scale[owner], totals.T, shift)
        dscale, dshift = members @ (outer * (weight := torch.cat(weights))), totals @ weight
        sizes = ctx.layout.sizes
        return dx, None, *dw.split(sizes), *total.split(sizes), *dscale.unbind(), *dshift.unbind()


class SecondLayers(Function):
    """``Σ_i p_i (W_i h_i + b_i)`` of all terms that enter a node: one product, which adds.

    :meta private:
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, layout: Layout, *tensors: Tensor) -> Tensor:
        """Return the sum; ``tensors`` are what each layer reads, then all matrices and biases."""
        count = len(layout.sizes)
        owner, _ = layout.on(p)
        with torch.autocast(p.device.type, enabled=False):
            hidden, weight = torch.cat(tensors[:count], dim=-1), torch.cat(tensors[count : 2 * count], dim=1)
            biases = torch.stack(tensors[2 * count :])
            folded = torch.mul(weight, p[owner], out=weight.new_empty(weight.shape, dtype=hidden.dtype))
            ctx.layout = layout
            ctx.save_for_backward(hidden, weight.to(hidden.dtype) if ctx.needs_input_grad[0] else folded, p, biases)
            return F.linear(hidden, folded, (p.to(biases.dtype) @ biases).to(hidden.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients."""
        hidden, weight, p, biases = ctx.saved_tensors
        (owner, members), sizes, count = ctx.layout.on(p), ctx.layout.sizes, len(ctx.layout.sizes)
        needs_p, needs_hidden = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2 : 2 + count])
        needs_weights = any(ctx.needs_input_grad[2 + count :])
        dp, found, rows = None, 3 * count * [None], dy.flatten(0, -2)
        total = rows.sum(dim=0, dtype=biases.dtype) if needs_p or needs_weights else None
        dh = dy @ weight if needs_p or needs_hidden else None
        if needs_p and dh is not None:
            dp = members @ (dh * hidden).flatten(0, -2).sum(dim=0, dtype=p.dtype) + (biases @ total).to(p.dtype)
            dh = dh * p[owner].to(dh.dtype) if needs_hidden else None
        if dh is not None:
            found[:count] = dh.split(sizes, dim=-1)
        if needs_weights:
            outer = (rows.T @ hidden.flatten(0, -2)).to(biases.dtype)
            found[count : 2 * count] = (outer * p[owner]).split(sizes, dim=1)
            found[2 * count :] = (p.unsqueeze(1) * total).unbind()
        return dp, None, *found
