"""Intervals and tests against published tables and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from symoe_ray.statistics import (
    clustered_error,
    clustered_interval,
    holm,
    mcnemar_exact,
    mcnemar_power,
    paired_difference,
    smallest_detectable,
    wilson,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe 1998, table I, method 3 (Wilson's score interval without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_table(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_is_symmetric_stays_inside_and_knows_nothing_of_nothing() -> None:
    low, high = wilson(20, 20)
    assert high == 1.0
    assert low == pytest.approx(1 - wilson(0, 20)[1])
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_widens_with_the_level() -> None:
    # By hand, z = 2.5758 for 99 %: p = 0.5, n = 10, half = z sqrt(1/40 + z^2/400) / (1 + z^2/10) = 0.31571.
    low, high = wilson(5, 10, level=0.99)
    assert (low, high) == (pytest.approx(0.5 - 0.31571, abs=1e-4), pytest.approx(0.5 + 0.31571, abs=1e-4))


@pytest.mark.parametrize(("correct", "n"), [(0, 30), (7, 30), (30, 30), (81, 263), (11_111, 20_000)])
def test_wilson_of_whole_counts_is_scipys(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(0.95, "wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def marks(right: int, n: int, seeds: int = 1) -> np.ndarray:
    """Questions x seeds, the first `right` questions right with every seed."""
    return np.repeat(np.arange(n)[:, None] < right, seeds, axis=1).astype(float)


def test_one_seed_of_binary_outcomes_is_wilson() -> None:
    mean, low, high = clustered_interval(marks(81, 263))
    assert mean == pytest.approx(81 / 263)
    assert (low, high) == pytest.approx(wilson(81, 263))


def test_one_seed_may_be_given_as_a_plain_list() -> None:
    assert clustered_interval([1, 0, 1]) == clustered_interval(np.array([[True], [False], [True]]))


def test_seeds_that_always_agree_add_nothing() -> None:
    assert clustered_interval(marks(15, 148, seeds=3)) == pytest.approx(clustered_interval(marks(15, 148)))


def test_seeds_count_for_at_most_as_many_answers() -> None:
    # Every question right in one seed of two: the question means do not vary, so all 20 answers count, and no more.
    mean, low, high = clustered_interval([[0.0, 1.0]] * 10)
    assert mean == 0.5
    assert (low, high) == pytest.approx(wilson(10, 20))


def test_partial_agreement_lies_between() -> None:
    # Means 1, 0, 1, 1/2: p = 5/8, variance 9/16 - 25/64 = 11/64, SE^2 = 11/256, size (15/64) / (11/256).
    size = 60 / 11
    assert clustered_interval([[1, 1], [0, 0], [1, 1], [0, 1]])[1:] == pytest.approx(wilson(5 / 8 * size, size))
    assert 4 < size < 8


def test_questions_that_lack_a_seed_weigh_as_much_as_the_others() -> None:
    # Means 1, 0 and 1/2; the last question was asked with no seed at all.
    values = [[1, np.nan], [0, 0], [0, 1], [np.nan, np.nan]]
    assert clustered_interval(values)[0] == 0.5
    assert clustered_error(values) == pytest.approx(math.sqrt(1 / 4) / math.sqrt(3))


def test_all_right_in_all_seeds_keeps_a_width() -> None:
    assert clustered_interval(np.ones((20, 2))) == pytest.approx((1.0, wilson(20, 20)[0], 1.0))


def test_no_values_are_no_information() -> None:
    assert clustered_interval(np.empty((0, 2))) == (0.0, 0.0, 1.0)


def test_clustered_interval_does_not_depend_on_order() -> None:
    values = np.array([[i % 3 / 3, 1.0] for i in range(50)])
    shuffled = np.random.default_rng(1).permutation(values)
    assert clustered_interval(shuffled) == clustered_interval(values)


def test_clustered_interval_agrees_with_a_bootstrap_over_questions() -> None:
    rng = np.random.default_rng(3)
    ability = rng.beta(2, 1, size=400)
    outcomes = (rng.random((400, 4)) < ability[:, None]).astype(float)
    _, low, high = clustered_interval(outcomes)
    picks = rng.integers(400, size=(4000, 400))
    expected = np.quantile(outcomes.mean(axis=1)[picks].mean(axis=1), [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.004)


def test_clustered_error_by_hand() -> None:
    # Means 1, 0, 1, 1: sample variance 4/3 * (3/4 * 1/4) = 1/4, so SE = sqrt(1/4 / 4) = 1/4.
    assert clustered_error([[1, 1], [0, 0], [1, 1], [1, 1]]) == pytest.approx(0.25)
    assert clustered_error([1.0]) is None


def test_paired_difference_by_hand() -> None:
    # 100 questions: 20 only a, 10 only b. Mean 0.1; variance 0.30 - 0.01 = 0.29, SE = 0.05385, so about 0.10 -+ 0.1055.
    values = np.array([1.0] * 20 + [-1.0] * 10 + [0.0] * 70)
    difference, (low, high) = paired_difference(values)
    assert difference == pytest.approx(0.10)
    assert (low, high) == (pytest.approx(-0.0055, abs=0.011), pytest.approx(0.2055, abs=0.011))
    assert paired_difference(values[::-1]) == paired_difference(values)


def test_paired_difference_is_scipys_percentile_bootstrap_over_questions() -> None:
    rng = np.random.default_rng(8)
    values = rng.binomial(3, 0.6, 300) / 3 - rng.binomial(3, 0.5, 300) / 3
    adjusted = np.append(values, (1.0, -1.0))
    expected = bootstrap((adjusted,), np.mean, n_resamples=10_000, method="percentile", rng=rng).confidence_interval
    assert paired_difference(values)[1] == pytest.approx((expected.low, expected.high), abs=0.003)


def test_a_few_questions_that_all_fall_to_one_side_leave_the_difference_open() -> None:
    # 4 against 0 of 120, p = 0.125. Bonett and Price: 4/122 -+ 1.96 sqrt((5 + 1) / 122^2 - (4 / 122)^2 / 122).
    difference, (low, high) = paired_difference([1.0] * 4 + [0.0] * 116)
    assert difference == pytest.approx(4 / 120)
    assert low <= 0 < high
    assert (low, high) == (pytest.approx(-0.006, abs=0.0085), pytest.approx(0.072, abs=0.0085))  # in steps of 1 / 122


def test_no_difference_and_no_question() -> None:
    difference, (low, high) = paired_difference([0.0] * 8)
    assert (difference, low) == (0.0, -high)
    with pytest.raises(ValueError, match="no question"):
        paired_difference([])


def test_mcnemar_by_hand() -> None:
    # 1 against 9: 2 (C(10,0) + C(10,1)) / 2^10 = 22/1024. 5 against 5: 1.
    assert mcnemar_exact(1, 9) == mcnemar_exact(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 6) == pytest.approx(2 / 64)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    # Fay's package exact2x2 for R, of which The R Journal 2 (2010) tells: its vignette "Exact McNemar's Test", and the
    # approval ratings of Agresti, Categorical Data Analysis (1990), page 350, in its manual.
    [(2, 9, 0.06543), (86, 150, 3.716e-05)],
)
def test_mcnemar_gives_the_published_p_values(b: int, c: int, p: float) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(p, rel=2e-4)


def test_holm_gives_the_published_example() -> None:
    # The example in the manual of pingouin's multicomp (0.5.5).
    adjusted = holm([0.50, 0.003, 0.32, 0.054, 0.0003])
    assert adjusted == pytest.approx([0.64, 0.012, 0.64, 0.162, 0.0015])


def test_holm_of_one_or_none_changes_nothing_and_never_exceeds_one() -> None:
    assert holm([0.04]) == [0.04]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def brute_force_power(n: int, share: float, difference: float) -> float:
    """Of all outcomes of n questions, the probability of those that McNemar's exact test calls significant."""
    a, b = (share + difference) / 2, (share - difference) / 2
    return sum(
        math.comb(n, only_a) * math.comb(n - only_a, only_b)
        * a**only_a * b**only_b * (1 - share) ** (n - only_a - only_b)
        for only_a in range(n + 1)
        for only_b in range(n + 1 - only_a)
        if mcnemar_exact(only_a, only_b) < 0.05
    )  # fmt: skip


