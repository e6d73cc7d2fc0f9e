"""The continuous relaxation: architecture parameters, mixed edges, the supernet (chapter 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .encoder import Cell, build, make_operation
from .joint import JointCell
from .lean import normalise
from .methods.mixing import expected_weights
from .methods.settings import RelaxationSettings
from .operations import Grid, PreNorm, Zero
from .space import Genotype, Operation, SearchSpace, edge_name
from .tokens import TokenSelection
from .vit import VisionTransformer

Candidates = tuple[tuple[Operation, ...], ...]
"""The operations in play on each edge of the space, in the order of its edges."""


class MixedEdge(nn.Module):
    """All candidates of one edge at once, Eq. (5): ``Σ_o p_o · o(x)`` with mixing weights p.

    Args:
        operations: The candidates.
        dim: Width D of a token.
        recompute: Whether what the operations have inside is computed again in the backward pass.

    Attributes:
        needs_grid: Whether a candidate needs the patch tokens where they stand.
        width: Number of candidates.
        sparse: Whether operations without a weight are not computed, which to know takes reading the weights.
    """

    def __init__(self, operations: Sequence[Operation], dim: int, recompute: bool = False) -> None:
        super().__init__()
        self.recompute, self.width, self.sparse = recompute, len(operations), False
        self.needs_grid = any(op.spec.needs_grid for op in operations)
        self.terms = [(i, _key(op)) for i, op in enumerate(operations) if op.spec.scale != 0]
        self.operations = nn.ModuleDict({key: make_operation(operations[i], dim) for i, key in self.terms})

    def module(self, operation: Operation) -> nn.Module:
        """Return a candidate's module, with its weights."""
        return Zero() if operation.spec.scale == 0 else self.operations[_key(operation)]

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        weights: Float[Tensor, " operations"],
        first: int | None = None,
        x_hat: Float[Tensor, "b n d"] | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Mix the operations' outputs; zero adds nothing, so it is never computed.

        Args:
            x: Tokens.
            weights: Mixing weights p.
            first: Only so many tokens are wanted; by default all.
            x_hat: ``x`` normalised, see :func:`~dasvit.lean.normalise`. If given, operations that have a lean way are
                computed from it in this way, unless someone listens to one of them by a hook.
            grid: Rows and columns of the patch tokens.
        """
        each = weights.unbind()

        def plain(index: int, operation: nn.Module) -> Tensor:
            return each[index].to(x.dtype) * operation(x, first, grid)

        def lean(index: int, operation: PreNorm, x_hat: Tensor) -> Tensor:
            assert operation.lean is not None
            return operation.lean(operation.norm, operation.module, x_hat, each[index], first)

        def again(index: int, operation: PreNorm, x: Tensor) -> Tensor:
            return lean(index, operation, normalise(x))

        def term(index: int, operation: nn.Module) -> Tensor:
            if not isinstance(operation, PreNorm) or operation.lean is None or x_hat is None:
                return plain(index, operation)  # never computed twice: it may draw numbers or keep statistics
            if operation.module._forward_hooks:
                return plain(index, operation)
            if self.recompute:  # from x, so that not even x_hat is kept
                return checkpoint(again, index, operation, x, use_reentrant=False, preserve_rng_state=False)
            return lean(index, operation, x_hat)

        terms = self.terms
        if self.sparse:
            weighing = set(weights.detach().nonzero().flatten().tolist())
            terms = [(index, key) for index, key in terms if index in weighing]
            if not terms:
                return torch.zeros_like(x[:, :first])
        y, *rest = (term(index, self.operations[key]) for index, key in terms)
        return sum(rest, start=y)


def _key(operation: Operation) -> str:
    return str(operation).replace(".", "_")  # a module's name has no dot


class Supernet(VisionTransformer):
    """The trunk with a mixed cell in every layer and one α for all of them (ledger A6).

    Args:
        space: The search space.
        candidates: The operations still in play on each edge, equally many on all; by default all of them.
        depth: Number of layers.
        dim: Width D of a token.
        keep_ratio: Share of patch tokens kept (chapter 4); all are where a candidate needs them where they stand.
        recompute: Whether what attention and MLPs have inside is computed again in the backward pass instead of being
            kept. The same gradients, more time.
        class_token_last: Whether the last layer computes the class token alone; networks that are extracted do not.
        joint: Whether a layer's operations are computed in few large products, see :mod:`dasvit.joint`.
        relaxation: How α becomes mixing weights; by default their softmax.
        make_edge: Makes a mixed edge from candidates and the width; by default a :class:`MixedEdge`.
        **settings: ``image_size``, ``patch_size``, ``in_channels``, ``num_classes``, ``init`` of
            :class:`~dasvit.vit.VisionTransformer`.

    Raises:
        ValueError: If the candidates do not fit the space, the sizes do not fit together, or what is computed in large
            products is to be computed again one by one.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        candidates: Candidates | None = None,
        depth: int = 2,
        dim: int = 768,
        keep_ratio: float = 1.0,
        recompute: bool = False,
        class_token_last: bool = False,
        joint: bool = False,
        relaxation: RelaxationSettings | None = None,
        make_edge: Callable[[Sequence[Operation], int], MixedEdge] | None = None,
        **settings: Any,
    ) -> None:
        if joint and recompute:
            raise ValueError("joint with recompute: what is computed in few products is kept, choose one of the two")
        candidates = candidates or (space.operations,) * len(space.edges)
        check_candidates(space, candidates)
        edges = dict(zip(space.edges, candidates, strict=True))
        make = make_edge or (lambda operations, dim: MixedEdge(operations, dim, recompute))
        cell = JointCell if joint else Cell
        free = not any(op.spec.needs_grid for operations in candidates for op in operations)
        super().__init__(
            lambda: cell({edge: make(ops, dim) for edge, ops in edges.items()}, space.inputs),
            depth=depth,
            dim=dim,
            make_selection=lambda: TokenSelection(dim, keep_ratio) if keep_ratio != 1 and free else nn.Identity(),
            class_token_last=class_token_last,
            **settings,
        )
        self.space, self.candidates = space, candidates
        self.dim, self.settings = dim, {"depth": depth, **settings}
        self.relaxation = relaxation or RelaxationSettings()
        columns = len(candidates[0]) + (self.relaxation.partial > 1)  # the last one is that of the edges
        self.alpha = nn.Parameter(1e-3 * torch.randn(len(candidates), columns))  # ledger A50

    @property
    def network_parameters(self) -> list[nn.Parameter]:
        """The weights w: every parameter but α."""
        return [p for name, p in self.named_parameters() if name != "alpha"]

    def mixing_weights(self, alpha: Float[Tensor, "edges columns"] | None = None) -> Float[Tensor, "edges operations"]:
        """Return what α, or another ``alpha``, stands for, by default ``softmax(α)`` by edge, in float32 at least."""
        targets = tuple(target for _, target in self.space.edges)
        return expected_weights(self.alpha if alpha is None else alpha, self.relaxation, targets)

    def forward(  # type: ignore[override]
        self,
        images: Float[Tensor, "b c h w"],
        weights: Float[Tensor, "edges operations"] | None = None,
        *,
        intermediates: bool = False,
    ) -> Any:
        """Classify images, mixing the candidates with :meth:`mixing_weights` or the ``weights`` given."""
        weights = self.mixing_weights() if weights is None else weights
        return super().forward(images, weights, intermediates=intermediates)

    def genotype(self, max_skips: int | None = None) -> Genotype:
        """Return the architecture that α stands for now, see :func:`derive`."""
        return derive(self.mixing_weights(), self.candidates, self.space, max_skips)

    def extract(self, genotype: Genotype, *, class_token_last: bool = False) -> VisionTransformer:
        """Return the derived network with the weights that it has in this supernet.

        Args:
            genotype: The encoder.
            class_token_last: Whether its last layer computes the class token alone.

        Raises:
            ValueError: If an operation of ``genotype`` is not among the candidates of its edge, or if operations see
                a part of the channels alone.
        """
        if self.relaxation.partial > 1:
            raise ValueError("operations on a part of the channels have no weights for a derived network: train it")
        how = {**self.settings, "class_token_last": class_token_last}
        network = build(genotype, dim=self.dim, **how).to(self.alpha)
        state = {
            k: v for k, v in self.state_dict().items() if not k.startswith(("alpha", "layers.", "token_selection."))
        }
        for edge, operation in genotype.edges:
            if operation not in self.candidates[self.space.edges.index(edge)]:
                raise ValueError(f"{operation} is not a candidate of edge {edge_name(edge)} in this supernet")
            name = f"edges.{edge_name(edge)}"
            for layer in range(len(self.layers)):
                edge_module = self.layers[layer].get_submodule(name)
                assert isinstance(edge_module, MixedEdge)
                weights = edge_module.module(operation).state_dict()
                state |= {f"layers.{layer}.{name}.{k}": v for k, v in weights.items()}
        network.load_state_dict(state)
        return network


