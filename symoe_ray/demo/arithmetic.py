"""Addition, subtraction and unit conversion, worked digit by digit from the right."""

from __future__ import annotations

from symoe_ray.demo.facts import UNITS
from symoe_ray.demo.items import Dice, Item, Split

_ADDITION = (
    "What is {a} + {b}?", "Add {a} and {b}.", "Find the sum of {a} and {b}.", "How much is {a} plus {b}?",
    "A shop sold {a} cups and then {b} more. How many did it sell in all?",
    "One shelf holds {a} books, another one {b}. How many books are there together?",
    "A train carried {a} people on one day and {b} on the next. How many in total?",
)  # fmt: skip
_SUBTRACTION = (
    "What is {a} - {b}?", "Subtract {b} from {a}.", "Find the difference of {a} and {b}.",
    "How much is {a} minus {b}?", "Of {a} seats, {b} are taken. How many are free?",
    "A baker made {a} rolls and sold {b} of them. How many are left?",
    "A rope of {a} metres is cut by {b} metres. How long is it now?",
)  # fmt: skip
_CONVERSION = (
    "How many {small} are {n} {large}?", "Convert {n} {large} to {small}.", "Give {n} {large} in {small}.",
    "Express {n} {large} as {small}.", "A film strip measures {n} {large}. What is that in {small}?",
    "Change {n} {large} into {small}.",
)  # fmt: skip
_CONVERSION_AND_ADDITION = (
    "How many {small} are {n} {large} and {b} {small} together?", "Give {n} {large} and {b} {small} in {small}.",
    "Convert {n} {large} plus {b} {small} to {small}.", "Express the sum of {n} {large} and {b} {small} in {small}.",
)  # fmt: skip


def addition(dice: Dice, _: Split) -> Item:
    """Two numbers of three digits."""
    a, b = dice.number(100, 999), dice.number(100, 999)
    return Item(
        text=dice.pick(_ADDITION).format(a=a, b=b), gold=str(a + b), working=sum_worked(a, b),
        skills=("addition", "arithmetic"), content=("addition", *sorted((a, b))),
    )  # fmt: skip


def subtraction(dice: Dice, _: Split) -> Item:
    """Two numbers of three digits, the smaller from the larger."""
    b, gap = dice.number(100, 500), dice.number(10, 499)
    return Item(
        text=dice.pick(_SUBTRACTION).format(a=b + gap, b=b), gold=str(gap), working=difference_worked(b + gap, b),
        skills=("subtraction", "arithmetic"), content=("subtraction", b + gap, b),
    )  # fmt: skip


def conversion(dice: Dice, _: Split) -> Item:
    """A number of a larger unit in a smaller one."""
    large, small, factor = dice.pick(UNITS)
    n = dice.number(2, 99)
    return Item(
        text=dice.pick(_CONVERSION).format(n=n, large=large, small=small), gold=str(n * factor),
        working=product_worked(n, factor), skills=("unit conversion", "multiplication"),
        content=("conversion", n, large),
    )  # fmt: skip


def conversion_and_addition(dice: Dice, _: Split) -> Item:
    """A mixed length, weight or time in the smaller of its units."""
    large, small, factor = dice.pick([unit for unit in UNITS if unit[2] < 100])
    n, b = dice.number(2, 29), dice.number(12, 99)
    return Item(
        text=dice.pick(_CONVERSION_AND_ADDITION).format(n=n, b=b, large=large, small=small), gold=str(n * factor + b),
        working=f"{product_worked(n, factor)} {sum_worked(n * factor, b)}", skills=("unit conversion", "addition"),
        content=("conversion and addition", n, b, large),
    )  # fmt: skip


def sum_worked(a: int, b: int) -> str:
    """ "347+085: 7+5=12 4+8+1=13 3+0+1=4. 432." """
    width = max(len(str(a)), len(str(b)))
    steps, carry = [], 0
    for x, y in _columns(a, b, width):
        total = x + y + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return f"{a:0{width}}+{b:0{width}}: {' '.join(steps)}. {a + b}."


def difference_worked(a: int, b: int) -> str:
    """ "432-085: 12-5=7 12-8=4 3-0=3. 347." """
    width = len(str(a))
    steps, borrow = [], 0
    for x, y in _columns(a, b, width):
        top = x - borrow
        borrow = int(top < y)
        top += 10 * borrow
        steps.append(f"{top}-{y}={top - y}")
    return f"{a:0{width}}-{b:0{width}}: {' '.join(steps)}. {a - b}."


def product_worked(n: int, factor: int) -> str:
    """ "37x60: 30x60=1800 7x60=420. 1800+0420: ... 2220." """
    tens, ones = n // 10 * 10, n % 10
    if factor in (100, 1000) or not tens or not ones:
        return f"{n}x{factor}={n * factor}."
    return (
        f"{n}x{factor}: {tens}x{factor}={tens * factor} {ones}x{factor}={ones * factor}. "
        f"{sum_worked(tens * factor, ones * factor)}"
    )


def _columns(a: int, b: int, width: int) -> list[tuple[int, int]]:
    """The digits of both numbers, from the right."""
    return [(a // 10**place % 10, b // 10**place % 10) for place in range(width)]
