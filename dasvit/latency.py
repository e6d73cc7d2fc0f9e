"""A table of the times of operations on this machine, and how far whole networks are from it (own objective)."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .costs import TABLE, Shape, operation_cost, trunk_cost
from .data.sizes import ImageSize, pair
from .encoder import build
from .engine.provenance import provenance
from .space import Genotype, Operation, SearchSpace
from .vit import count_patches

ROUNDS = 60  # everything is measured in turn so many times, and the shortest counts: a machine has other work
SHORTEST = 0.003  # seconds that one measurement takes at least: shorter than the turns that other work is given
FITTED = 6  # whole networks whose time decides the factor of all operations


def measure(
    space: SearchSpace,
    *,
    image_size: ImageSize,
    patch_size: int,
    dim: int,
    depth: int,
    in_channels: int = 3,
    num_classes: int = 10,
    batch_size: int = 1,
    checks: int = 10,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Measure what each operation of a space takes here, and whole networks beside it, all without gradients.

    A network is taken to need what one of identities alone does, and for each operation of each layer what it adds
    to that when it takes the place of one identity in every layer. That is measured twice: in the last node, of whose
    last layer only the class token is computed, and in another. Together operations take longer than one by one, where
    their weights and tokens stay in the caches, so one factor for all is fitted to some whole networks
    (:func:`factor`). Further networks, drawn at random, are measured to tell how far that is from the truth.

    Args:
        space: Whose operations are measured.
        image_size: Size of an image in pixels.
        patch_size: Side of a patch in pixels.
        dim: Width of a token.
        depth: Number of layers.
        in_channels: Channels of an image.
        num_classes: Number of classes.
        batch_size: Images at a time; what is told is the time of one.
        checks: Whole networks to be measured beside those that the factor is fitted to.
        device: Where.

    Returns:
        What is written as JSON, with ``seconds`` of an image by operation and of the ``"trunk"``, the operations in the
        ``last`` node, the ``factor`` that is in both, and in ``checked`` a row for each network.
    """
    shape = Shape(1 + count_patches(image_size, patch_size), dim, depth, in_channels * patch_size**2, num_classes)
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
    sizes |= {"num_classes": num_classes, "dim": dim, "depth": depth}
    images = torch.randn(batch_size, in_channels, *pair(image_size), device=device)
    operations = [op for op in space.operations if op.spec.scale is None]
    drawn = [space.sample(random.Random(seed)) for seed in range(FITTED + checks)]

    genotypes = [_with_one(Operation("skip"), space, 0)]
    genotypes += [_with_one(op, space, node) for node in (0, space.nodes - 1) for op in operations]
    trunk, *rest = timed(genotypes + drawn, images, **sizes)
    names, alone, whole = [str(op) for op in operations], rest[: 2 * len(operations)], rest[2 * len(operations) :]
    added = [max(0.0, each - trunk) / depth for each in alone]

    elsewhere, last = (dict(zip(names, part, strict=True)) for part in (added[: len(names)], added[len(names) :]))
    table = partial(_table, shape, trunk, elsewhere, last)
    before = json.dumps(table(1.0))
    found = table(factor([predict(g, shape, before, space) for g in drawn[:FITTED]], whole[:FITTED], trunk))
    text = json.dumps(found)
    checked = [
        {"genotype": genotype.to_json(), "predicted": predict(genotype, shape, text, space), "measured": truth}
        for genotype, truth in list(zip(drawn, whole, strict=True))[FITTED:]
    ]
    return {**found, "batch_size": batch_size, "checked": checked, "provenance": provenance()}


def factor(predicted: Sequence[float], measured: Sequence[float], trunk: float) -> float:
    """Return how much longer the operations of whole networks take than foretold: the median of the ratios.

    Args:
        predicted: Seconds foretold of each network.
        measured: Seconds that it took.
        trunk: Seconds of a network of identities alone, which both contain.
    """
    ratios = [(m - trunk) / (p - trunk) for p, m in zip(predicted, measured, strict=True) if p > trunk]
    return max(0.0, statistics.median(ratios)) if ratios else 1.0


def _table(
    shape: Shape, trunk: float, elsewhere: dict[str, float], last: dict[str, float], scale: float
) -> dict[str, Any]:
    """Return what is written of the seconds that the operations add in the last node and elsewhere."""
    told = {"format": TABLE, "tokens": shape.tokens, "dim": shape.dim, "depth": shape.depth, "factor": scale}
    own, other = ({"skip": 0.0} | {name: scale * t for name, t in part.items()} for part in (last, elsewhere))
    return told | {"seconds": {"trunk": trunk, **other}, "last": own}


def _with_one(operation: Operation, space: SearchSpace, node: int) -> Genotype:
    """Return identities as many as an encoder has operations, the last one of a node replaced."""
    counts = [min(space.keep, space.inputs + node) for node in range(space.nodes)]
    nodes = [[(source, Operation("skip")) for source in range(count)] for count in counts]
    nodes[node][-1] = (nodes[node][-1][0], operation)
    return Genotype(tuple(map(tuple, nodes)), space.inputs)


def predict(genotype: Genotype, shape: Shape, table: str, space: SearchSpace) -> float:
    """Return the seconds of an image that a table foretells for the network of an encoder."""
    last = space.edges[-1][1]
    layer = sum(operation_cost(op, "latency", shape, table, last=target == last) for (_, target), op in genotype.edges)
    return trunk_cost("latency", shape, table) + shape.depth * layer


@torch.inference_mode()
def timed(genotypes: Sequence[Genotype], images: Tensor, **sizes: Any) -> list[float]:
    """Return the seconds of an image in the network of each encoder: the shortest of rounds in which all take turns.

    On one thread of a CPU they are those of its clock, which stands still while other work has the core.

    Args:
        genotypes: The encoders.
        images: What is classified at a time.
        sizes: Of the networks, as for :func:`~dasvit.encoder.build`.
    """
    device = images.device
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    networks = [build(genotype, **sizes).to(device).eval() for genotype in genotypes]

    def once(network: nn.Module, count: int) -> float:
        start = clock()
        for _ in range(count):
            network(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (clock() - start) / count

    for network in networks:
        network(images)
    counts = [max(1, min(1000, round(SHORTEST / max(1e-9, once(network, 1))))) for network in networks]
    rounds = [[once(*each) for each in zip(networks, counts, strict=True)] for _ in range(ROUNDS)]
    return [min(column) / len(images) for column in zip(*rounds, strict=True)]
