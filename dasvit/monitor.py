"""What a search should be watched for: collapse to identities, decisions by a hair, an α that rests (chapter 12).

All of it follows from α, so that runs which were logged without it can be told the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .relaxation import Candidates
from .space import Genotype, SearchSpace, edge_name

HAIR = 0.01  # of the entropy of a uniform choice: within it nothing has been chosen


def kinds(genotype: Genotype) -> dict[str, int]:
    """Return how many operations of each kind an encoder has."""
    return dict(Counter(operation.kind for _, operation in genotype.edges))


def entropy(p: Float[Tensor, "edges operations"]) -> float:
    """Return the mean entropy of an edge, its mixing weights made to sum to one, as a share of the largest: 0 … 1."""
    p = p / p.sum(dim=-1, keepdim=True)
    return float(torch.special.entr(p).sum(dim=-1).mean()) / math.log(p.shape[1])


def margins(
    p: Float[Tensor, "edges operations"], candidates: Candidates, space: SearchSpace, keep: int | None = None
) -> dict[str, float]:
    """Return by how much mixing weight each decision is taken.

    Args:
        p: Mixing weights.
        candidates: The operations that the columns stand for, by edge.
        space: The search space.
        keep: Operations that the next stage keeps on an edge; by default there is none.

    Returns:
        By edge, e.g. ``"0-2"``: the strongest operation but zero before the next one. By node that has edges to choose
        from, e.g. ``"node 3"``: the weakest edge that stays before the strongest one that goes. With ``keep`` by edge,
        ``"0-2 cut"``: the weakest operation that stays before the strongest one that goes.
    """
    found: dict[str, float] = {}
    strongest: dict[int, list[float]] = {}
    for (source, target), row, operations in zip(space.edges, p.tolist(), candidates, strict=True):
        own = sorted((x for x, op in zip(row, operations, strict=True) if op.spec.scale != 0), reverse=True)
        strongest.setdefault(target, []).append(own[0])
        if len(own) > 1:
            found[edge_name((source, target))] = own[0] - own[1]
        if keep is not None and keep < len(row):
            ordered = sorted(row, reverse=True)
            found[f"{edge_name((source, target))} cut"] = ordered[keep - 1] - ordered[keep]
    for target, values in strongest.items():
        if len(values) > space.keep:
            ordered = sorted(values, reverse=True)
            found[f"node {target}"] = ordered[space.keep - 1] - ordered[space.keep]
    return found


def watched(
    p: Float[Tensor, "edges operations"],
    candidates: Candidates,
    space: SearchSpace,
    genotype: Genotype,
    keep: int | None = None,
) -> dict[str, Any]:
    """Return what is logged of an epoch.

    Args:
        p: Mixing weights.
        candidates: The operations that the columns stand for, by edge.
        space: The search space.
        genotype: The encoder that is derived now.
        keep: As of :func:`margins`.
    """
    skips = torch.tensor([[op.spec.scale == 1 for op in operations] for operations in candidates], device=p.device)
    return {
        "kinds": kinds(genotype),
        "entropy": entropy(p),
        "skip_weight": float((p * skips).sum()),
        "margins": margins(p, candidates, space, keep),
    }


def _softmax(alpha: Tensor) -> Tensor:
    return alpha.softmax(dim=1)


def drift(earlier: Mapping[str, Any], later: Mapping[str, Any], mixing: Callable[[Tensor], Tensor] = _softmax) -> float:
    """Return the most that a mixing weight has changed between two logged epochs of one stage.

    Args:
        earlier: A row.
        later: Another one.
        mixing: From α, with a last column for edges that have weights of their own, to the mixing weights.
    """

    def weights(row: Mapping[str, Any]) -> Tensor:
        own = {name: [value] for name, value in row.get("edges", {}).items()}
        return mixing(torch.tensor([[*edge.values(), *own.get(name, ())] for name, edge in row["alpha"].items()]))

    return float((weights(later) - weights(earlier)).abs().max())


def undecided(history: Sequence[Mapping[str, Any]], mixing: Callable[[Tensor], Tensor] = _softmax) -> str | None:
    """Return in one line why the encoder found says little, or nothing if α has decided.

    Rows that were logged before there was a monitor are left out.

    Args:
        history: The rows of a search.
        mixing: See :func:`drift`.
    """
    last = next((row for row in reversed(history) if "margins" in row), None)
    if last is None or not last["margins"] or last.get("paths"):
        return None
    if last["entropy"] > 1 - HAIR:
        return f"α has hardly moved: the entropy of its choices is {100 * last['entropy']:.1f} % of a uniform one's"
    stage = [row for row in history if row["stage"] == last["stage"]]
    if len(stage) < 2:
        return None
    moved = drift(stage[-2], stage[-1], mixing)
    close = [name for name, margin in last["margins"].items() if margin < moved]
    if 2 * len(close) <= len(last["margins"]):
        return None
    told = f"{len(close)} of {len(last['margins'])} decisions are by less than a weight moved in the last epoch"
    return f"α has not settled: {told} ({moved:.2g})"


def dominant_eigenvalue(
    gradient: Callable[[Tensor], Tensor], at: Tensor, *, iterations: int = 30, tolerance: float = 1e-3
) -> float:
    """Return the eigenvalue of largest size of a Hessian, by power iteration.

    A product with the Hessian is a central difference of gradients, ``(∇L(α + εv) − ∇L(α − εv)) / 2ε`` with ‖v‖ = 1 and
    ``ε = eps^{1/3} max(1, ‖α‖)``: two gradients, and no second derivative, which the lean operations do not have.

    Args:
        gradient: From values of α to the gradient there.
        at: Where the Hessian is taken.
        iterations: Products at most.
        tolerance: Relative change of the eigenvalue at which it is found.
    """
    step = torch.finfo(at.dtype).eps ** (1 / 3) * max(1.0, float(at.norm()))
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(at.shape, generator=generator, dtype=at.dtype).to(at.device)
    v, found = v / v.norm(), 0.0
    for _ in range(iterations):
        product = (gradient(at + step * v) - gradient(at - step * v)) / (2 * step)
        before, found = found, float((v * product).sum())
        if (size := product.norm()) == 0:
            return 0.0
        v = product / size
        if abs(found - before) <= tolerance * abs(found):
            break
    return found
