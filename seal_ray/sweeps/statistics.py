"""Statistics over a handful of seeds: a mean with its interval, and two settings compared seed by seed.

Every function is pure and independent of the order of its values; what is random is drawn from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

EXACT_UP_TO = 16  # all 2^15 sign patterns that differ in more than an overall sign
SAMPLED_PATTERNS = 2**16 - 1  # above: the smallest p is then 1 / 2^16, that of the exact test at n = 17
INTERVAL_FROM = 3  # of two values t(0.975, 1) = 12.7 makes one that says nothing
SIGNIFICANCE_FROM = 6  # the smallest n at which p < 0.05 can be reached
TIE = 1e-9  # of the sum of |differences|; sums closer than this differ by rounding alone


@dataclass(frozen=True)
class Estimate:
    """The mean of n values and its 95 % interval, in the unit of the values; no interval below three."""

    n: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """The mean of n paired differences, its 95 % interval, and the two-sided sign-flip p.

    Below three pairs there is no interval, of one pair no p either. `smallest_p` is the smallest p this test
    can give at this n.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    smallest_p: float | None

    @property
    def significant(self) -> bool | None:
        """Whether p < 0.05; None below six pairs, where no data could make it so."""
        return None if self.p is None or self.n < SIGNIFICANCE_FROM else self.p < 0.05


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more values with its 95 % interval.

    From three values on mean +- t(0.975, n - 1) s / sqrt(n), with s the sample standard deviation (Student
    1908): of normal values it covers 95 % at every n.
    """
    n = len(values)
    assert n > 0, "no values"
    mean = math.fsum(values) / n
    if n < INTERVAL_FROM:
        return Estimate(n, mean, None, None)
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    half = float(stdtrit(n - 1, 0.975)) * float(ordered.std(ddof=1)) / math.sqrt(n)
    return Estimate(n, mean, mean - half, mean + half)


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Ours minus the baseline over the seeds that both have; None when there are none."""
    seeds = sorted(ours.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [ours[seed] - baseline[seed] for seed in seeds]
    mean = estimate(differences)
    n = mean.n
    if n == 1:
        return Difference(n, mean.mean, None, None, None, None)
    return Difference(n, mean.mean, mean.low, mean.high, sign_flip_p(differences), smallest_p(n))


def holm(ps: Sequence[float]) -> list[float]:
    """Correct the p of so many comparisons: the chance that any false one falls below a bound is that bound.

    Sorted, the i-th of m (from 0) becomes (m - i) p, at least what those before it have become, at most 1
    (Holm, Scand. J. Statist. 6, 1979).
    """
    corrected, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = corrected[place] = min(1.0, max(least, (len(ps) - rank) * ps[place]))
    return corrected


def smallest_p(n: int) -> float:
    """The smallest p that `sign_flip_p` can give for n differences.

    2 / 2^n when all patterns are counted, 1 / 2^16 when they are sampled.
    """
    return 2.0 ** (1 - n) if n <= EXACT_UP_TO else 1 / (SAMPLED_PATTERNS + 1)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the hypothesis that the differences are symmetric about 0 (Fisher 1935).

    The share of sign patterns whose |sum| is at least the observed one. n <= 16: all patterns. Above:
    2^16 - 1 patterns drawn from a fixed seed and the observed one, p = (1 + hits) / 2^16, never 0
    (Phipson and Smyth 2010).
    """
    values = np.sort(np.asarray(differences, dtype=np.float64))
    bar = abs(values.sum()) - TIE * np.abs(values).sum()
    if len(values) <= EXACT_UP_TO:
        return float(np.mean(np.abs(_all_signs(len(values)) @ values) >= bar))
    bits = np.random.default_rng(0).integers(0, 2, (SAMPLED_PATTERNS, len(values)), dtype=np.int8)
    hits = np.count_nonzero(np.abs((2 * bits - 1) @ values) >= bar)
    return (1 + int(hits)) / (SAMPLED_PATTERNS + 1)


def _all_signs(n: int) -> NDArray[np.int8]:
    """Half of the sign patterns, (2^(n-1), n): the last sign is +, the other half mirrors them."""
    bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1
    return (1 - 2 * bits).astype(np.int8)
