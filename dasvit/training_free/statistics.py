"""What a score is worth: rank correlation with its uncertainty, and what of it is more than size (chapter 9; A31)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, with the 95 % interval of the percentile bootstrap.

    Args:
        value: The correlation.
        low: Lower end of the interval.
        high: Upper end of the interval.
        count: Networks.
    """

    value: float
    low: float
    high: float
    count: int


def kendall(x: ArrayLike, y: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Correlation:
    """Return Kendall's τ-b of two lists of numbers.

    Raises:
        ValueError: If the lists differ in length or hold fewer than three pairs.
    """
    return _bootstrapped(_tau, [x, y], resamples, seed)


def spearman(x: ArrayLike, y: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Correlation:
    """Return Spearman's ρ of two lists of numbers.

    Raises:
        ValueError: If the lists differ in length or hold fewer than three pairs.
    """
    return _bootstrapped(_rho, [x, y], resamples, seed)


def partial_spearman(
    x: ArrayLike, y: ArrayLike, given: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Correlation:
    """Return the partial correlation of the ranks of x and y given those of a third list.

    It is ``(ρ_xy − ρ_xz ρ_yz) / √((1 − ρ_xz²)(1 − ρ_yz²))`` of Spearman's ρ, not of Kendall's τ: two scores
    that are noisy copies of size, and nothing more, keep a partial τ well above zero. Where ``given`` ranks as
    x or y does, nothing is left to correlate, and the result is nan.

    Raises:
        ValueError: If the lists differ in length or hold fewer than three triples.
    """
    return _bootstrapped(_partial_rho, [x, y, given], resamples, seed)


def binned_kendall(
    x: ArrayLike,
    y: ArrayLike,
    given: ArrayLike,
    *,
    bins: int = 3,
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """Return the mean τ of x and y within bins of equal count by ``given``.

    Raises:
        ValueError: If the lists differ in length or leave fewer than three triples to a bin.
    """
    if (count := len(np.asarray(given))) < 3 * bins:
        raise ValueError(f"{count} networks in {bins} bins: three to a bin are needed")

    def within(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        parts = np.array_split(np.argsort(c, kind="stable"), bins)
        return float(np.nanmean([_tau(a[part], b[part]) for part in parts]))

    return _bootstrapped(within, [x, y, given], resamples, seed)


def within_kendall(
    x: ArrayLike, y: ArrayLike, groups: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Correlation:
    """Return the mean τ of x and y within groups of equal number, each weighted by its pairs.

    Raises:
        ValueError: If the lists differ in length or hold fewer than three triples.
    """

    def within(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        parts = [c == group for group in np.unique(c)]
        pairs = np.array([part.sum() * (part.sum() - 1) / 2 for part in parts])
        taus = np.array([_tau(a[part], b[part]) for part in parts])
        known = np.isfinite(taus)
        return float(np.average(taus[known], weights=pairs[known])) if known.any() else math.nan

    return _bootstrapped(within, [x, y, groups], resamples, seed)


def precision_at_top(x: ArrayLike, y: ArrayLike, share: float = 0.05) -> float:
    """Return which part of the best ``share`` by x is among the best ``share`` by y (P@top share).

    Of equal numbers those that come first are taken. Chance has ``share``.
    """
    count = max(1, round(share * len(np.asarray(x))))
    best = [set(np.argsort(-np.asarray(v, dtype=float), kind="stable")[:count]) for v in (x, y)]
    return len(best[0] & best[1]) / count


def ranks_of_top(x: ArrayLike, y: ArrayLike, count: int = 10) -> tuple[int, int]:
    """Return the best and the worst rank by y, from 1, of the ``count`` best by x."""
    ranks = stats.rankdata(-np.asarray(y, dtype=float), method="min")
    top = ranks[np.argsort(-np.asarray(x, dtype=float), kind="stable")[:count]]
    return int(top.min()), int(top.max())


def expected_best(x: ArrayLike, y: ArrayLike, count: int, *, repeats: bool = False) -> float:
    """Return the mean of y at the highest x of ``count`` random draws, over all draws: what a search by x returns.

    The network of rank i by x, from 1, of N is the highest of k different ones with probability
    ``C(N − i, k − 1) / C(N, k)``; of draws that may repeat with ``((N − i + 1) / N)^k − ((N − i) / N)^k``. Equal x have
    equal chances.

    Args:
        x: Scores.
        y: What the networks are worth.
        count: Networks drawn.
        repeats: Whether a network may be drawn twice.

    Raises:
        ValueError: If there are not so many networks.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not 1 <= count <= len(x):
        raise ValueError(f"cannot draw {count} of {len(x)} networks")
    below = np.arange(len(x), -1, -1)  # how many networks a rank and all after it have
    if repeats:
        at_most = (below / len(x)) ** count
    else:  # C(b, k) / C(N, k), the chance that all draws are among b
        top = np.arange(count)
        at_most = np.prod(np.clip(below[:, None] - top, 0, None) / (len(x) - top), axis=1)
    chances = at_most[:-1] - at_most[1:]
    _, tied = np.unique(-x, return_inverse=True)
    means = np.bincount(tied, weights=y) / np.bincount(tied)
    return float(chances @ means[np.sort(tied)])


def sum_of_log_ranks(columns: Sequence[ArrayLike]) -> np.ndarray:
    """Return ``Σ log(rank / n)`` of several scores of n networks, the lowest having rank 1 (AZ-NAS, 2024)."""
    ranks = [stats.rankdata(column) for column in columns]
    return np.sum([np.log(rank / len(rank)) for rank in ranks], axis=0)


def holm(ps: Mapping[Key, float]) -> dict[Key, float]:
    """Return p values corrected for their number by Holm's rule, by key; nan stays."""
    known = sorted((p, index, key) for index, (key, p) in enumerate(ps.items()) if not math.isnan(p))
    corrected, largest = dict(ps), 0.0
    for i, (p, _, key) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - i) * p))
        corrected[key] = largest
    return corrected


def _rho(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]) if np.ptp(a) and np.ptp(b) else math.nan


def _tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.kendalltau(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def _partial_rho(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    if not (np.ptp(a) and np.ptp(b) and np.ptp(c)):
        return float("nan")
    (_, ab, ac), (_, _, bc), _ = np.corrcoef([stats.rankdata(v) for v in (a, b, c)])
    rest = (1 - ac**2) * (1 - bc**2)
    return float((ab - ac * bc) / np.sqrt(rest)) if rest > 1e-9 else float("nan")


def _bootstrapped(
    statistic: Callable[..., float], lists: Sequence[ArrayLike], resamples: int, seed: int
) -> Correlation:
    columns = [np.asarray(values, dtype=float) for values in lists]
    count = len(columns[0])
    if count < 3 or any(len(column) != count for column in columns):
        raise ValueError(
            f"lists of {[len(c) for c in columns]} numbers: three or more of each, equally many, are needed"
        )
    value = statistic(*columns)
    if math.isnan(value):
        return Correlation(value, math.nan, math.nan, count)
    how = {"n_resamples": resamples, "paired": True, "vectorized": False, "method": "percentile"}
    with warnings.catch_warnings(category=stats.DegenerateDataWarning, action="ignore"):
        found = stats.bootstrap(columns, statistic, **how, random_state=np.random.default_rng(seed))
    low, high = np.nanquantile(found.bootstrap_distribution, [0.025, 0.975])  # a resample may have no order
    return Correlation(value, float(low), float(high), count)
