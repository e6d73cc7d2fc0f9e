"""What a score is worth: rank correlation with its uncertainty, and what of it is more than size (chapter 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, with the 95 % interval of the percentile bootstrap.

    Args:
        tau: Kendall's τ-b.
        low: Lower end of the interval.
        high: Upper end of the interval.
        count: Networks.
    """

    tau: float
    low: float
    high: float
    count: int


def kendall(x: Sequence[float], y: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Correlation:
    """Return Kendall's τ-b of two lists of numbers.

    Raises:
        ValueError: If the lists differ in length or hold fewer than three pairs.
    """
    return _bootstrapped(lambda a, b: _tau(a, b), [x, y], resamples, seed)


def partial_kendall(
    x: Sequence[float], y: Sequence[float], given: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Correlation:
    """Return Kendall's partial τ of x and y given a third: ``(τ_xy − τ_xz τ_yz) / √((1 − τ_xz²)(1 − τ_yz²))``.

    Where ``given`` ranks as x or y does, nothing is left to correlate, and the result is nan.

    Raises:
        ValueError: If the lists differ in length or hold fewer than three triples.
    """
    return _bootstrapped(_partial_tau, [x, y, given], resamples, seed)


def binned_kendall(
    x: Sequence[float],
    y: Sequence[float],
    given: Sequence[float],
    *,
    bins: int = 3,
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """Return the mean τ of x and y within bins of equal count by ``given``.

    Raises:
        ValueError: If the lists differ in length or leave fewer than three triples to a bin.
    """
    if len(given) < 3 * bins:
        raise ValueError(f"{len(given)} networks in {bins} bins: three to a bin are needed")

    def within(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        parts = np.array_split(np.argsort(c, kind="stable"), bins)
        return float(np.nanmean([_tau(a[part], b[part]) for part in parts]))

    return _bootstrapped(within, [x, y, given], resamples, seed)


def _tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.kendalltau(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def _partial_tau(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    ab, ac, bc = _tau(a, b), _tau(a, c), _tau(b, c)
    rest = (1 - ac**2) * (1 - bc**2)
    return float((ab - ac * bc) / np.sqrt(rest)) if rest > 1e-9 else float("nan")


def _bootstrapped(statistic: object, lists: Sequence[Sequence[float]], resamples: int, seed: int) -> Correlation:
    columns = [np.asarray(values, dtype=float) for values in lists]
    count = len(columns[0])
    if count < 3 or any(len(column) != count for column in columns):
        raise ValueError(
            f"lists of {[len(c) for c in columns]} numbers: three or more of each, equally many, are needed"
        )
    rng = np.random.default_rng(seed)
    draws = (rng.integers(count, size=count) for _ in range(resamples))
    values = [statistic(*(column[draw] for column in columns)) for draw in draws]  # type: ignore[operator]
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (np.nan, np.nan)
    return Correlation(statistic(*columns), float(low), float(high), count)  # type: ignore[operator]
