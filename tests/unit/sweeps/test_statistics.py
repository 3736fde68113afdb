"""Intervals and p values, held against scipy, hand arithmetic and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from seal_ray.sweeps.statistics import Difference, estimate, holm, paired, sign_flip_p, smallest_p


def sample(n: int, seed: int = 0, mean: float = 50.0) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).normal(mean, 1.5, n)]


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.mark.parametrize("values", [[54.3], [1.3, 107.3]])
def test_below_three_values_there_is_no_interval(values: list[float]) -> None:
    few = estimate(values)
    assert (few.n, few.mean, few.low, few.high) == (len(values), 54.3, None, None)


def test_the_interval_of_three_values_by_hand() -> None:
    three = estimate([53.0, 54.0, 55.0])  # s = 1, t(0.975, 2) = 4.302653
    assert three.mean == 54.0
    assert three.low == pytest.approx(54 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert three.high == pytest.approx(54 + 4.302653 / math.sqrt(3), abs=1e-6)


@pytest.mark.parametrize("n", [*range(3, 12), 25])
def test_the_interval_is_students(n: int) -> None:
    values = sample(n)
    got = estimate(values)
    wanted = scipy.stats.t.interval(0.95, n - 1, np.mean(values), scipy.stats.sem(values))
    assert (got.low, got.high) == pytest.approx(wanted, rel=1e-12)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=14), st.randoms(use_true_random=False))
def test_the_order_of_the_values_does_not_matter(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert estimate(shuffled) == estimate(values)
    assert sign_flip_p(shuffled) == sign_flip_p(values)


def test_equal_values_have_an_interval_of_no_width() -> None:
    for n in (3, 12):
        same = estimate([0.1] * n)
        assert (same.low, same.mean, same.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-15)


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_the_interval_covers_what_it_says(n: int) -> None:
    draws = np.random.default_rng(n).normal(50, 2, (4000, n))
    intervals = [estimate(row) for row in draws.tolist()]
    covered = sum(one.low <= 50 <= one.high for one in intervals)  # type: ignore[operator]
    low, high = scipy.stats.binom.interval(0.999, 4000, 0.95)  # 0.939 to 0.961
    assert low <= covered <= high


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("seed", range(3))
def test_p_is_that_of_scipys_exact_permutation_test(n: int, seed: int) -> None:
    ours, baseline = sample(n, seed, 50.8), sample(n, seed + 100)
    wanted = scipy.stats.permutation_test(
        (ours, baseline),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=math.inf,
    )
    difference = paired(by_seed(ours), by_seed(baseline))
    assert difference is not None
    assert difference.p == pytest.approx(wanted.pvalue, rel=1e-12)
    assert difference.mean == pytest.approx(wanted.statistic)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0], 2 / 4),
        ([1.0, 2.0, 3.0], 2 / 8),  # +++ and ---
        ([1.0, 2.0, -3.0], 8 / 8),  # the observed sum is 0
        ([1.0, 2.0, -1.0], 6 / 8),  # of 4 2 2 0 0 -2 -2 -4 all but the zeros
        ([1.0, 1.0, 1.0, 1.0, -1.0], 12 / 32),  # |sum| >= 3: 5 or 4 of a sign: 2 (1 + 5)
        ([0.0, 0.0, 0.0], 1.0),
    ],
)
def test_p_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == p


def test_rounding_does_not_break_ties() -> None:
    tenths = [0.1, 0.2, -0.3]  # 0.1 + 0.2 - 0.3 is 5.6e-17, so the other zero must count as a tie
    assert sign_flip_p(tenths) == 1.0
    ours = {0: 50.02, 1: 50.04, 2: 50.06, 3: 49.99}  # differences 0.01 0.01 0.01 -0.01, each rounded
    difference = paired(ours, {0: 50.01, 1: 50.03, 2: 50.05, 3: 50.0})
    assert difference is not None
    assert difference.p == 10 / 16


@given(
    st.lists(st.integers(-300, 300), min_size=2, max_size=8),
    st.sampled_from([0.01, 1 / 3, 1e-6, 1e6]),
)
def test_p_is_that_of_integer_arithmetic_at_any_scale(counts: list[int], unit: float) -> None:
    sums = [
        sum(s * c for s, c in zip(signs, counts, strict=True))
        for signs in product((1, -1), repeat=len(counts))
    ]
    wanted = sum(abs(s) >= abs(sum(counts)) for s in sums) / len(sums)
    assert sign_flip_p([count * unit for count in counts]) == wanted


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=10))
def test_p_lies_between_the_smallest_and_one_and_ignores_the_sign(differences: list[float]) -> None:
    p = sign_flip_p(differences)
    assert smallest_p(len(differences)) <= p <= 1
    assert sign_flip_p([-value for value in differences]) == p


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125), (16, 2 / 2**16)])
def test_the_smallest_p_is_reached_when_all_differences_have_one_sign(n: int, p: float) -> None:
    difference = paired(by_seed([51.0 + i / 7 for i in range(n)]), by_seed([50.0] * n))
    assert difference is not None
    assert difference.p == difference.smallest_p == p


def test_above_sixteen_pairs_p_is_sampled() -> None:
    positive = [0.1 + i / 50 for i in range(30)]
    assert sign_flip_p(positive) == smallest_p(30) == 2**-16
    for seed in range(3):
        differences = sample(17, seed, mean=0.5)
        exact = scipy.stats.permutation_test(
            (differences, [0.0] * 17),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=math.inf,
            batch=2**14,
        ).pvalue
        assert sign_flip_p(differences) == pytest.approx(exact, abs=5 * math.sqrt(exact / 2**16))
        assert sign_flip_p(differences) == sign_flip_p(differences)


def test_only_seeds_of_both_are_paired() -> None:
    ours = {0: 55.0, 1: 56.0, 2: 57.5, 9: 99.0}
    baseline = {2: 54.5, 1: 54.0, 0: 54.0, 7: 1.0}
    difference = paired(ours, baseline)
    assert difference is not None
    assert (difference.n, difference.mean, difference.p) == (3, 2.0, 0.25)
    half = scipy.stats.t.ppf(0.975, 2) / math.sqrt(3)  # differences 1 2 3
    assert (difference.low, difference.high) == pytest.approx((2 - half, 2 + half))


def test_nothing_in_common_is_no_difference() -> None:
    assert paired({0: 50.0}, {1: 50.0}) is None
    assert paired({}, {}) is None


def test_below_three_pairs_a_difference_has_no_interval() -> None:
    one = Difference(1, 1.5, None, None, None, None)
    assert paired({3: 51.5}, {3: 50.0}) == one
    assert one.significant is None
    assert paired({3: 51.5, 4: 52.0}, {3: 50.0, 4: 50.0}) == Difference(2, 1.75, None, None, 0.5, 0.5)


@pytest.mark.parametrize("n", range(2, 6))
def test_the_word_significant_is_not_for_fewer_than_six_pairs(n: int) -> None:
    difference = paired(by_seed([60.0 + i for i in range(n)]), by_seed([50.0] * n))
    assert difference is not None
    assert difference.significant is None


def test_six_pairs_may_be_significant_and_may_not() -> None:
    baseline = by_seed([50.0] * 6)
    all_better = paired(by_seed([51.0, 52.0, 51.5, 50.3, 50.1, 53.0]), baseline)
    one_worse = paired(by_seed([51.0, 52.0, 51.5, 50.3, 50.1, 48.0]), baseline)
    assert all_better is not None
    assert one_worse is not None
    assert (all_better.significant, one_worse.significant) == (True, False)


def test_holms_correction_by_hand() -> None:
    """4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be less than the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_any_false_one_of_many_comparisons_comes_as_rarely_as_holm_says() -> None:
    """Of 4,000 studies of ten comparisons, eight of nothing; 0.05 with a standard error of 0.0034."""
    draws = np.random.default_rng(0)
    false = 0
    for _ in range(4000):
        ps = [1e-6, 1e-5, *draws.uniform(size=8)]
        false += min(holm(ps)[2:]) < 0.05
    assert 0.035 < false / 4000 < 0.06
