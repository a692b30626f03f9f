"""Strings of capital letters, and Roman numerals."""

from __future__ import annotations

import itertools

from symoe_ray.demo.arithmetic import sum_worked
from symoe_ray.demo.items import Dice, Item, Split

_VOWELS = "AEIOU"
_CONSONANTS = "BCDFGHKLMNPRSTVWXZ"
_LETTERS = _VOWELS + _CONSONANTS
_REVERSAL = (
    "Which is {s} written backwards?", "Reverse the string {s}.", "What does {s} read from right to left?",
    "Turn the letters of {s} around.", "Spell {s} from its end to its beginning.",
)  # fmt: skip
_PLACE = (
    "At which place in {s} is the letter {c}?", "Which place has the letter {c} in {s}?",
    "Counted from the left, where is {c} in the string {s}?", "Find the place of the letter {c} in {s}.",
)  # fmt: skip
_VOWEL_COUNT = (
    "How many vowels are in {s}?", "Count the vowels of {s}.", "In the string {s}, how many letters are vowels?",
    "How many of the letters of {s} are vowels?",
)  # fmt: skip
_READ = (
    "What number is the Roman numeral {r}?", "Write {r} with our digits.", "Which value has the Roman numeral {r}?",
    "Read the Roman numeral {r} as a number.", "A stone says {r}. What year of the town is that?",
)  # fmt: skip
_WRITE = (
    "Which Roman numeral is {n}?", "Write {n} as a Roman numeral.", "How did the Romans write {n}?",
    "Turn {n} into a Roman numeral.",
)  # fmt: skip
_READ_AND_ADD = (
    "What is {r} + {b}?", "Add {b} to the Roman numeral {r}.", "How much is {r} plus {b}?",
    "Find the sum of the Roman numeral {r} and {b}.",
)  # fmt: skip
_PLACES = (
    (100, ("", "C", "CC", "CCC", "CD", "D", "DC", "DCC", "DCCC", "CM")),
    (10, ("", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC")),
    (1, ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")),
)


def strings(dice: Dice, split: Split) -> Item:
    """Reversing a string, finding a letter in it, or counting its vowels. No letter stands in it twice."""
    return dice.pick((_reversal, _reversal, _place, _vowels))(dice, split)


def _reversal(dice: Dice, _: Split) -> Item:
    letters = dice.shuffled(_LETTERS)[: dice.number(4, 5)]
    word, gold = "".join(letters), "".join(reversed(letters))
    numbered = [f"{letter}{place}" for place, letter in enumerate(letters, 1)]
    others = ["".join(dice.shuffled(letters)) for _ in range(6)]
    return Item(
        text=dice.pick(_REVERSAL).format(s=word), gold=gold, choices=dice.options(gold, [word, *others]),
        working=f"{''.join(numbered)}: {''.join(reversed(numbered))}. {gold}.",
        skills=("strings", "reversal"), content=("string", min(word, gold)),
    )  # fmt: skip


def _place(dice: Dice, _: Split) -> Item:
    letters = dice.shuffled(_LETTERS)[: dice.number(5, 7)]
    place, word = dice.number(2, len(letters)), "".join(letters)
    numbered = "".join(f"{letter}{number}" for number, letter in enumerate(letters[:place], 1))
    return Item(
        text=dice.pick(_PLACE).format(s=word, c=letters[place - 1]), gold=str(place), working=f"{numbered}. {place}.",
        skills=("strings", "places"), content=("string", word, place),
    )  # fmt: skip


def _vowels(dice: Dice, _: Split) -> Item:
    letters = dice.shuffled([*dice.shuffled(_VOWELS)[: dice.number(1, 4)], *dice.shuffled(_CONSONANTS)[:3]])
    word = "".join(letters)
    counts = itertools.accumulate(int(letter in _VOWELS) for letter in letters)
    running = [f"{letter}{count}" for letter, count in zip(letters, counts, strict=True)]
    count = sum(letter in _VOWELS for letter in letters)
    return Item(
        text=dice.pick(_VOWEL_COUNT).format(s=word), gold=str(count), working=f"{''.join(running)}. {count}.",
        skills=("strings", "vowels"), content=("string", word, "vowels"),
    )  # fmt: skip


def roman_numerals(dice: Dice, _: Split) -> Item:
    """A number below 1000 read from a Roman numeral, or written as one."""
    n = dice.number(11, 999)
    content = ("roman", n)
    if dice.chance(0.5):
        return Item(
            text=dice.pick(_READ).format(r=roman(n)), gold=str(n), working=read_worked(n),
            skills=("roman numerals", "reading numerals"), content=content,
        )  # fmt: skip
    gold = roman(n)
    others = [roman(other) for other in (n + 1, n - 1, n + 10, n - 10, n + 4, n - 5) if 0 < other < 1000]
    parts = " ".join(f"{number}={numeral}" for number, numeral in _parts(n))
    return Item(
        text=dice.pick(_WRITE).format(n=n), gold=gold, working=f"{parts}. {gold}.",
        skills=("roman numerals", "writing numerals"), content=content, choices=dice.options(gold, others),
    )  # fmt: skip


def roman_and_addition(dice: Dice, _: Split) -> Item:
    """A Roman numeral plus a number."""
    n, b = dice.number(11, 899), dice.number(12, 99)
    return Item(
        text=dice.pick(_READ_AND_ADD).format(r=roman(n), b=b), gold=str(n + b),
        working=f"{read_worked(n)} {sum_worked(n, b)}", skills=("roman numerals", "addition"),
        content=("roman and addition", n, b),
    )  # fmt: skip


def roman(n: int) -> str:
    """The Roman numeral of a number from 1 to 999."""
    return "".join(numeral for _, numeral in _parts(n))


def read_worked(n: int) -> str:
    """ "CC=200 XL=40 VII=7. 247." """
    return f"{' '.join(f'{numeral}={number}' for number, numeral in _parts(n))}. {n}."


def _parts(n: int) -> list[tuple[int, str]]:
    """The places of a number that are not zero, each with its numeral."""
    return [(n // unit % 10 * unit, numerals[n // unit % 10]) for unit, numerals in _PLACES if n // unit % 10]
