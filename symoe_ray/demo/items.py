"""What a skill makes: questions with their worked answers; and the dice and the three splits they are drawn with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from symoe_ray.fingerprints import seed_of, uniform

T = TypeVar("T")
Split = Literal["training", "validation", "test"]
Phrasings = dict[Split, tuple[str, ...]]
SPLITS: tuple[Split, ...] = ("training", "validation", "test")


class Dice:
    """Draws that the seed's values alone determine, the same in every version of Python."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random(seed_of("demo", *seed)).random

    def chance(self, share: float) -> bool:
        """True in that share of cases."""
        return self._random() < share

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(self._random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        return [item for _, item in sorted(((self._random(), item) for item in items), key=lambda pair: pair[0])]

    def options(self, gold: str, others: Sequence[str], count: int = 4) -> tuple[str, ...]:
        """The right option and as many others as make `count`, shuffled."""
        wrong = self.shuffled([other for other in dict.fromkeys(others) if other != gold])
        return tuple(self.shuffled([gold, *wrong[: count - 1]]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question with its answer.

    `gold` is the right option's text, or an integer where there are no `choices`. `working` is a short reasoning that
    leads to it. `skills` are the keywords that name what it takes, the main skill first. `content` is what the question
    is about (operands, a string, names) whatever its wording: it decides which split the question belongs to; empty
    where the wording does (facts), which then is drawn from the split's own.
    """

    text: str
    gold: str
    working: str
    skills: tuple[str, ...]
    content: tuple[str | int, ...] = ()
    choices: tuple[str, ...] = ()


Family = Callable[[Dice, Split], Item]


def split_of(content: Sequence[str | int]) -> Split:
    """The one split that a content may appear in: 60% training, 20% validation, 20% test, whatever the seed."""
    share = uniform("demo content", *content)
    return "training" if share < 0.6 else "validation" if share < 0.8 else "test"


def draw(family: Family, dice: Dice, split: Split) -> Item:
    """The next item of a family that belongs to the split."""
    while True:
        item = family(dice, split)
        if not item.content or split_of(item.content) == split:
            return item
