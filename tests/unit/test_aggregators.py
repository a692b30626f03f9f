from __future__ import annotations

import pytest

from symoe_ray.aggregators import best_aggregator, consensus, majority, synthetic_case
from symoe_ray.core import InputError, Question

DRAFTS = [("a", "right a", True), ("b", "wrong b", False), ("c", "wrong c", False), ("d", "wrong d", False),
          ("e", "right e", True), ("f", "  ", False)]  # fmt: skip


def question(number: int) -> Question:
    return Question(id=f"q{number}", text="?", kind="integer", task="t")


def test_a_case_holds_one_correct_and_two_incorrect_responses() -> None:
    for number in range(20):
        case = synthetic_case(question(number), DRAFTS, seed=0)
        assert case is not None
        assert case.question_id == f"q{number}"
        assert sorted(text[:5] for text in case.responses) == ["right", "wrong", "wrong"]
        assert len(set(case.responses)) == 3


def test_a_case_depends_on_seed_and_question_but_not_on_order() -> None:
    cases = [synthetic_case(question(number), DRAFTS, seed=0) for number in range(60)]
    assert cases == [synthetic_case(question(number), DRAFTS[::-1], seed=0) for number in range(60)]
    assert cases != [synthetic_case(question(number), DRAFTS, seed=1) for number in range(60)]
    places = [[text[:5] for text in case.responses].index("right") for case in cases if case]
    assert {places.count(place) > 8 for place in range(3)} == {True}  # of 60, 20 expected in each place
    assert {text for case in cases if case for text in case.responses} == {d[1] for d in DRAFTS if d[1].strip()}


def test_a_question_without_enough_answers_makes_no_case() -> None:
    assert synthetic_case(question(0), DRAFTS[1:4], seed=0) is None  # none correct
    assert synthetic_case(question(0), [*DRAFTS[:2], DRAFTS[5]], seed=0) is None  # the second incorrect one is empty
    assert synthetic_case(question(0), DRAFTS[:3], seed=0) is not None


def test_the_most_accurate_aggregator_is_chosen() -> None:
    name, reason = best_aggregator({"a": (1, 4), "b": (2, 4), "c": (0, 0)}, {"a": 0.9, "c": 1.0})
    assert name == "b"
    assert "2 of 4" in reason


def test_ties_between_aggregators() -> None:
    assert best_aggregator({"a": (1, 2), "b": (2, 4)}, {"a": 0.3, "b": 0.4})[0] == "b"
    assert best_aggregator({"b": (1, 2), "a": (2, 4)}, {"a": 0.4, "b": 0.4})[0] == "a"
    assert best_aggregator({"b": (1, 2), "a": (2, 4)}, {})[0] == "a"


def test_validation_accuracy_decides_where_nothing_was_measured() -> None:
    name, reason = best_aggregator({"a": (0, 0)}, {"b": 0.5, "a": 0.25})
    assert name == "b"
    assert "no synthetic case" in reason
    assert "0.500" in reason
    with pytest.raises(InputError, match="no aggregator"):
        best_aggregator({}, {})


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([("a", "B"), ("b", "B"), ("a", "B")], "B"),
        ([("a", "B"), ("a", "B"), ("a", "B")], ""),  # one expert three times
        ([("a", "B"), ("b", "B"), ("c", "C")], ""),
        ([("a", "B"), ("b", "B"), ("c", "")], ""),  # an unread answer agrees with nobody
        ([("a", ""), ("b", "")], ""),
        ([], ""),
    ],
)
def test_consensus(answers: list[tuple[str, str]], expected: str) -> None:
    assert consensus(answers) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(["A", "B", "B"], "B"), (["C", "A", "A", "C"], "C"), (["", "", "D"], "D"), (["", ""], ""), ([], "")],
)
def test_majority(answers: list[str], expected: str) -> None:
    assert majority(answers) == expected
