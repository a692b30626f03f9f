"""The generated task: the same everywhere, no question twice, no content in two splits, and every gold answer right."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import pytest

from symoe_ray.core import Question
from symoe_ray.demo.facts import CAPITALS, ELEMENTS, MONTHS, ORDERS, UNITS, WEEKDAYS
from symoe_ray.demo.items import SPLITS, Dice, Item, Split, draw, split_of
from symoe_ray.demo_task import FAMILIES, dealt, generate
from symoe_ray.settings import DemoTask, TaskSettings
from symoe_ray.tasks import load_task

SIZES = {"validation": 360, "test": 720}
VALIDATION, TEST = generate(DemoTask(seed=3, **SIZES))
ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def chosen(question: Question) -> str:
    """The gold option's text, or the gold integer."""
    (gold,) = question.gold
    return question.choices[question.letters.index(gold)] if question.kind == "choice" else gold


def items(family: str, split: Split, count: int, seed: int = 0) -> list[Item]:
    """Items of one family and split."""
    dice = Dice(seed, "test of items", split, family)
    return [draw(FAMILIES[family], dice, split) for _ in range(count)]


def test_the_seed_alone_decides() -> None:
    assert generate(DemoTask(seed=3, **SIZES)) == (VALIDATION, TEST)
    other, _ = generate(DemoTask(seed=4, validation=360, test=0))
    assert {question.id for question in other} != {question.id for question in VALIDATION}


def test_the_questions_do_not_change_between_versions() -> None:
    # Runs that were made before are compared with runs made later: these texts are a promise.
    first, _ = generate(DemoTask(seed=0, validation=2, test=0))
    assert [question.text for question in first] == FIRST_TEXTS
    assert [question.gold for question in first] == FIRST_GOLDS


def test_a_larger_split_continues_a_smaller_one() -> None:
    validation, test = generate(DemoTask(seed=3, validation=30, test=50))
    assert (VALIDATION[:30], TEST[:50]) == (validation, test)


def test_sizes_and_defaults() -> None:
    data = load_task(TaskSettings(name="demo", demo=DemoTask()))
    assert (len(data.validation), len(data.test), data.warnings) == (DemoTask().validation, DemoTask().test, ())


def test_no_question_stands_twice_in_or_between_the_splits() -> None:
    assert len({q.text for q in VALIDATION + TEST}) == len({q.id for q in VALIDATION + TEST}) == 1080


def test_families_and_kinds_are_mixed_in_both_splits() -> None:
    for split in (VALIDATION, TEST[:96]):
        counts = Counter(question.category for question in split)
        assert set(counts) == set(FAMILIES)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert {question.kind for question in split} == {"choice", "integer"}


@pytest.mark.parametrize("family", FAMILIES)
def test_contents_and_wordings_of_facts_are_disjoint(family: str) -> None:
    # Whatever the seeds: training, validation and test have no content in common, and facts no wording.
    seen = {split: items(family, split, 300, seed) for seed, split in enumerate(SPLITS)}
    for split in SPLITS:
        assert all(split_of(item.content) == split for item in seen[split] if item.content)
    contents = [{item.content for item in seen[split] if item.content} for split in SPLITS]
    wordings = [{wording(item.text) for item in seen[split]} for split in SPLITS]
    for mine, other in ((0, 1), (0, 2), (1, 2)):
        assert not contents[mine] & contents[other]
        if any(not item.content for item in seen["test"]):
            assert not wordings[mine] & wordings[other]


def test_one_content_has_one_answer_however_it_is_asked() -> None:
    golds: dict[tuple[str | int, ...], set[str]] = {}
    for item in items("addition", "training", 3000):
        golds.setdefault(item.content, set()).add(item.gold)
    assert all(len(found) == 1 for found in golds.values())
    assert all(content[1] <= content[2] for content in golds)  # either order of the operands


def test_six_tenths_of_all_contents_are_for_training() -> None:
    counts = Counter(split_of(("pair", a, b)) for a in range(50) for b in range(50))
    assert [round(counts[split] / 2500, 1) for split in SPLITS] == [0.6, 0.2, 0.2]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_asks_in_several_ways_with_words_that_training_has(family: str) -> None:
    texts = [item.text for item in items(family, "training", 400)]
    assert len({wording(text) for text in texts}) >= 4
    known = {word.lower() for text in texts for word in re.findall(r"[A-Za-z]+", text)}
    for item in items(family, "test", 100):
        assert {word.lower() for word in re.findall(r"\b[a-z]+\b", wording(item.text))} <= known


@pytest.mark.parametrize("family", FAMILIES)
def test_gold_is_right(family: str) -> None:
    asked = [question for question in VALIDATION + TEST if question.category == family]
    assert len(asked) >= 80
    for question in asked:
        assert chosen(question) == SOLVERS[family](question.text), question


@pytest.mark.parametrize("family", FAMILIES)
def test_the_working_ends_with_the_answer_and_its_equations_hold(family: str) -> None:
    for item in items(family, "training", 100):
        assert re.search(rf"\b{re.escape(item.gold)}\.$|capital of", item.working)
        for left, right in re.findall(r"(?<![\w+x-])(\d+(?:[+x-]\d+)+)=(\d+)\b(?!x)", item.working):
            assert calculated(left) == int(right), item.working


def test_options_differ_and_cannot_be_mistaken_for_letters() -> None:
    for question in VALIDATION + TEST:
        if question.kind == "choice":
            assert len(set(question.choices)) == len(question.choices) >= 3
            assert all(len(choice) > 1 for choice in question.choices)


def test_skills_name_the_family_and_fit_the_annotation() -> None:
    for family in FAMILIES:
        for item in items(family, "validation", 30):
            assert set(family.split(" and ")) <= set(item.skills)
            assert len(item.skills) == 2
            assert all(len(skill) <= 20 and skill == skill.lower() for skill in item.skills)


