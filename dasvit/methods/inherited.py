"""Encoders judged by the weights that they have in a supernet (chapter 12)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..relaxation import Candidates, MixedEdge, Supernet
from ..space import Genotype, SearchSpace
from .sampling import evolution

Batches = Sequence[tuple[Tensor, Tensor]]
"""Normalised images ``[b, c, h, w]`` and labels ``[b]``; the last batch may be smaller."""


def random_path(space: SearchSpace, candidates: Candidates, rng: random.Random) -> Genotype:
    """Draw an encoder, all of those that the candidates allow being equally likely."""
    places, nodes = {edge: i for i, edge in enumerate(space.edges)}, []
    for target in range(space.inputs, space.inputs + space.nodes):
        node = []
        for source in sorted(rng.sample(range(target), min(space.keep, target))):
            choices = [op for op in candidates[places[source, target]] if op.spec.scale != 0]
            node.append((source, rng.choice(choices)))
        nodes.append(tuple(node))
    return Genotype(tuple(nodes), space.inputs)


def path_weights(genotype: Genotype, space: SearchSpace, candidates: Candidates) -> Float[Tensor, "edges operations"]:
    """Return mixing weights that are one on the operations of an encoder and zero elsewhere.

    Raises:
        ValueError: If an operation is not among the candidates of its edge.
    """
    weights = torch.zeros(len(candidates), len(candidates[0]))
    for edge, operation in genotype.edges:
        place = space.edges.index(edge)
        if operation not in candidates[place]:
            raise ValueError(f"{operation} is not a candidate on edge {edge} of this supernet")
        weights[place, candidates[place].index(operation)] = 1
    return weights


@torch.no_grad()
def inherited_accuracy(supernet: Supernet, genotype: Genotype, batches: Batches) -> float:
    """Return the accuracy of an encoder with the weights that it has in the supernet, in evaluation mode."""
    training, edges = supernet.training, [edge for edge in supernet.modules() if isinstance(edge, MixedEdge)]
    sparse = [edge.sparse for edge in edges]
    supernet.eval()
    for edge in edges:
        edge.sparse = True  # all but the path weighs nothing
    weights = path_weights(genotype, supernet.space, supernet.candidates).to(supernet.alpha)
    try:
        right = [(supernet(x.to(weights.dtype), weights).argmax(1) == y).sum() for x, y in batches]
    finally:
        supernet.train(training)
        for edge, before in zip(edges, sparse, strict=True):
            edge.sparse = before
    return float(torch.stack(right).sum()) / sum(len(y) for _, y in batches)


def search_paths(supernet: Supernet, batches: Batches, count: int, seed: int) -> Genotype:
    """Return the best of so many encoders with inherited weights, found by evolution (single path, Guo et al. 2020).

    The paper's evolution keeps the ten best and makes half of each round of 50 by crossover; here it is the regularised
    one of :func:`~dasvit.methods.sampling.evolution` with a population of 50, or a quarter of ``count``, and samples of
    ten.

    Args:
        supernet: The supernet, trained by random paths.
        batches: Validation images.
        count: Encoders that are looked at, some again.
        seed: Of the evolution.
    """
    known: dict[Genotype, float] = {}

    def look(genotype: Genotype, _epochs: int, _seed: int) -> tuple[float, float]:
        if genotype not in known:
            known[genotype] = inherited_accuracy(supernet, genotype, batches)
        return known[genotype], 1.0  # each counts as one

    population = min(50, max(2, count // 4))
    return evolution(supernet.space, look, count, epochs=0, seed=seed, population=population, sample=10).genotype
