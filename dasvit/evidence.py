"""Recorded trainings as samples: what varies from one to the next, a search or a seed (chapter 7; ledger A44).

A *row* is one training in the rows that ``benchmarks/record.py`` writes: its network (``found``, ``random``,
``published`` or ``vit``), search, seed, and what the test said. ``equal`` says what it has in common with the found
encoders, ``epochs`` or ``macs``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

Row = Mapping[str, Any]
"""One recorded training."""


def trained(run: Mapping[str, Any], network: str, equal: str = "epochs") -> list[Row]:
    """Return the trainings of a network; for equal operations, those done again replace the first ones."""
    rows = [row for row in run["rows"] if row["network"] == network]
    first, again = ({(r["name"], r["seed"]): r for r in rows if r["equal"] == e} for e in ("epochs", "macs"))
    return list((first | again if equal == "macs" else first).values())


def by_search(run: Mapping[str, Any], network: str) -> dict[int, list[float]]:
    """Return for each search the top-1 accuracies, in percent, of its encoder or of its random encoders."""
    groups: dict[int, list[float]] = {}
    for row in trained(run, network):
        groups.setdefault(row["search"], []).append(100 * row["top1"])
    return groups


def units(run: Mapping[str, Any], peer: str, equal: str = "epochs") -> list[list[Row]]:
    """Return trainings in groups that are independent of each other: one for each search, or for each seed.

    Args:
        run: A recorded run.
        peer: ``found``, ``random``, or ``best random``, of each search's random encoders the one that is best on
            validation images; ``published``; or ``vit``, for each search the plain transformer nearest in size.
        equal: What the trainings have in common with those of the found encoders.
    """
    by = "seed" if peer in ("published", "vit") else "search"
    groups: dict[int, list[Row]] = {}
    for row in trained(run, peer.removeprefix("best "), equal):
        groups.setdefault(row[by], []).append(row)
    ordered = [groups[key] for key in sorted(groups)]
    if peer == "best random":
        return [[max(group, key=lambda row: row["val_top1"])] for group in ordered]
    if peer == "vit":
        sizes = {row["search"]: row["parameters"] for row in trained(run, "found")}.values()
        return [[nearest(group, size) for size in sizes] for group in ordered]
    return ordered


def nearest(rows: Sequence[Row], parameters: int) -> Row:
    """Return the training whose network is nearest in parameters."""
    return min(rows, key=lambda row: abs(row["parameters"] - parameters))


def right(run: Mapping[str, Any], groups: Sequence[Sequence[Row]]) -> np.ndarray:
    """Return for each test image which share of the trainings answers it right, groups counting alike."""

    def unpack(row: Row) -> np.ndarray:
        packed = np.frombuffer(bytes.fromhex(row["correct"]), dtype=np.uint8)
        return np.unpackbits(packed, count=run["test_images"])

    return np.mean([np.mean([unpack(row) for row in group], axis=0) for group in groups], axis=0)


def samples(run: Mapping[str, Any], measure: str) -> np.ndarray:
    """Return a measure of every encoder that was trained with several seeds, one row an encoder, one column a seed.

    An encoder that two searches have found stands there once.
    """
    groups: dict[str, dict[int, float]] = {}
    for row in trained(run, "found") + trained(run, "published"):
        groups.setdefault(row["genotype"], {})[row["seed"]] = row[measure]
    return np.array([list(by_seed.values()) for by_seed in groups.values()])


def seed_deviation(run: Mapping[str, Any]) -> float:
    """Return the standard deviation of top-1, in percent, over trainings of one encoder."""
    return 100 * fmean(samples(run, "top1").var(axis=1, ddof=1)) ** 0.5


def student(mean: float, parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return half of the 95 % interval of a mean, and its two-sided p, with Satterthwaite's degrees of freedom.

    Args:
        mean: The mean.
        parts: Of its variance, each with its degrees of freedom.
    """
    variance = float(sum(v for v, _ in parts))
    freedom = variance**2 / sum(v**2 / n for v, n in parts)
    p = 2 * stats.t.sf(abs(mean) / math.sqrt(variance), freedom)
    return float(stats.t.ppf(0.975, freedom) * math.sqrt(variance)), float(p)


def compare(
    run: Mapping[str, Any], peer: str, equal: str = "epochs", measure: str = "top1", network: str = "found"
) -> tuple[float, float, float]:
    """Return how much more a network has of a measure than a peer: the mean, half of its 95 % interval, and p.

    What varies are searches or seeds and, for the accuracy, the test images (ledger A44).

    Args:
        run: A recorded run.
        peer: As for :func:`units`.
        equal: What the trainings have in common with those of the found encoders.
        measure: ``top1`` as a share, or ``loss``.
        network: ``found`` or ``published``.
    """
    groups = units(run, network), units(run, peer, equal)
    a, b = (np.array([fmean(row[measure] for row in unit) for unit in group]) for group in groups)
    independent = network != "found" or peer in ("published", "vit")  # else each search has its own peers
    varying = [a, b] if independent else [a - b]
    if measure == "top1":
        varying.append(right(run, groups[0]) - right(run, groups[1]))
    mean = float(a.mean() - b.mean())
    return mean, *student(mean, [(float(x.var(ddof=1)) / len(x), len(x) - 1) for x in varying])
