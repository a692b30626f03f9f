"""The generated task: the same everywhere, no question twice, and every gold answer right."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from symoe_ray.core import Question
from symoe_ray.demo_facts import CAPITALS, ELEMENTS, MONTHS, UNITS, WEEKDAYS
from symoe_ray.demo_task import generate
from symoe_ray.settings import DemoTask, TaskSettings
from symoe_ray.tasks import load_task

SKILLS = {"addition", "subtraction", "unit conversion", "calendar", "letters", "elements", "capitals", "logic"}
VALIDATION, TEST = generate(DemoTask(seed=3, validation=160, test=640))


def chosen(question: Question) -> str:
    """The gold option's text, or the gold integer."""
    (gold,) = question.gold
    return question.choices[question.letters.index(gold)] if question.kind == "choice" else gold


def test_the_seed_alone_decides() -> None:
    assert generate(DemoTask(seed=3, validation=160, test=640)) == (VALIDATION, TEST)
    other, _ = generate(DemoTask(seed=4, validation=160, test=0))
    assert {question.id for question in other} != {question.id for question in VALIDATION}


def test_the_questions_do_not_change_between_versions() -> None:
    # Runs that were made before are compared with runs made later: these texts are a promise.
    first, _ = generate(DemoTask(seed=0, validation=2, test=0))
    assert [question.text for question in first] == ["Add 22 and 602.", "What is 206 - 86?"]
    assert [question.gold for question in first] == [("624",), ("120",)]


def test_a_larger_test_set_continues_a_smaller_one() -> None:
    _, small = generate(DemoTask(seed=3, validation=160, test=50))
    assert TEST[:50] == small


def test_sizes_and_default() -> None:
    data = load_task(TaskSettings(name="demo", demo=DemoTask()))
    assert (len(data.validation), len(data.test), data.warnings) == (40, 64, ())


def test_no_question_stands_twice_in_or_between_the_splits() -> None:
    contents = [(q.text, q.choices) for q in VALIDATION + TEST]
    assert len(set(contents)) == len(contents) == 800
    assert len({q.id for q in VALIDATION + TEST}) == 800


def test_skills_and_kinds_are_mixed_in_both_splits() -> None:
    for split in (VALIDATION, TEST[:96]):
        counts = Counter(question.category for question in split)
        assert set(counts) == SKILLS
        assert max(counts.values()) - min(counts.values()) <= 1
        assert {question.kind for question in split} == {"choice", "integer"}


@pytest.mark.parametrize("skill", sorted(SKILLS))
def test_every_skill_asks_in_more_than_one_way(skill: str) -> None:
    texts = [q.text for q in VALIDATION + TEST if q.category == skill]
    facts = "|".join(map(re.escape, [*CAPITALS, *CAPITALS.values(), *ELEMENTS]))
    shapes = {re.sub(rf"\b({facts}|[A-Z][a-z]?)\b|'\w+'|\d+", "#", text) for text in texts}
    assert len(shapes) >= 2


@pytest.mark.parametrize("skill", sorted(SKILLS))
def test_gold_is_right(skill: str) -> None:
    for question in VALIDATION + TEST:
        if question.category == skill:
            assert chosen(question) == SOLVERS[skill](question.text), question


def test_options_differ_and_cannot_be_mistaken_for_letters() -> None:
    for question in VALIDATION + TEST:
        if question.kind == "choice":
            assert len(set(question.choices)) == len(question.choices) >= 3
            assert all(len(choice) > 1 for choice in question.choices)


def solve_addition(text: str) -> str:
    return str(sum(map(int, re.findall(r"\d+", text))))


def solve_subtraction(text: str) -> str:
    a, b = map(int, re.findall(r"\d+", text))
    return str(abs(a - b))


def solve_units(text: str) -> str:
    (n,) = map(int, re.findall(r"\d+", text))
    factors = [factor for large, small, factor in UNITS if re.search(rf"\d {large}\b", text) and small in text]
    assert len(factors) == 1
    return str(n * factors[0])


def solve_calendar(text: str) -> str:
    if "Today" in text:
        day = next(index for index, name in enumerate(WEEKDAYS) if name in text)
        return WEEKDAYS[(day + int(re.findall(r"\d+", text)[0])) % 7]
    month_days = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]  # 2025
    dates = re.findall(r"(\d+) ([A-Z]\w+) 2025", text)
    first, last = (sum(month_days[: MONTHS.index(month)]) + int(day) for day, month in dates)
    return str(last - first)


def solve_letters(text: str) -> str:
    *letter, word = re.findall(r"'(\w+)'", text)
    if "backwards" in text:
        return "".join(reversed(word))
    return str(sum(1 for character in word if not letter or character == letter[0]))


def solve_elements(text: str) -> str:
    word = text.rstrip("?").split()[-1]
    return ELEMENTS.get(word) or next(name for name, symbol in ELEMENTS.items() if symbol == word)


def solve_capitals(text: str) -> str:
    if text.startswith("What"):
        return CAPITALS[text.removeprefix("What is the capital of ").rstrip("?")]
    return next(country for country, city in CAPITALS.items() if text.startswith(city))


def solve_logic(text: str) -> str:
    above = dict(re.findall(r"(\w+) is \w+ than (\w+)\.", text))
    top = next(name for name in above if name not in above.values())
    return top if re.search(r"tallest|oldest|fastest", text) else str(above[above[top]])


SOLVERS = {
    "addition": solve_addition,
    "subtraction": solve_subtraction,
    "unit conversion": solve_units,
    "calendar": solve_calendar,
    "letters": solve_letters,
    "elements": solve_elements,
    "capitals": solve_capitals,
    "logic": solve_logic,
}


def test_skills_that_run_out_leave_the_others_going() -> None:
    # 120 questions of letters, 40 of elements and 44 of capitals exist; 8 x 150 asks for more of each.
    validation, test = generate(DemoTask(seed=0, validation=600, test=600))
    counts = Counter(question.category for question in validation + test)
    assert (counts["letters"], counts["elements"], counts["capitals"]) == (120, 40, 44)
    assert sum(counts.values()) == 1200
