"""What searches are worth: their encoders against the landscape, and against random search of equal cost (chapter 13).

A search that took s seconds is held against random searches that train encoders until s seconds are over. Its *share*
is the probability that its encoder is better than the one such a search finds. Of a method that is no better and no
worse than random search, shares are spread evenly over [0, 1]; that is what is tested. Measurement noise draws them
towards one half, so the test errs on the side of no difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from ..landscape.table import Answer, Landscape
from ..training_free.statistics import holm
from .sampling import Outcome


@dataclass(frozen=True)
class Judged:
    """A search and what its encoder is worth.

    Args:
        percentile: Of the encoder among the functions of the space, 0 to 100.
        regret: How far its test accuracy is below the best one of the space, by shrunken estimates.
        share: Probability of beating random search at equal seconds.
        seconds: Of the search.
    """

    percentile: float
    regret: float
    share: float
    seconds: float


def random_finds(
    landscape: Landscape, seconds: float, draws: int = 1000, seed: int = 0
) -> tuple[Float[ndarray, " draws"], Float[ndarray, " draws"]]:
    """Return the test accuracy of what random searches find, shrunken estimates, and their standard deviations.

    Each trains encoders of the landscape in random order until the seconds are over, the last one to its end, and takes
    the one with the best validation accuracy. At equal cost, so it looks at one encoder at least.

    Args:
        landscape: The landscape.
        seconds: What each may spend.
        draws: Searches.
        seed: Draws the orders.
    """
    rng, rows = np.random.default_rng(seed), [own[0] for own in landscape.trained.values()]
    cost = np.array([sum(landscape.rows[i]["seconds"]) for i in rows])
    val = np.array([landscape.rows[i]["val_correct"][-1] for i in rows])
    places = {number: place for place, number in enumerate(landscape.functions)}
    own = [places[number] for number in landscape.numbers]
    values, deviations = (column[own] for column in landscape.estimates("test"))
    found = np.empty(draws, dtype=int)
    for draw in range(draws):
        order = rng.permutation(len(rows))
        count = min(len(rows), 1 + int(np.searchsorted(cost[order].cumsum(), seconds)))
        found[draw] = max(order[:count], key=lambda place: val[place])
    return values[found], deviations[found]


def judge(landscape: Landscape, answer: Answer, seconds: float, draws: int = 1000) -> Judged:
    """Return what a search is worth.

    Args:
        landscape: The landscape.
        answer: The test accuracy of the encoder found, from trainings as the landscape's are; of a search that failed,
            that of a guess.
        seconds: All that the search took.
        draws: Random searches that it is held against.
    """
    best = float(landscape.estimates("test")[0].max())
    values, deviations = random_finds(landscape, seconds, draws)
    spread = np.hypot(deviations, answer.standard_error)
    ahead = stats.norm.cdf((answer.mean - values) / np.maximum(spread, np.finfo(float).tiny))
    return Judged(landscape.percentile(answer), best - answer.mean, float(ahead.mean()), seconds)


def interval(values: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return a bootstrap interval of the mean, by percentiles; of a single value, that value."""
    if len(set(values)) == 1:
        return values[0], values[0]
    rng = np.random.default_rng(seed)
    how: dict[str, Any] = {"n_resamples": draws, "method": "percentile", "confidence_level": level}
    found = stats.bootstrap((np.asarray(values),), np.mean, random_state=rng, **how)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def evenness(shares: Sequence[float]) -> float:
    """Return the probability of shares whose mean is so far from one half or farther, if they are spread evenly.

    The sum of n such numbers has the distribution of Irwin and Hall,
    ``P(S ≤ x) = Σ_{k ≤ x} (−1)^k C(n, k) (x − k)^n / n!``. Its terms cancel, so they are summed as fractions.
    """
    n = len(shares)
    x = Fraction(min(math.fsum(shares), n - math.fsum(shares)))
    terms = ((-1) ** k * math.comb(n, k) * (x - k) ** n for k in range(math.floor(x) + 1))
    return min(1.0, float(2 * sum(terms) / math.factorial(n)))


def needed(shares: Sequence[float], level: float = 0.05, power: float = 0.8) -> int | None:
    """Return how many searches would settle whether the mean share differs from one half, if it is as seen.

    ``((z_{1 − level/2} σ₀ + z_power σ₁) / (mean − ½))²`` with σ₀² = 1/12 of even shares and σ₁ of those seen.

    Args:
        shares: Two or more.
        level: Of the test.
        power: Probability of finding the difference.

    Returns:
        The number; nothing if the mean is one half.
    """
    effect = float(np.mean(shares)) - 0.5
    if effect == 0:
        return None
    z = stats.norm.ppf([1 - level / 2, power])
    return max(1, math.ceil(float((z[0] / 12**0.5 + z[1] * np.std(shares, ddof=1)) / effect) ** 2))


def compare(judged: Mapping[str, Sequence[Judged]]) -> list[dict[str, Any]]:
    """Return a row for each method, best mean percentile first.

    Args:
        judged: The searches of each method.
    """
    tests = holm({name: evenness([one.share for one in own]) for name, own in judged.items()})
    table = []
    for name, own in judged.items():
        shares, percentiles = [one.share for one in own], [one.percentile for one in own]
        table.append(
            {
                "method": name,
                "searches": len(own),
                "percentile": float(np.mean(percentiles)),
                "percentile_interval": interval(percentiles),
                "regret": float(np.mean([one.regret for one in own])),
                "regret_interval": interval([one.regret for one in own]),
                "beats_random": float(np.mean(shares)),
                "beats_random_interval": interval(shares),
                "p": evenness(shares),
                "p_holm": tests[name],
                "searches_needed": needed(shares) if len(shares) > 1 else None,
                "seconds": float(np.mean([one.seconds for one in own])),
            }
        )
    return sorted(table, key=lambda row: -row["percentile"])


def anytime(landscape: Landscape, outcome: Outcome) -> list[tuple[float, float]]:
    """Return seconds, and the percentile of the best encoder known then, wherever it changes."""
    curve: list[tuple[float, float]] = []
    before = None
    for seconds, genotype in outcome.anytime():
        if genotype != before:
            curve.append((seconds, landscape.percentile(genotype)))
        before = genotype
    return curve
