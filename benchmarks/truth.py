"""The networks of AutoFormer's spaces whose ImageNet accuracies others have published (A48), in the order of scoring.

The file is not part of this repository: one JSON object a line with ``space`` (tiny, small, base), ``dim``, ``depth``,
``num_heads``, ``mlp_ratios``, ``top1`` (percent), ``params_millions``, ``flops_millions``. The figures were published
with OoD-ViT-NAS (Ho et al. 2024): https://github.com/vovantuan1999a/OoD-ViT-NAS, ``architecture_infors``.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dasvit.autoformer import build_autoformer
from dasvit.counting import complexity
from dasvit.training_free import SPACES, AutoFormerSpace, Candidate, Shape

NAMES = {"tiny": "autoformer-t", "small": "autoformer-s", "base": "autoformer-b"}


@dataclass(frozen=True)
class Trained:
    """A network of the file.

    Args:
        space: Its space, a key of ``SPACES``.
        number: Its number in the space.
        line: Its line in the file, from 0.
        dim: Width.
        depth: Layers.
        top1: Correct share of ImageNet's validation images, in percent.
        parameters: As the file counts them.
        flops: Millions of operations, as the file counts them.
    """

    space: str
    number: int
    line: int
    dim: int
    depth: int
    top1: float
    parameters: int
    flops: float


def read(path: Path) -> list[Trained]:
    """Return the networks of the file.

    Raises:
        ValueError: If it cannot be read, a line is none of a network of our spaces, a network stands there twice, or
            its parameters are not those that we count.
    """
    try:
        texts = path.read_text().splitlines()
    except OSError as error:
        where = "it is not part of this repository, benchmarks/truth.py says where to get it"
        raise ValueError(f"cannot read {path}: {error.strerror}: {where}") from None
    found: dict[tuple[str, int], Trained] = {}
    for line, text in enumerate(texts):
        try:
            one = _network(line, json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {line + 1}: {type(error).__name__}: {error}") from None
        ours = SPACES[one.space].parameters(one.number, Shape())
        if ours != one.parameters:
            raise ValueError(f"{path}, line {line + 1}: {one.parameters:,} parameters, we count {ours:,}")
        if (before := found.setdefault((one.space, one.number), one)) is not one:
            raise ValueError(f"{path}, line {line + 1}: the network of line {before.line + 1} again")
    if not found:
        raise ValueError(f"{path} has no network")
    return list(found.values())


def _network(line: int, told: dict[str, Any]) -> Trained:
    name = NAMES[told["space"]]
    space = SPACES[name]
    assert isinstance(space, AutoFormerSpace)
    number = space.number(Candidate(told["dim"], tuple(told["num_heads"]), tuple(told["mlp_ratios"])))
    parameters, depth = round(1e6 * told["params_millions"]), len(told["num_heads"])
    return Trained(name, number, line, told["dim"], depth, told["top1"], parameters, told["flops_millions"])


def macs(space: str, number: int, layers: int | None = None) -> int:
    """Return the multiply-accumulates of a network, or of its first layers, for an image of 224 pixels."""
    c = SPACES[space][number]  # type: ignore[index]
    those = list(zip(c.num_heads, c.mlp_ratios, strict=True))[:layers]
    return _macs(space, c.dim, ()) + sum(_macs(space, c.dim, layer) for layer in those)


@cache
def _macs(space: str, dim: int, layer: tuple[int, float] | tuple[()]) -> int:
    """Return the multiply-accumulates of a layer, or of what a network has beside its layers."""
    some = SPACES[space]
    assert isinstance(some, AutoFormerSpace)
    heads, ratio = layer or (some.num_heads[0], some.mlp_ratios[0])
    with torch.device("meta"):
        one, two = (complexity(build_autoformer(dim, [heads] * count, [ratio] * count), 224).macs for count in (1, 2))
    return two - one if layer else 2 * one - two


def stratified(networks: list[Trained], seed: int = 0) -> list[Trained]:
    """Return networks in an order of which every beginning is a fair sample of all widths and depths.

    Within each width and depth the order is random; the k-th of n networks comes at (k + u) / n, u random, of the way.
    """
    rng, strata = random.Random(seed), defaultdict(list)
    for network in networks:
        strata[network.dim, network.depth].append(network)
    placed = []
    for _, some in sorted(strata.items()):
        rng.shuffle(some)
        placed += [((k + rng.random()) / len(some), network) for k, network in enumerate(some)]
    return [network for _, network in sorted(placed, key=lambda pair: pair[0])]
