from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from symoe_ray.skills import consistent_skills, map_skills, parse_keywords, skill_scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Keywords: Algebra, Number Theory.", ["algebra", "number theory"]),
        ("Keywords: x, y\nKeywords: Logic , set theory .", ["logic", "set theory"]),
        ("algebra, , algebra", ["algebra", "algebra"]),
        ("Keywords: U.S. history", ["us history"]),
        ("Keywords:", []),
        ("", []),
    ],
)
def test_keywords_are_read(text: str, expected: list[str]) -> None:
    assert parse_keywords(text) == expected


def test_skills_that_samples_agree_on_are_kept_by_count_then_appearance() -> None:
    texts = ["Keywords: b, a, rare", "Keywords: a, c", "Keywords: A, b, c", "nothing to say", "Keywords: c"]
    assert consistent_skills(texts) == ("a", "c", "b")  # a: 3, c: 3 (later), b: 2, rare: 1
    assert consistent_skills(texts, min_count=3) == ("a", "c")
    assert consistent_skills(["one", "two"]) == ()


def test_occurrences_within_one_sample_count() -> None:
    assert consistent_skills(["Keywords: logic, logic"]) == ("logic",)


def test_skills_of_more_than_twenty_characters_are_dropped() -> None:
    twenty, longer = "x" * 20, "x" * 21
    assert consistent_skills([f"{twenty}, {longer}"] * 2) == (twenty,)
    assert consistent_skills([f"{twenty}, {longer}"] * 2, max_characters=21) == (twenty, longer)


def test_scores_are_right_minus_wrong_per_skill() -> None:
    skills = {"1": ["a", "b"], "2": ["a"], "3": ["a", "c"], "4": [], "ungraded": ["a", "z"]}
    correct = {"1": True, "2": True, "3": False, "4": True}
    assert skill_scores(skills, correct) == {"a": 1.0, "b": 1.0, "c": -1.0}


def test_every_text_is_embedded_once_in_one_call() -> None:
    calls: list[list[str]] = []
    vectors = {"up": (0, 2), "right": (3, 0), "slope": (4, 3)}

    def embed(texts: Sequence[str]) -> np.ndarray:
        calls.append(list(texts))
        return np.array([vectors[text] for text in texts], dtype=np.float32)

    # cos(slope, up) = 3/5, cos(slope, right) = 4/5
    assert map_skills(["slope", "up", "slope"], ["up", "right", "up"], embed) == {
        "slope": ("right", pytest.approx(0.8)),
        "up": ("up", 1.0),
    }
    assert calls == [["up", "right", "slope"]]


def test_ties_go_to_the_first_known_skill() -> None:
    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 384))

    many = [f"unknown {number}" for number in range(3000)]
    mapped = map_skills(many, ["b", "a", "c"], embed)
    assert {skill for skill, _ in mapped.values()} == {"b"}
    assert list(mapped) == many


def test_nothing_is_embedded_without_need() -> None:
    def embed(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("called")

    assert map_skills(["a"], [], embed) == {}
    assert map_skills([], ["a"], embed) == {}
    assert map_skills(["a"], ["b", "a"], embed) == {"a": ("a", 1.0)}
