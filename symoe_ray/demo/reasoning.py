"""Calendar arithmetic and the order of people."""

from __future__ import annotations

import itertools

from symoe_ray.demo.facts import MONTHS, NAMES, ORDERS, WEEKDAYS
from symoe_ray.demo.items import Dice, Item, Split

_AFTER = (
    "Today is {day}. Which day of the week is it in {n} days?", "Which weekday comes {n} days after {day}?",
    "It is {day}. What day will it be {n} days from now?", "Name the weekday that follows {day} by {n} days.",
)  # fmt: skip
_BEFORE = (
    "Today is {day}. Which day of the week was it {n} days ago?", "Which weekday comes {n} days before {day}?",
    "It is {day}. What day was it {n} days back?",
)  # fmt: skip
_MONTHS_AFTER = (
    "Which month comes {n} months after {month}?", "It is {month}. Which month is it in {n} months?",
    "Name the month that follows {month} by {n} months.",
    "A loan starts in {month} and runs {n} months. Which month ends it?",
)  # fmt: skip


def calendar(dice: Dice, split: Split) -> Item:
    """A weekday so many days later or earlier, or a month so many months later."""
    return dice.pick((_weekday, _weekday, _month))(dice, split)


def _weekday(dice: Dice, _: Split) -> Item:
    start, n, sign = dice.number(0, 6), dice.number(8, 60), dice.pick((1, 1, -1))
    day, passed = WEEKDAYS[start], [WEEKDAYS[(start + sign * i) % 7] for i in range(n % 7 + 1)]
    return Item(
        text=dice.pick(_AFTER if sign > 0 else _BEFORE).format(day=day, n=n), gold=passed[-1],
        working=_cycle_worked(n, 7, passed, "+" if sign > 0 else "-"), skills=("calendar", "weekdays"),
        content=("weekday", start, n, sign), choices=dice.options(passed[-1], WEEKDAYS),
    )  # fmt: skip


def _month(dice: Dice, _: Split) -> Item:
    start, n = dice.number(0, 11), dice.number(13, 40)
    passed = [MONTHS[(start + i) % 12] for i in range(n % 12 + 1)]
    return Item(
        text=dice.pick(_MONTHS_AFTER).format(month=MONTHS[start], n=n), gold=passed[-1],
        working=_cycle_worked(n, 12, passed, "+"), skills=("calendar", "months"),
        content=("month", start, n), choices=dice.options(passed[-1], MONTHS),
    )  # fmt: skip


def _cycle_worked(n: int, cycle: int, passed: list[str], sign: str) -> str:
    """ "23=3x7+2. Monday+2: Tuesday1 Wednesday2. Wednesday." """
    steps = " ".join(f"{name}{place}" for place, name in enumerate(passed))
    return f"{n}={n // cycle}x{cycle}+{n % cycle}. {passed[0]}{sign}{n % cycle}: {steps}. {passed[-1]}."


def logic(dice: Dice, _: Split) -> Item:
    """Three people in a row by two comparisons in any order and direction; asked for is one end."""
    more, less, most, least = dice.pick(ORDERS)
    people = dice.shuffled(NAMES)[:3]
    pairs = dice.shuffled(list(itertools.pairwise(people)))
    facts = [f"{a} is {more} than {b}." if dice.chance(0.6) else f"{b} is {less} than {a}." for a, b in pairs]
    asked, gold = dice.pick(((most, people[0]), (least, people[-1])))
    question = dice.pick(("Who is the {asked}?", "Which of them is the {asked}?", "Name the {asked} of them."))
    restated = " ".join(f"{a} > {b}." for a, b in pairs)
    return Item(
        text=f"{' '.join(facts)} {question.format(asked=asked)}", gold=gold,
        working=f"{restated} between: {people[1]}. {' > '.join(people)}. {asked}: {gold}.",
        skills=("logic", "ordering"),
        content=("logic", more, *people), choices=tuple(dice.shuffled(people)),
    )  # fmt: skip
