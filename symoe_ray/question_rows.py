"""One row of a question file as a `Question`: text, options, kind and accepted answers, each checked in its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from symoe_ray.core import InputError, Kind, Question
from symoe_ray.fingerprints import digest
from symoe_ray.options import LETTERS, split_options
from symoe_ray.question_files import Row
from symoe_ray.settings import FieldNames, TaskSettings

_LETTER = re.compile(r"\(?([A-Z])\)?\.?")
_REMARK = re.compile(r"\([^()]*\)\s*$")
_INTEGER = re.compile(r"[+-]?\d{1,99}")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3}){1,9}")


def parse_question(row: Row, task: TaskSettings, *, needs_gold: bool) -> Question:
    """The question in a row, with its own id, or one made from its content where it has none.

    Options come from the `choices` field (a list in letter order, or letter -> text) or fields (a text each), else from
    the text itself (see `split_options`). Gold of a choice question is a letter, or exactly an option's text, or its
    number where the fields say so; of an integer question an integer ("033", 33.0 and "1,024" are read; "080 or 081
    (both were accepted)" accepts two); a list accepts each of its members. Raises InputError with the row's place.
    """
    names = task.fields
    text = _text(row, names)
    choices = _choices(row, names)
    if choices is None:
        stem, found = split_options(text)
    else:
        stem, found = text.strip(), choices
    if not found:
        found = ("",) * task.unnamed_options
    kind = _kind(row, task, found)
    if kind == "integer":
        stem, found = text.strip(), ()
    gold = _gold(row, names, kind, found)
    if task.shuffle_choices:
        found, gold = _shuffled(stem, found, gold)
    if needs_gold and not gold:
        raise InputError(
            f"{row.place}: a validation question needs a gold answer in {names.gold!r}{_instead(row, names.gold)}"
        )
    given, category = _id(row, names), _plain(row.values.get(names.category))
    _refuse_half_characters(row, stem, *found, given, category)
    return Question(
        id=given or content_id(task.name, stem, found, kind),
        text=stem,
        kind=kind,
        task=task.name,
        choices=found,
        gold=gold,
        category=category,
    )


def content_id(task: str, text: str, choices: tuple[str, ...], kind: Kind) -> str:
    """The id of a question that brings none: the task's name and a digest of what is asked, spaces made equal."""
    return f"{task}-{digest(_spaced(text), [_spaced(choice) for choice in choices], kind, size=6)}"


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _plain(value: object) -> str:
    return "" if value is None else str(value).strip()


def _instead(row: Row, name: str) -> str:
    """What the row has in place of a field: the nearest of its own names, else all of them."""
    names = [str(key) for key in row.values]
    if name in names:
        return ""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; its fields are: {', '.join(names) or '(none)'}"


def _refuse_half_characters(row: Row, *texts: str) -> None:
    """JSON can spell half of a surrogate pair ("\\ud83d" alone), which no file or tokenizer can take further."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start].encode("unicode_escape").decode()
            raise InputError(f"{row.place}: holds {half}, half of a character (a lone surrogate)") from None


def _id(row: Row, names: FieldNames) -> str:
    value = row.values.get(names.id)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int))):
        raise InputError(f"{row.place}: the id in {names.id!r} must be a text or an integer, but is {value!r}")
    return _plain(value)


def _text(row: Row, names: FieldNames) -> str:
    if names.question not in row.values:
        raise InputError(f"{row.place}: has no {names.question!r} field{_instead(row, names.question)}")
    value = row.values[names.question]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{row.place}: {names.question!r} must be a text that is not empty, but is {value!r}")
    return value


def _choices(row: Row, names: FieldNames) -> tuple[str, ...] | None:
    """The `choices` field's texts in letter order; None where the row has none."""
    if len(names.choices) > 1:
        return _choice_fields(row, names)
    name = names.choices[0] if names.choices else ""
    value = row.values.get(name)
    if value is None:
        return None
    if isinstance(value, Mapping):
        letters = sorted(str(key) for key, text in value.items() if text is not None)
        if "".join(letters) != LETTERS[: len(letters)]:
            raise InputError(f"{row.place}: {name!r} must name its options A, B, C, ..., but has {', '.join(letters)}")
        value = [value[letter] for letter in letters]
    if not isinstance(value, list) or any(isinstance(item, (dict, list, type(None))) for item in value):
        raise InputError(f"{row.place}: {name!r} must be a list of texts or letter: text, but is {value!r}")
    if len(value) > len(LETTERS):
        raise InputError(f"{row.place}: {len(value)} options; at most {len(LETTERS)} can be lettered")
    return tuple(str(item).strip() for item in value)


def _choice_fields(row: Row, names: FieldNames) -> tuple[str, ...]:
    """One option of each field; fields at the end may be empty, since not all questions have as many."""
    values = [row.values.get(name) for name in names.choices]
    while values and values[-1] is None:
        values.pop()
    for name, value in zip(names.choices, values, strict=False):
        if isinstance(value, (dict, list, type(None))):
            raise InputError(f"{row.place}: {name!r} must hold an option's text, but is {value!r}{_instead(row, name)}")
    return tuple(str(value).strip() for value in values)


def _kind(row: Row, task: TaskSettings, choices: tuple[str, ...]) -> Kind:
    """What the task says; where it says auto, what the row says; else whether there are options."""
    stated = task.kind
    if stated == "auto":
        stated = _plain(row.values.get(task.fields.kind)) or ("choice" if choices else "integer")
        if stated not in ("choice", "integer"):
            raise InputError(f"{row.place}: {task.fields.kind!r} is {stated!r}; allowed: choice, integer")
    if stated == "integer":
        return "integer"
    if len(choices) < 2:
        raise InputError(
            f"{row.place}: a choice question needs two options or more, in {', '.join(task.fields.choices)} or in its "
            f'text after "The options are:" as "(A) ... (B) ..."; it has {len(choices)}'
        )
    return "choice"


def _gold(row: Row, names: FieldNames, kind: Kind, choices: tuple[str, ...]) -> tuple[str, ...]:
    """Every accepted answer, without repetitions; () where none is given."""
    value = row.values.get(names.gold)
    accepted: list[str] = []
    for item in value if isinstance(value, list) else [value]:
        if _plain(item):
            accepted += _letters(row, names, item, choices) if kind == "choice" else _integers(row, names, item)
    return tuple(dict.fromkeys(accepted))


def _letters(row: Row, names: FieldNames, value: object, choices: tuple[str, ...]) -> list[str]:
    text, letters = _plain(value), LETTERS[: len(choices)]
    if len(names.choices) > 1 and names.gold in names.choices:
        return [LETTERS[names.choices.index(names.gold)]]
    if names.gold_index:
        if not isinstance(value, int) or not 0 <= value < len(choices):
            raise InputError(f"{row.place}: gold {value!r} in {names.gold!r} is no number from 0 to {len(choices) - 1}")
        return [letters[value]]
    match = _LETTER.fullmatch(text)
    if match and match[1] in letters:
        return [match[1]]
    same = [letter for letter, choice in zip(letters, choices, strict=True) if choice == text]
    if not same:
        raise InputError(
            f"{row.place}: gold {text!r} in {names.gold!r} is neither one of the question's letters "
            f"({', '.join(letters)}) nor the exact text of an option"
        )
    return same


def _shuffled(stem: str, choices: tuple[str, ...], gold: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options in the order of a digest of question and option, and gold's letters in that order.

    Where the options stood before has no influence, so a dataset that lists the right one first gives nothing away.
    """
    order = sorted(range(len(choices)), key=lambda place: (digest("choice", stem, choices[place]), place))
    moved = {LETTERS[before]: LETTERS[after] for after, before in enumerate(order)}
    return tuple(choices[place] for place in order), tuple(sorted(moved[letter] for letter in gold))


def _integers(row: Row, names: FieldNames, value: object) -> list[str]:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    parts = [part.strip() for part in re.split(r"\bor\b", _REMARK.sub("", _plain(value)))]
    if not all(_INTEGER.fullmatch(part) or _THOUSANDS.fullmatch(part) for part in parts):
        raise InputError(
            f"{row.place}: gold {_plain(value)!r} in {names.gold!r} is not an integer: a question without options is "
            'graded by an integer (17, "1,024", "080 or 081"), one with options by a letter or an option\'s text; '
            "nothing else can be graded"
        )
    return [str(int(part.replace(",", ""))) for part in parts]
