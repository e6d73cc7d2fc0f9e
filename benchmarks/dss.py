"""Seconds to score one AutoFormer candidate by DSS: the plain way, ours, and the floor; CPU seconds, interleaved.

    python benchmarks/dss.py

Both are timed as in a search, from a candidate to its score. The plain way builds the network and initialises it, with
relative position gathered, takes the gradients of all parameters and the nuclear norm of every matrix as it stands in
the model; "plain, built" leaves the building out. Ours has shared weights, whose nuclear norms are known. The floor is
what cannot be avoided: the matrix products of forward and backward pass at the machine's measured peak, and the nuclear
norms of the gradients (for paper mode of the queries, keys and values too).
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import begin, write
from plain_dss import plain_dss
from tqdm import tqdm

from dasvit.autoformer import HEAD_DIM, build_autoformer
from dasvit.counting import complexity
from dasvit.training_free import DSS, SPACES, AutoFormerSpace, Shape, dss
from dasvit.training_free.diversity import Norms, nuclear_norm
from dasvit.vit import VisionTransformer


@dataclass(frozen=True)
class DssBenchmark:
    """Time DSS against the plain way and against the floor."""

    spaces: tuple[str, ...] = ("autoformer-t", "autoformer-s", "autoformer-b")
    """Spaces; one random candidate of each."""
    rounds: int = 5
    """Timed rounds; each runs every way once."""
    seed: int = 0
    """Seed of the candidates and weights."""
    out: Path = Path("book/results/dss_speed.json")
    """Where the JSON file goes."""


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def floor_of(space: AutoFormerSpace, number: int, mode: str, peak: float) -> tuple[float, list[Callable[[], object]]]:
    """Return the seconds of the matrix products, and the singular values that have to be computed.

    Products: the forward pass; for each of its products with a weight one for the gradient of the activation, and one
    for that of the weight if it is scored; for each product of two activations one for the gradient of either.
    """
    candidate = space[number]
    with torch.device("meta"):
        counted = complexity(space.fresh(number, Shape()), 224).products[""]
    weights = counted["linear"] + (counted["attention projection"] if mode == "paper" else 0)
    if mode == "released":
        weights += sum(197 * candidate.dim * h * HEAD_DIM for h in candidate.num_heads)  # output projections alone
    forward = sum(counted.values())
    backward = forward + counted["attention"] + counted["relative position"]
    generator = torch.Generator().manual_seed(0)
    work = []
    for heads in candidate.num_heads:
        for out in [heads * HEAD_DIM] + ([3 * heads * HEAD_DIM] if mode == "paper" else []):
            low = min(197, candidate.dim, out)  # the rank, and so the size of what is left after triangular factors
            matrix = torch.rand(low if low == 197 else max(candidate.dim, out), low, generator=generator)
            work.append(partial(nuclear_norm, matrix))
    return (forward + backward + weights) / peak, work


def scored(space: AutoFormerSpace, number: int, shape: Shape, mode: str, norms: Norms) -> DSS:
    """Return the score of a candidate from its number, as a search does."""
    return dss(space.build(number, shape), 224, mode, norms)


def built_and_scored(make: Callable[[], VisionTransformer], mode: str) -> tuple[float, float]:
    """Return the parts of the plain score of a network built for it."""
    return plain_dss(make(), 224, mode)


def measured_peak() -> float:
    """Return multiply-accumulates a second of one large matrix product."""
    a = torch.rand(1024, 1024)
    return 1024**3 / min(cpu_seconds(lambda: a @ a) for _ in range(20))


def main(args: DssBenchmark) -> None:
    """Measure and write."""
    start = begin(args.out)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in args.spaces:
        space = SPACES[name]
        assert isinstance(space, AutoFormerSpace)
        number = space.sample(random.Random(args.seed))
        shape = Shape(seed=args.seed)
        c = space[number]
        make = partial(build_autoformer, c.dim, c.num_heads, c.mlp_ratios, gathered=True, init="trunc_normal")
        network = make()
        weights = {k: v.clone() for k, v in space.build(number, shape).state_dict().items()}
        for mode in ("paper", "released"):
            ours = partial(scored, space, number, shape, mode, {})
            network.load_state_dict(weights)
            expected, found = sum(plain_dss(network, 224, mode)), ours().total
            ways: dict[str, Callable[[], Any]] = {
                "plain": partial(built_and_scored, make, mode),
                "plain, built": partial(plain_dss, network, 224, mode),
                "ours": ours,
            }
            seconds: dict[str, list[float]] = {way: [] for way in (*ways, "floor")}
            for _ in tqdm(range(args.rounds), desc=f"{name} {mode}", leave=False):
                for way, function in ways.items():
                    seconds[way].append(cpu_seconds(function))
                products, work = floor_of(space, number, mode, measured_peak())
                seconds["floor"].append(products + sum(map(cpu_seconds, work)))
            medians = {way: statistics.median(values) for way, values in seconds.items()}
            ratios = {
                f"{way}_over_{other}": statistics.median(
                    a / b for a, b in zip(seconds[way], seconds[other], strict=True)
                )
                for way, other in (("plain", "ours"), ("plain, built", "ours"), ("ours", "floor"))
            }
            results[f"{name} {mode}"] = {
                "parameters": space.parameters(number, shape),
                "cpu_seconds": medians,
                **ratios,
                "relative_difference": abs(found / expected - 1),
            }
            print(f"{name} {mode}: {results[f'{name} {mode}']}")
    write(args.out, {"seed": args.seed, "rounds": args.rounds, "results": results}, start)


if __name__ == "__main__":
    main(tyro.cli(DssBenchmark, args=sys.argv[1:]))
