"""Guesses of which answers will be long, and the order that follows from them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lengths import figures
from symoe_ray.length_guesses import DOUBT, LEAST_ROWS, length_guesses, ordered_rows, relative_length, started_alike

SKILLS = {"q1": ["algebra"], "q2": ["algebra", "sets"], "q3": ["law"], "q4": ["law"]}


class TestGuesses:
    def test_a_skill_differs_as_its_answers_do_shrunk_by_some_that_are_usual(self) -> None:
        found = length_guesses([("A", "q1", 200), ("A", "q2", 200), ("A", "q3", 50), ("A", "q4", 50)], SKILLS)["A"]
        beyond = {"algebra": 2 * math.log(2) / (2 + DOUBT), "sets": math.log(2) / (1 + DOUBT)}
        beyond["law"] = -beyond["algebra"]
        assert {s: shift - found["law"] for s, shift in found.items()} == pytest.approx(
            {s: shift - beyond["law"] for s, shift in beyond.items()}
        )

    def test_those_of_the_answers_themselves_are_one_on_average(self) -> None:
        answers = [("A", "q1", 1000), ("A", "q2", 900), ("A", "q3", 10), ("A", "q4", 5)]
        found = length_guesses(answers, SKILLS)["A"]
        assert sum(relative_length(found, SKILLS[question]) for _, question, _ in answers) == pytest.approx(4)

    def test_each_expert_is_for_itself_and_answers_without_tokens_say_nothing(self) -> None:
        found = length_guesses([("A", "q1", 10), ("A", "q3", 0), ("B", "q1", 30), ("B", "q3", 10)], SKILLS)
        assert found["A"] == {"algebra": pytest.approx(0.0)}
        assert found["B"]["algebra"] > 0 > found["B"]["law"]

    def test_a_question_without_skills_counts_for_the_mean_alone(self) -> None:
        assert length_guesses([("A", "q1", 20), ("A", "unknown", 5)], SKILLS)["A"].keys() == {"algebra"}

    def test_a_question_has_the_mean_of_its_known_skills_and_one_of_none_is_like_others(self) -> None:
        guesses = {"algebra": math.log(4), "sets": 0.0}
        assert relative_length(guesses, ["algebra"]) == pytest.approx(4)
        assert relative_length(guesses, ["algebra", "sets", "unheard of"]) == pytest.approx(2)
        assert relative_length(guesses, ["unheard of"]) == relative_length({}, ["algebra"]) == 1.0


class TestOrder:
    def test_chunks_are_small_where_there_are_few_files_and_whole_files_where_there_are_many(self) -> None:
        assert ordered_rows(512, 1) == LEAST_ROWS
        assert ordered_rows(400, 100) == 40
        assert ordered_rows(96, 2000) >= 96

    def test_hosts_that_take_the_first_rows_in_turn_start_alike(self) -> None:
        lengths = list(range(800, 0, -1))
        order = started_alike(lengths, 512, lambda _: 1)
        assert order[512:] == lengths[512:]
        means = [sum(order[host : host + 128]) / 128 for host in range(0, 512, 128)]
        assert max(means) - min(means) < 4
        assert sum(lengths[:128]) / 128 - sum(lengths[384:512]) / 128 == 384

    @given(st.lists(st.integers(1, 40), max_size=50), st.integers(0, 500))
    def test_nothing_is_lost_and_what_does_not_start_at_once_keeps_its_place(self, rows: list[int], first: int) -> None:
        items = list(enumerate(rows))
        order = started_alike(items, first, lambda item: item[1])
        assert sorted(order) == items
        held = 0
        for place, (_, count) in enumerate(items):
            if held >= first:
                assert order[place:] == items[place:]
                break
            held += count


def test_guesses_are_judged_on_a_log_scale_and_equal_ones_are_worth_nothing() -> None:
    found = figures([(1.0, 10), (2.0, 100), (4.0, 1000)])
    assert found == {
        "answers": 3,
        "sigma": pytest.approx(math.log(10) * math.sqrt(2 / 3), abs=1e-3),
        "correlation": 1.0,
    }
    assert figures([(1.0, 10), (1.0, 20)])["correlation"] == 0.0