def test_families_that_run_out_leave_the_others_going() -> None:
    # The pairs of elements for testing are a fifth of 40 x 39 / 2 = 780, each asked in one way and either order.
    counts = Counter(question.category for question in islice(dealt(0, "test"), 5000))
    assert counts["elements and addition"] < counts["addition"]
    assert sum(counts.values()) == 5000


def wording(text: str) -> str:
    """A question without what it is about."""
    facts = "|".join(map(re.escape, [*CAPITALS, *CAPITALS.values(), *ELEMENTS, *WEEKDAYS, *MONTHS]))
    units = "|".join(unit for row in UNITS for unit in row[:2])
    text = re.sub(rf"\b({facts}|{facts.title()}|{units})\b", "#", text)
    return re.sub(r"\b[A-Z]{2,}\b|\b[A-Z][a-z]?\b(?!\w)|\d+", "#", text)


def numbers(text: str) -> list[int]:
    """All numbers in a text."""
    return [int(number) for number in re.findall(r"\d+", text)]


def calculated(terms: str) -> int:
    """The value of "7+5+1", "12-5" or "37x60"; one kind of sign at a time."""
    value, *rest = numbers(terms)
    for sign, number in zip(re.findall(r"[+x-]", terms), rest, strict=True):
        value = value + number if sign == "+" else value - number if sign == "-" else value * number
    return value


def value_of(numeral: str) -> int:
    """What a Roman numeral stands for: a smaller sign before a larger one counts less."""
    values = [ROMAN[sign] for sign in numeral]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=False))


def solve_subtraction(text: str) -> str:
    a, b = numbers(text)
    return str(abs(a - b))


def solve_units(text: str) -> str:
    n, *more = numbers(text)
    named = [(factor, rf"\d {large}\b", rf"\b{small}\b") for large, small, factor in UNITS]
    factors = [factor for factor, *both in named if all(re.search(unit, text) for unit in both)]
    assert len(factors) == 1
    return str(n * factors[0] + sum(more))


def solve_calendar(text: str) -> str:
    cycle = WEEKDAYS if any(day in text for day in WEEKDAYS) else MONTHS
    (start,) = (index for index, name in enumerate(cycle) if re.search(rf"\b{name}\b", text))
    (n,) = numbers(text)
    return cycle[(start + (-n if re.search("ago|before|back", text) else n)) % len(cycle)]


def solve_strings(text: str) -> str:
    (word,) = re.findall(r"\b[A-Z]{2,}\b", text)
    if "vowels" in text:
        return str(sum(letter in "AEIOU" for letter in word))
    if single := re.findall(r"\b[A-Z]\b", text):
        return str(word.index(single[0]) + 1)
    return "".join(reversed(word))


def solve_roman(text: str) -> str:
    if given := numbers(text):
        return next(numeral for numeral in numerals() if value_of(numeral) == given[0])
    return str(value_of(re.findall(r"\b[CDLXVIM]+\b", text)[0]))


def numerals() -> list[str]:
    """All numerals below 1000, by their usual pattern."""
    places = [("C", "D", "M"), ("X", "L", "C"), ("I", "V", "X")]
    made = [""]
    for one, five, ten in places:
        digits = ["", one, one * 2, one * 3, one + five, five, five + one, five + one * 2, five + one * 3, one + ten]
        made = [before + digit for before in made for digit in digits]
    return made


def solve_roman_and_addition(text: str) -> str:
    return str(value_of(re.findall(r"\b[CDLXVIM]+\b", text)[0]) + numbers(text)[0])


def solve_elements(text: str) -> str:
    named = [name for name in ELEMENTS if re.search(rf"\b{name}\b", text, re.IGNORECASE)]
    if not named:
        return next(name for name, (symbol, _) in ELEMENTS.items() if re.search(rf"\b{symbol}\b", text))
    symbol, number = ELEMENTS[named[0]]
    return symbol if re.search("symbol|write", text) else str(number)


def solve_elements_and_addition(text: str) -> str:
    return str(sum(number for name, (_, number) in ELEMENTS.items() if re.search(rf"\b{name}\b", text)))


def solve_capitals(text: str) -> str:
    pairs = [(country, city) for country, city in CAPITALS.items() if re.search(rf"\b{country}\b", text)]
    if pairs and "Mexico City" not in text:
        return pairs[0][1]
    return next(country for country, city in CAPITALS.items() if city in text)


def solve_logic(text: str) -> str:
    above = []
    for more, less, *_ in ORDERS:
        above += re.findall(rf"(\w+) is {more} than (\w+)\.", text)
        above += [(b, a) for a, b in re.findall(rf"(\w+) is {less} than (\w+)\.", text)]
    tops, bottoms = {a for a, _ in above}, {b for _, b in above}
    (top,), (bottom,) = tops - bottoms, bottoms - tops
    return top if any(re.search(rf"\b{most}\b", text) for _, _, most, _ in ORDERS) else bottom


SOLVERS = {
    "addition": lambda text: str(sum(numbers(text))),
    "subtraction": solve_subtraction,
    "unit conversion": solve_units,
    "calendar": solve_calendar,
    "strings": solve_strings,
    "roman numerals": solve_roman,
    "elements": solve_elements,
    "capitals": solve_capitals,
    "logic": solve_logic,
    "unit conversion and addition": solve_units,
    "roman numerals and addition": solve_roman_and_addition,
    "elements and addition": solve_elements_and_addition,
}
FIRST_TEXTS = [
    "A train carried 450 people on one day and 368 on the next. How many in total?",
    "How much is 565 minus 459?",
]
FIRST_GOLDS = [("818",), ("106",)]
