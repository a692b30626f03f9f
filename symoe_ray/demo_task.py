"""The task that the project makes itself: small questions of eight skills, the same everywhere from the same seed."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from symoe_ray.core import Kind, Question
from symoe_ray.demo_facts import CAPITALS, ELEMENTS, MONTHS, NAMES, ORDERS, UNITS, WEEKDAYS, WORDS
from symoe_ray.fingerprints import uniform
from symoe_ray.options import LETTERS
from symoe_ray.question_rows import content_id
from symoe_ray.settings import DemoTask

_T = TypeVar("_T")
Draw = Callable[..., float]  # a uniform number in [0, 1) for the words that name it
Item = tuple[str, Sequence[str], str]  # text, options (empty: an integer question), gold as text

_TRIES = 500  # so many repetitions in a row, and a skill has no new question left


def generate(demo: DemoTask, task: str = "demo") -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """`demo.validation` and `demo.test` questions, dealt from the skills in turn, every one of them different.

    The seed alone decides the questions and their order; a larger `test` continues a smaller one. `category` is the
    skill. A skill that has run out of different questions is left out from there on.
    """
    questions = _dealt(demo.seed, task)
    validation = tuple(itertools.islice(questions, demo.validation))
    return validation, tuple(itertools.islice(questions, demo.test))


def _dealt(seed: int, task: str) -> Iterator[Question]:
    """One question of each skill, then the next of each, without end; never the same content twice."""
    hands = {skill: family(_drawer(seed, skill)) for skill, family in _FAMILIES.items()}
    seen: set[str] = set()
    while True:
        for skill, hand in list(hands.items()):
            drawn = (_question(task, skill, item) for item in itertools.islice(hand, _TRIES))
            question = next((question for question in drawn if question.id not in seen), None)
            if question is None:
                del hands[skill]
                continue
            seen.add(question.id)
            yield question


def _drawer(seed: int, skill: str) -> Draw:
    return lambda *names: uniform("demo", seed, skill, *names)


def _question(task: str, skill: str, item: Item) -> Question:
    text, options, gold = item
    choices = tuple(options)
    answer = LETTERS[choices.index(gold)] if choices else gold
    kind: Kind = "choice" if choices else "integer"
    return Question(
        id=content_id(task, text, choices, kind),
        text=text,
        kind=kind,
        task=task,
        choices=choices,
        gold=(answer,),
        category=skill,
    )


def _pick(items: Sequence[_T], draw: Draw, *names: object) -> _T:
    return items[int(draw(*names) * len(items))]


def _number(low: int, high: int, draw: Draw, *names: object) -> int:
    """A whole number from low to high, both included."""
    return low + int(draw(*names) * (high - low + 1))


def _shuffled(items: Sequence[str], draw: Draw, *names: object) -> list[str]:
    return sorted(items, key=lambda item: (draw("order", item, *names), item))


def _options(gold: str, others: Sequence[str], draw: Draw, *names: object) -> list[str]:
    """The right option and three of the others, shuffled."""
    wrong = _shuffled([other for other in dict.fromkeys(others) if other != gold], draw, "wrong", *names)[:3]
    return _shuffled([gold, *wrong], draw, "place", *names)


def _addition(draw: Draw) -> Iterator[Item]:
    templates = ["What is {a} + {b}?", "Add {a} and {b}.", "A shop sold {a} cups and then {b} more. How many in all?"]
    for i in itertools.count():
        a, b = _number(12, 899, draw, "a", i), _number(12, 899, draw, "b", i)
        yield _pick(templates, draw, "template", i).format(a=a, b=b), (), str(a + b)


def _subtraction(draw: Draw) -> Iterator[Item]:
    templates = ["What is {a} - {b}?", "Subtract {b} from {a}.", "Of {a} seats, {b} are taken. How many are free?"]
    for i in itertools.count():
        b, gap = _number(12, 480, draw, "b", i), _number(3, 480, draw, "gap", i)
        yield _pick(templates, draw, "template", i).format(a=b + gap, b=b), (), str(gap)


def _unit_conversion(draw: Draw) -> Iterator[Item]:
    templates = ["How many {small} are {n} {large}?", "Convert {n} {large} to {small}."]
    for i in itertools.count():
        large, small, factor = _pick(UNITS, draw, "unit", i)
        n = _number(2, 60, draw, "n", i)
        yield _pick(templates, draw, "template", i).format(n=n, large=large, small=small), (), str(n * factor)


def _calendar(draw: Draw) -> Iterator[Item]:
    for i in itertools.count():
        if draw("kind", i) < 0.5:
            day, n = _number(0, 6, draw, "day", i), _number(2, 60, draw, "n", i)
            gold = WEEKDAYS[(day + n) % 7]
            text = f"Today is {WEEKDAYS[day]}. Which day of the week is it in {n} days?"
            yield text, _options(gold, WEEKDAYS, draw, i), gold
        else:
            first = datetime.date(2025, 1, 1) + datetime.timedelta(days=_number(0, 300, draw, "first", i))
            last = first + datetime.timedelta(days=_number(3, 60, draw, "gap", i))
            yield f"How many days after {_date(first)} is {_date(last)}?", (), str((last - first).days)


def _date(day: datetime.date) -> str:
    """ "3 March 2025", in English whatever the locale is."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def _letters(draw: Draw) -> Iterator[Item]:
    words = _shuffled(WORDS, draw)
    templates = [_reversal, _length, _occurrences]
    for turn in range(len(templates)):
        for place, word in enumerate(words):
            yield templates[(place + turn) % len(templates)](word, draw)


