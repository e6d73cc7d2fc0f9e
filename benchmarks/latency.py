"""Whether --target-latency is reached: encoders searched for a time, measured beside each other on this machine.

    OMP_NUM_THREADS=1 python benchmarks/latency.py

First the table of ``dasvit latency`` is measured. For targets spread over what the space can have, and some seeds, a
search heads for each. Then what was found and the networks that the table was checked by take turns. The machine may
have another pace than it had when the table was made; the checked networks tell which, and the times of what was found
are divided by it.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import begin, write

from dasvit import DataSettings, load_data
from dasvit.choosing import reach
from dasvit.costs import Target
from dasvit.engine.hardware import Hardware
from dasvit.engine.spread import one_thread
from dasvit.latency import measure, timed
from dasvit.objective import Heading
from dasvit.search_settings import SearchSettings
from dasvit.searching import search
from dasvit.space import Genotype, SearchSpace

SIZES = {"image_size": 16, "patch_size": 4, "dim": 48, "num_classes": 10, "in_channels": 1}
DEPTH = 4


@dataclass(frozen=True)
class Latency:
    """Measure a table, search for times, and measure what is found."""

    shares: tuple[float, ...] = (0.2, 0.5, 0.8)
    """Targets, as shares of the range from the fastest encoder to the slowest."""
    searches: int = 2
    """Seeds for each target: 0, 1, …"""
    checks: int = 12
    """Whole networks by which the table is checked."""
    out: Path = Path("book/results/latency.json")
    """The JSON file."""


def searched(settings: SearchSettings, data: Any, share: float) -> dict[str, Any]:
    """Search for a time; return target, encoder and the time that the table foretells of it."""
    known = Heading(settings, data.train)  # its target is within reach: the table's fastest encoder
    space = settings.space
    candidates = (space.operations,) * len(space.edges)
    least, most = (known.trunk + DEPTH * cost for cost in reach(candidates, space, known.price))
    target = replace(settings.target, target_latency=least + share * (most - least))
    settings = replace(settings, target=target)
    genotype = search(settings, data).genotype
    foretold = Heading(settings, data.train).cost(genotype)
    return {"share": share, "seed": settings.seed, "target": target.value, "foretold": foretold} | {
        "genotype": genotype.to_json()
    }


def main(args: Latency) -> None:
    """Measure, search, measure and write."""
    start = begin(args.out)
    with one_thread():
        table = measure(SearchSpace(), depth=DEPTH, checks=args.checks, **SIZES)
        checked = table.pop("checked")
        target = Target(target_latency=table["seconds"]["trunk"], latency_table=json.dumps(table))
        data = load_data(DataSettings("digits", train_images=200, test_images=50), image_size=16)
        same = {name: SIZES[name] for name in ("image_size", "patch_size", "dim")}
        settings = SearchSettings(**same, stages=((1, 8, 1), (2, 5, 1), (DEPTH, 3, 1)), target=target)
        settings = replace(settings, hardware=Hardware("cpu", "32-true"))
        cells = [(share, seed) for share in args.shares for seed in range(args.searches)]
        found = [searched(replace(settings, seed=seed), data, share) for share, seed in cells]
        networks = [Genotype.from_json(row["genotype"]) for row in found + checked]
        seconds = timed(networks, torch.randn(1, 1, 16, 16), depth=DEPTH, **SIZES)
    pace = statistics.median(now / row["measured"] for now, row in zip(seconds[len(found) :], checked, strict=True))
    for now, row in zip(seconds, found, strict=False):
        row["measured"] = now / pace
        row["of_target"] = row["measured"] / row["target"]
    for row in checked:
        row["of_measured"] = row["predicted"] / row["measured"]
    for name, ratios in (("table", [r["of_measured"] for r in checked]), ("found", [r["of_target"] for r in found])):
        off = sorted(abs(ratio - 1) for ratio in ratios)
        print(f"{name}: off by {100 * statistics.median(off):.1f} % (median), {100 * off[-1]:.1f} % at most")
    sizes = {**SIZES, "depth": DEPTH}
    write(
        args.out, {"seed": 0, "sizes": sizes, "table": table, "checked": checked, "pace": pace, "found": found}, start
    )


if __name__ == "__main__":
    main(tyro.cli(Latency, description=__doc__))
