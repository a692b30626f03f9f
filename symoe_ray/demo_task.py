"""The task that the project makes itself: questions of nine skills and of pairs of them, the same from the same seed.

Training, validation and test never share a content (operands, a string, a row of people), whatever their seeds, and
never a wording where the content is a fact: `symoe_ray.demo.items.split_of`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from symoe_ray.core import Kind, Question
from symoe_ray.demo import arithmetic, letters, reasoning, world
from symoe_ray.demo.items import Dice, Family, Item, Split, draw
from symoe_ray.options import LETTERS
from symoe_ray.question_rows import content_id
from symoe_ray.settings import DemoTask

FAMILIES: dict[str, Family] = {
    "addition": arithmetic.addition,
    "subtraction": arithmetic.subtraction,
    "unit conversion": arithmetic.conversion,
    "calendar": reasoning.calendar,
    "strings": letters.strings,
    "roman numerals": letters.roman_numerals,
    "elements": world.elements,
    "capitals": world.capitals,
    "logic": reasoning.logic,
    "unit conversion and addition": arithmetic.conversion_and_addition,
    "roman numerals and addition": letters.roman_and_addition,
    "elements and addition": world.elements_and_addition,
}

_TRIES = 500  # so many repetitions in a row, and a family has no new question left


def generate(demo: DemoTask, task: str = "demo") -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """`demo.validation` and `demo.test` questions, dealt from the families in turn, every one of them different.

    The seed alone decides the questions and their order; a larger split continues a smaller one. `category` is the
    family. A family that has run out of different questions is left out from there on.
    """
    validation = itertools.islice(dealt(demo.seed, "validation", task), demo.validation)
    return tuple(validation), tuple(itertools.islice(dealt(demo.seed, "test", task), demo.test))


def dealt(seed: int, split: Split, task: str = "demo") -> Iterator[Question]:
    """One question of each family, then the next of each, until all have run out; never the same text twice."""
    hands = {name: Dice(seed, split, name) for name in FAMILIES}
    seen: set[str] = set()
    while hands:
        for name, dice in list(hands.items()):
            drawn = (as_question(task, name, draw(FAMILIES[name], dice, split)) for _ in range(_TRIES))
            question = next((question for question in drawn if question.text not in seen), None)
            if question is None:
                del hands[name]
                continue
            seen.add(question.text)
            yield question


def as_question(task: str, family: str, item: Item) -> Question:
    """The question of an item; its id follows from the content."""
    kind: Kind = "choice" if item.choices else "integer"
    return Question(
        id=content_id(task, item.text, item.choices, kind),
        text=item.text,
        kind=kind,
        task=task,
        choices=item.choices,
        gold=(LETTERS[item.choices.index(item.gold)] if item.choices else item.gold,),
        category=family,
    )