def check_candidates(space: SearchSpace, candidates: Candidates) -> None:
    """Check that candidates are of a space.

    Raises:
        ValueError: If they are not, equally many on each edge, and one beside zero.
    """
    if len(candidates) != len(space.edges) or len({len(ops) for ops in candidates}) != 1:
        raise ValueError(
            f"candidates for {len(candidates)} edges: the space has {len(space.edges)}, all of equal length"
        )
    for edge, operations in zip(space.edges, candidates, strict=True):
        if not set(operations) <= set(space.operations) or len(set(operations)) < len(operations):
            raise ValueError(f"edge {edge} lists {', '.join(map(str, operations))}: each once, from the space")
        if all(op.spec.scale == 0 for op in operations):
            raise ValueError(f"edge {edge} has no operation but zero: keep at least two operations an edge")


def derive(
    weights: Float[Tensor, "edges operations"], candidates: Candidates, space: SearchSpace, max_skips: int | None = None
) -> Genotype:
    """Discretise: the strongest non-zero operation of each edge, then each node's ``keep`` strongest edges.

    It is the rule of DARTS (ledger A7); zero is weighed and never taken (A38).

    Args:
        weights: Mixing weights ``softmax(α)``.
        candidates: The operations the columns stand for, by edge.
        space: The search space.
        max_skips: Identities to keep at most. While there are more, the weakest one's weight becomes zero and the
            genotype is derived again; an edge that has nothing else but zero keeps it.

    Returns:
        The genotype; the first of equally strong choices wins.
    """
    found = _strongest(weights, candidates, space)
    places = {edge: i for i, edge in enumerate(space.edges)}
    while max_skips is not None:
        kept = [(places[edge], candidates[places[edge]].index(op)) for edge, op in found.edges if op.spec.scale == 1]
        weighing = [place for place in kept if weights[place] > 0]
        if len(kept) <= max_skips or not weighing:
            break
        weakest = min(weighing, key=lambda place: float(weights[place]))
        weights = weights.index_put(tuple(map(torch.tensor, weakest)), weights.new_zeros(()))
        found = _strongest(weights, candidates, space)
    return found


