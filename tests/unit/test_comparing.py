"""Two methods on the same questions, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from symoe_ray.comparing import adjusted, compare, comparison_table, pair_entry
from symoe_ray.statistics import mcnemar_exact, smallest_detectable, wilson


def test_one_seed_by_hand() -> None:
    a = [1] * 8 + [0] * 2
    b = [1] * 3 + [0] * 6 + [1]  # five questions only A, one only B
    found = compare(a, b)
    assert (found.n, found.only_a, found.only_b) == (10, 5, 1)
    assert (found.accuracy_a, found.accuracy_b) == (0.8, 0.4)
    assert (found.ci95_a, found.ci95_b) == (pytest.approx(wilson(8, 10)), pytest.approx(wilson(4, 10)))
    assert found.difference == pytest.approx(0.4)
    # Differences: five of 1, one of -1, four of 0; the sum of squared deviations is 6 - 10 * 0.16 = 4.4.
    assert found.stderr == pytest.approx((4.4 / 9 / 10) ** 0.5)
    assert found.mcnemar_p == mcnemar_exact(5, 1) == pytest.approx(2 * 7 / 64)
    assert found.smallest_detectable == smallest_detectable(10, 0.6)
    low, high = found.ci95
    assert low < 0.4 < high


def test_seeds_are_repeats_and_the_test_takes_the_first() -> None:
    a = np.array([[1, 0], [1, 0], [0, 0]])
    b = np.array([[0], [1], [0]])
    found = compare(a, b)
    assert found.difference == pytest.approx((0.5 + 0.5) / 3 - 1 / 3)
    assert (found.only_a, found.only_b) == (1, 0)
    # Differences 1/2, -1/2, 0: variance 1/4 of a sample.
    assert found.stderr == pytest.approx((0.25 / 3) ** 0.5)


def test_seeds_that_repeat_each_other_narrow_nothing() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(2, size=(2, 60, 1))
    once, thrice = compare(a, b), compare(np.repeat(a, 3, axis=1), np.repeat(b, 3, axis=1))
    assert (thrice.stderr, thrice.ci95) == (pytest.approx(once.stderr), pytest.approx(once.ci95))


def test_too_few_questions_detect_nothing_and_have_no_error() -> None:
    found = compare([1], [0])
    assert (found.smallest_detectable, found.stderr) == (None, None)
    with pytest.raises(ValueError, match="no question"):
        compare([], [])


def test_p_values_are_adjusted_together() -> None:
    several = adjusted([compare([1] * 10, [0] * 10), compare([1] * 6 + [0] * 4, [0] * 10), compare([1, 0], [1, 0])])
    assert [c.mcnemar_p for c in several] == pytest.approx([2 / 1024, 2 / 64, 1.0])
    assert [c.mcnemar_p_holm for c in several] == pytest.approx([6 / 1024, 4 / 64, 1.0])


def test_the_entry_of_results_json() -> None:
    assert pair_entry(compare([1, 0], [0, 0])).keys() == {
        "difference", "ci95", "stderr", "mcnemar_p", "mcnemar_p_holm", "smallest_detectable",
    }  # fmt: skip


def test_the_table_is_aligned_and_tells_what_is_left_out() -> None:
    [found] = adjusted([compare([1] * 30, [1] * 15 + [0] * 15)])
    row = {name: getattr(found, name) for name in type(found).__slots__}
    first = row | {"task": "aime", "a": "x:symoe", "b": "x:majority", "only_in_a": 0, "only_in_b": 0}
    second = first | {"task": "gpqa_long", "only_in_a": 1200, "only_in_b": 3}
    lines = comparison_table([first, second]).splitlines()
    assert lines[0].split()[:4] == ["task", "A", "B", "n"]
    assert "+50.0 (+28.1 to +65.6)" in lines[2]
    assert lines[2].index("x:majority") == lines[3].index("x:majority")
    assert lines[4:] == ["gpqa_long: 1,200 questions are only in A and 3 only in B: left out"]