@pytest.mark.parametrize(("n", "share", "difference"), [(12, 0.4, 0.3), (30, 0.3, 0.25), (7, 1.0, 1.0), (25, 0.2, 0.0)])
def test_the_power_is_that_of_the_exact_test(n: int, share: float, difference: float) -> None:
    assert mcnemar_power(n, share, difference) == pytest.approx(brute_force_power(n, share, difference))


def test_the_power_comes_near_connors_example() -> None:
    # Connor 1987, page 209, as calculators quote it: discordant shares 0.45 and 0.05 take 23 pairs at 80 % power, by
    # the approximation that the exact test falls short of.
    assert 0.72 < mcnemar_power(23, 0.5, 0.4) < 0.8


def test_thirty_questions_as_of_aime_reveal_large_differences_only() -> None:
    assert smallest_detectable(30, 0.3) > 0.2693  # what the approximation gives: d sqrt 30 = 1.4750 = 1.0735 + 0.4014


def test_smallest_detectable_comes_near_the_sample_size_formula() -> None:
    # s = 0.3, d = 0.1: (1.95996 sqrt 0.3 + 0.84162 sqrt 0.29)^2 / 0.01 = (1.07352 + 0.45322)^2 / 0.01 = 233.1.
    assert smallest_detectable(233, 0.3) == pytest.approx(0.1, abs=0.004)
    assert smallest_detectable(23_310, 0.3) == pytest.approx(0.01, abs=0.0001)


@pytest.mark.parametrize(("n", "share"), [(20, 0.3), (400, 0.25)])
def test_smallest_detectable_has_the_power_that_it_names(n: int, share: float) -> None:
    d = smallest_detectable(n, share)
    share = max(share, d)
    only_a, only_b, _ = (
        np.random.default_rng(5).multinomial(n, [(share + d) / 2, (share - d) / 2, 1 - share], size=5_000).T
    )
    found = [mcnemar_exact(*pair) < 0.05 for pair in zip(only_a.tolist(), only_b.tolist(), strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)


def test_under_six_questions_can_show_nothing() -> None:
    assert mcnemar_exact(5, 0) > 0.05 > mcnemar_exact(6, 0)
    assert smallest_detectable(5, 0.2) == math.inf
    assert smallest_detectable(6, 0.2) < 1
