"""What a score is worth: rank correlation with its uncertainty, and what of it is more than size (chapter 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


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
    rng = np.random.default_rng(seed)
    draws = (rng.integers(count, size=count) for _ in range(resamples))
    values = [statistic(*(column[draw] for column in columns)) for draw in draws]
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (np.nan, np.nan)
    return Correlation(statistic(*columns), float(low), float(high), count)