def _reversal(word: str, draw: Draw) -> Item:
    gold = word[::-1]
    swapped = [gold[:i] + gold[i + 1] + gold[i] + gold[i + 2 :] for i in range(len(gold) - 1)]
    return f"Which is the word {word!r} written backwards?", _options(gold, [*swapped, word], draw, word), gold


def _length(word: str, draw: Draw) -> Item:
    del draw
    return f"How many letters does the word {word!r} have?", (), str(len(word))


def _occurrences(word: str, draw: Draw) -> Item:
    letter = _pick(word, draw, "letter", word)
    return f"How many times does the letter {letter!r} occur in the word {word!r}?", (), str(word.count(letter))


def _elements(draw: Draw) -> Iterator[Item]:
    # An option that reads "C" would be taken for the letter of an option: such symbols are only ever given, not asked.
    symbols = [symbol for symbol in ELEMENTS.values() if len(symbol) > 1]
    for name in _shuffled(list(ELEMENTS), draw):
        symbol = ELEMENTS[name]
        if symbol in symbols and draw("template", name) < 0.5:
            gold, others, text = symbol, symbols, f"What is the chemical symbol of {name}?"
        else:
            gold, others, text = name, list(ELEMENTS), f"Which element has the chemical symbol {symbol}?"
        yield text, _options(gold, others, draw, name), gold


def _capitals(draw: Draw) -> Iterator[Item]:
    for country in _shuffled(list(CAPITALS), draw):
        city = CAPITALS[country]
        if draw("template", country) < 0.5:
            gold, others, text = city, list(CAPITALS.values()), f"What is the capital of {country}?"
        else:
            gold, others, text = country, list(CAPITALS), f"{city} is the capital of which country?"
        yield text, _options(gold, others, draw, country), gold


def _logic(draw: Draw) -> Iterator[Item]:
    """Three people in a row by two comparisons, which come in either order; the question asks for one end."""
    for i in itertools.count():
        more, most, least = _pick(ORDERS, draw, "order", i)
        top, middle, bottom = _shuffled(NAMES, draw, i)[:3]
        facts = [f"{top} is {more} than {middle}.", f"{middle} is {more} than {bottom}."]
        if draw("flip", i) < 0.5:
            facts.reverse()
        end, gold = (most, top) if draw("end", i) < 0.5 else (least, bottom)
        people = _shuffled([top, middle, bottom], draw, "people", i)
        text = f"{facts[0]} {facts[1]} Who of {people[0]}, {people[1]} and {people[2]} is the {end}?"
        yield text, people, gold


_FAMILIES: dict[str, Callable[[Draw], Iterator[Item]]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "unit conversion": _unit_conversion,
    "calendar": _calendar,
    "letters": _letters,
    "elements": _elements,
    "capitals": _capitals,
    "logic": _logic,
}
