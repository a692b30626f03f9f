"""Facts: chemical elements and capitals. Training, validation and test ask for the same facts in different words."""

from __future__ import annotations

from symoe_ray.demo.arithmetic import sum_worked
from symoe_ray.demo.facts import CAPITALS, ELEMENTS
from symoe_ray.demo.items import Dice, Item, Phrasings, Split

_SYMBOL: Phrasings = {
    "training": (
        "What is the chemical symbol of {name}?", "Which symbol stands for {name}?", "Give the symbol of {name}.",
        "How do chemists write {name}?", "{Name} has which chemical symbol?", "Pick the symbol of the element {name}.",
    ),
    "validation": ("Which chemical symbol stands for {name}?", "What is the symbol of the element {name}?"),
    "test": ("Pick the chemical symbol of {name}.", "The element {name} has which symbol?"),
}  # fmt: skip
_ELEMENT: Phrasings = {
    "training": (
        "Which element has the chemical symbol {symbol}?", "What is the name of the element {symbol}?",
        "{symbol} stands for which element?", "Which element do chemists write as {symbol}?",
        "Name the element with the symbol {symbol}.", "The symbol {symbol} is which element?",
    ),
    "validation": ("What element is {symbol}?", "The chemical symbol {symbol} stands for which element?"),
    "test": ("Name the element with the chemical symbol {symbol}.", "What is the element with the symbol {symbol}?"),
}  # fmt: skip
_NUMBER: Phrasings = {
    "training": (
        "What is the atomic number of {name}?", "How many protons has an atom of {name}?",
        "Give the atomic number of {name}.", "How many protons are in the nucleus of {name}?",
        "{Name} has which atomic number?", "Which number has {name} in the periodic table?",
    ),
    "validation": ("Which atomic number has {name}?", "How many protons are in an atom of {name}?"),
    "test": ("Give the number of protons of {name}.", "What is the number of {name} in the periodic table?"),
}  # fmt: skip
_NUMBERS_ADDED: Phrasings = {
    "training": (
        "What is the sum of the atomic numbers of {a} and {b}?", "Add the atomic numbers of {a} and {b}.",
        "How many protons have an atom of {a} and an atom of {b} together?",
        "How much is the atomic number of {a} plus that of {b}?",
    ),
    "validation": ("Find the sum of the atomic numbers of {a} and {b}.",),
    "test": ("Add the atomic number of {a} and that of {b}.",),
}  # fmt: skip
_CAPITAL: Phrasings = {
    "training": (
        "What is the capital of {country}?", "Which city is the capital of {country}?",
        "Name the capital of {country}.", "{country} is governed from which city?",
        "The capital of {country} is which city?", "Where does the government of {country} sit?",
    ),
    "validation": ("What city is the capital of {country}?", "Name the city which is the capital of {country}."),
    "test": ("From which city is {country} governed?", "Which city does the government of {country} sit in?"),
}  # fmt: skip
_COUNTRY: Phrasings = {
    "training": (
        "{city} is the capital of which country?", "Which country has the capital {city}?",
        "Name the country whose capital is {city}.", "Which country is governed from {city}?",
        "The city {city} is which country's capital?", "In which country is {city} the capital?",
    ),
    "validation": ("Which country's capital is {city}?", "Name the country governed from {city}."),
    "test": ("{city} is which country's capital?", "Which country is {city} the capital of?"),
}  # fmt: skip


def elements(dice: Dice, split: Split) -> Item:
    """The symbol, name or atomic number of a chemical element."""
    return dice.pick((_symbol, _element, _number))(dice, split)


def _symbol(dice: Dice, split: Split) -> Item:
    # An option that reads "C" would be taken for the letter of an option: such symbols are only ever given, not asked.
    symbols = {name: symbol for name, (symbol, _) in ELEMENTS.items() if len(symbol) > 1}
    name = dice.pick(list(symbols))
    return Item(
        text=dice.pick(_SYMBOL[split]).format(name=name, Name=name.capitalize()), gold=symbols[name],
        working=f"The symbol of {name} is {symbols[name]}.", skills=("elements", "symbols"),
        choices=dice.options(symbols[name], list(symbols.values())),
    )  # fmt: skip


def _element(dice: Dice, split: Split) -> Item:
    name = dice.pick(list(ELEMENTS))
    symbol, _ = ELEMENTS[name]
    return Item(
        text=dice.pick(_ELEMENT[split]).format(symbol=symbol), gold=name,
        working=f"{symbol} is the symbol of {name}.", skills=("elements", "symbols"),
        choices=dice.options(name, list(ELEMENTS)),
    )  # fmt: skip


def _number(dice: Dice, split: Split) -> Item:
    name = dice.pick(list(ELEMENTS))
    _, number = ELEMENTS[name]
    return Item(
        text=dice.pick(_NUMBER[split]).format(name=name, Name=name.capitalize()), gold=str(number),
        working=f"The number of {name} is {number}.", skills=("elements", "atomic numbers"),
    )  # fmt: skip


def elements_and_addition(dice: Dice, split: Split) -> Item:
    """The sum of two atomic numbers."""
    a, b = dice.shuffled(list(ELEMENTS))[:2]
    (_, x), (_, y) = ELEMENTS[a], ELEMENTS[b]
    return Item(
        text=dice.pick(_NUMBERS_ADDED[split]).format(a=a, b=b), gold=str(x + y),
        working=f"The number of {a} is {x}. The number of {b} is {y}. {sum_worked(x, y)}",
        skills=("elements", "addition"), content=("elements", *sorted((a, b))),
    )  # fmt: skip


def capitals(dice: Dice, split: Split) -> Item:
    """The capital of a country, or the country of a capital."""
    country = dice.pick(list(CAPITALS))
    city = CAPITALS[country]
    asks_city = dice.chance(0.5)
    gold, others = (city, list(CAPITALS.values())) if asks_city else (country, list(CAPITALS))
    phrasing = dice.pick((_CAPITAL if asks_city else _COUNTRY)[split])
    return Item(
        text=phrasing.format(country=country, city=city), gold=gold, working=f"The capital of {country} is {city}.",
        skills=("capitals", "geography"), choices=dice.options(gold, others),
    )  # fmt: skip