def _strongest(weights: Tensor, candidates: Candidates, space: SearchSpace) -> Genotype:
    best: dict[int, list[tuple[float, int, Operation]]] = {}
    for (source, target), row, operations in zip(space.edges, weights.tolist(), candidates, strict=True):
        # of equals the first: min by -p, where max by p would have to turn the order round
        weakness, index = min((-p, i) for i, p in enumerate(row) if operations[i].spec.scale != 0)
        best.setdefault(target, []).append((weakness, source, operations[index]))
    nodes = []
    for incoming in best.values():
        strongest = sorted(incoming, key=lambda edge: edge[:2])[: space.keep]
        nodes.append(tuple(sorted(((source, op) for _, source, op in strongest), key=lambda edge: edge[0])))
    return Genotype(tuple(nodes), space.inputs)


def prune(
    alpha: Float[Tensor, "edges operations"], candidates: Candidates, keep: int
) -> tuple[Candidates, list[list[int]]]:
    """Drop the weakest operations of each edge by α (Algorithm 1, between stages; ledger A21, A38).

    Args:
        alpha: Architecture parameters.
        candidates: The operations the columns stand for, by edge.
        keep: Number of operations to keep on each edge, at least 2 so that one is not zero.

    Returns:
        The surviving candidates in their old order, and the column each of them had.

    Raises:
        ValueError: If ``keep`` is below 2 or above the number of candidates.
    """
    if not 2 <= keep <= len(candidates[0]):
        raise ValueError(f"cannot keep {keep} of {len(candidates[0])} operations an edge: at least 2, at most all")
    columns = [sorted(row.topk(keep).indices.tolist()) for row in alpha]
    survivors = tuple(tuple(ops[i] for i in kept) for ops, kept in zip(candidates, columns, strict=True))
    return survivors, columns
