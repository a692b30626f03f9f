"""Intervals and tests against published tables and values worked out by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from symoe_ray.statistics import (
    clustered_error,
    clustered_interval,
    mcnemar_exact,
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


def test_one_seed_of_binary_outcomes_is_wilson() -> None:
    values = {f"q{i}": [float(i < 81)] for i in range(263)}
    mean, low, high = clustered_interval(values)
    assert mean == pytest.approx(81 / 263)
    assert (low, high) == pytest.approx(wilson(81, 263))


def test_seeds_that_always_agree_add_nothing() -> None:
    once = {f"q{i}": [float(i < 15)] for i in range(148)}
    thrice = {question: seeds * 3 for question, seeds in once.items()}
    assert clustered_interval(thrice) == pytest.approx(clustered_interval(once))


def test_seeds_count_for_at_most_as_many_answers() -> None:
    # Every question right in one seed of two: the question means do not vary, so all 20 answers count, and no more.
    values = {f"q{i}": [0.0, 1.0] for i in range(10)}
    mean, low, high = clustered_interval(values)
    assert mean == 0.5
    assert (low, high) == pytest.approx(wilson(10, 20))


def test_partial_agreement_lies_between() -> None:
    # Means 1, 0, 1, 1/2: p = 5/8, variance 9/16 - 25/64 = 11/64, SE^2 = 11/256, size (15/64) / (11/256).
    values = {"a": [1, 1], "b": [0, 0], "c": [1, 1], "d": [0, 1]}
    size = 60 / 11
    assert clustered_interval(values)[1:] == pytest.approx(wilson(5 / 8 * size, size))
    assert 4 < size < 8


def test_all_right_in_all_seeds_keeps_a_width() -> None:
    assert clustered_interval({f"q{i}": [1.0, 1.0] for i in range(20)}) == pytest.approx((1.0, wilson(20, 20)[0], 1.0))


def test_no_values_are_no_information() -> None:
    assert clustered_interval({}) == (0.0, 0.0, 1.0)


def test_clustered_interval_does_not_depend_on_order() -> None:
    values = {f"q{i}": [i % 3 / 3, 1.0] for i in range(50)}
    shuffled = list(values.items())
    random.Random(1).shuffle(shuffled)
    assert clustered_interval(dict(shuffled)) == clustered_interval(values)


def test_clustered_interval_agrees_with_a_bootstrap_over_questions() -> None:
    rng = np.random.default_rng(3)
    ability = rng.beta(2, 1, size=400)
    outcomes = (rng.random((400, 4)) < ability[:, None]).astype(float)
    _, low, high = clustered_interval({str(i): list(row) for i, row in enumerate(outcomes)})
    picks = rng.integers(400, size=(4000, 400))
    expected = np.quantile(outcomes.mean(axis=1)[picks].mean(axis=1), [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.004)


def test_clustered_error_by_hand() -> None:
    # Means 1, 0, 1, 1: sample variance 4/3 * (3/4 * 1/4) = 1/4, so SE = sqrt(1/4 / 4) = 1/4.
    assert clustered_error({"a": [1, 1], "b": [0], "c": [1], "d": [1]}) == pytest.approx(0.25)
    assert clustered_error({"a": [1.0]}) is None


def test_paired_difference_by_hand() -> None:
    # 100 questions: 20 only a, 10 only b. Mean 0.1; variance 0.30 - 0.01 = 0.29, SE = 0.05385, so about 0.10 -+ 0.1055.
    a = {str(i): float(i < 20) for i in range(100)}
    b = {str(i): float(20 <= i < 30) for i in range(100)}
    difference, (low, high) = paired_difference(a, b)
    assert difference == pytest.approx(0.10)
    assert (low, high) == (pytest.approx(-0.0055, abs=0.011), pytest.approx(0.2055, abs=0.011))
    assert paired_difference(a, b) == paired_difference(dict(reversed(a.items())), b)


def test_paired_difference_is_over_shared_questions_only() -> None:
    difference, interval = paired_difference({"x": 1.0, "y": 0.5, "only_a": 0.0}, {"x": 1.0, "y": 0.5})
    assert (difference, interval) == (0.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="no question"):
        paired_difference({"x": 1.0}, {"y": 1.0})


def test_mcnemar_by_hand() -> None:
    # 1 against 9: 2 (C(10,0) + C(10,1)) / 2^10 = 22/1024. 5 against 5: 1.
    assert mcnemar_exact(1, 9) == mcnemar_exact(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 6) == pytest.approx(2 / 64)


def test_smallest_detectable_inverts_the_sample_size_formula() -> None:
    # s = 0.3, d = 0.1: (1.95996 sqrt 0.3 + 0.84162 sqrt 0.29)^2 / 0.01 = (1.07352 + 0.45322)^2 / 0.01 = 233.1.
    assert smallest_detectable(233, 0.3) == pytest.approx(0.1, abs=1e-4)
    assert smallest_detectable(932, 0.3) < 0.051


def test_smallest_detectable_has_the_power_that_it_names() -> None:
    n, share = 400, 0.25
    d = smallest_detectable(n, share)
    only_a, only_b, _ = (
        np.random.default_rng(5).multinomial(n, [(share + d) / 2, (share - d) / 2, 1 - share], size=20_000).T
    )
    found = (only_a - only_b) / np.sqrt(only_a + only_b) > 1.959964
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_smallest_detectable_raises_the_discordance_to_the_difference() -> None:
    # With no disagreement seen, all of it would be one-sided: n d = (z_level + z_power sqrt(1 - d))^2.
    d = smallest_detectable(30, 0.0)
    assert 30 * d == pytest.approx((1.959964 + 0.841621 * math.sqrt(1 - d)) ** 2, rel=1e-4)
    assert smallest_detectable(3, 0.2) == math.inf
