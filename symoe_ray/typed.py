"""Plain values (from YAML or the command line) as typed dataclasses; a mistake is named with its key and its place."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from symoe_ray.core import InputError

_T = TypeVar("_T")
Origin = Callable[[str], str]  # where a dotted key was set: a file, or "the command line"

# The words that a key allows, of a list each of its items.
WORDS: dict[str, tuple[str, ...]] = {
    "task.kind": ("auto", "choice", "integer"),
    "engine.kind": ("vllm", "fake", "openai"),
    "engine.dtype": ("auto", "bfloat16", "float16", "float32"),
    "aggregate.skip_on_consensus": ("off", "unanimous"),
    "compat": ("default", "reference"),
    "router": ("reference", "paper"),
    "sampler": ("hash", "reference"),
    "no_skills": ("competence", "uniform"),
    "grader": ("default", "reference"),
    "baselines": (
        "auto",
        "all",
        "minimal",
        "off",
        "best_single",
        "experts",
        "self_consistency",
        "random_experts",
        "top_k",
        "moa",
        "self_moa",
        "debate",
    ),
}

# Why a number has to be whole, where that may surprise.
_WHOLE_GPUS = ": a slot holds whole GPUs, as its engine sizes its memory by all of them"
WHY_WHOLE = {"gpus": _WHOLE_GPUS, "tensor_parallel_size": _WHOLE_GPUS}


def nearest(key: str, known: Iterable[str]) -> str:
    """The known key most like `key`, or "" if none is: by the whole dotted key, else by its last part."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    if close:
        return close[0]
    last = {name.rsplit(".", 1)[-1]: name for name in reversed(names)}
    ends = difflib.get_close_matches(key.rsplit(".", 1)[-1], last, n=1)
    return last[ends[0]] if ends else ""


def unknown_key(key: str, known: Iterable[str], where: str) -> InputError:
    """The error for a key that does not exist, with the nearest one that does, else all that do."""
    names = sorted(known)
    near = nearest(key, names)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(names)}"
    return InputError(f"{where}: unknown key {key!r}; {hint}")


def hints(cls: type) -> dict[str, Any]:
    """Field name -> type, with postponed annotations resolved."""
    types_by_name = typing.get_type_hints(cls)
    return {field.name: types_by_name[field.name] for field in dataclasses.fields(cls)}


def build(cls: type[_T], values: object, key: str, origin: Origin) -> _T:
    """A `cls` (a dataclass) from a mapping that mirrors it; `key` is its dotted place ("" for the root).

    Missing keys take the dataclass's defaults; a key without one is required. Raises InputError.
    """
    fields = hints(cls)
    if not isinstance(values, Mapping):
        raise wrong(key, values, f"must be a mapping with keys of {', '.join(fields)}", origin)
    for name in values:
        if name not in fields:
            full = joined(key, str(name))
            raise unknown_key(full, [joined(key, field) for field in fields], origin(full))
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise InputError(f"{origin(key)}: {joined(key, field.name)} is missing")
    return cls(**{name: convert(fields[name], value, joined(key, name), origin) for name, value in values.items()})


def convert(hint: Any, value: object, key: str, origin: Origin) -> Any:
    """`value` as the annotated type: numbers stay numbers, a bool is no integer, a list becomes a tuple."""
    if isinstance(hint, types.UnionType):  # DemoTask | None is the only kind there is
        return None if value is None else convert(typing.get_args(hint)[0], value, key, origin)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), {} if value is None else value, key, origin)
    kind = typing.get_origin(hint) or hint
    if kind is tuple:
        return _tuple(typing.get_args(hint)[0], value, key, origin)
    if kind is list:
        return list(_tuple(typing.get_args(hint)[0], value, key, origin))
    if kind in (Mapping, dict):
        return _mapping(typing.get_args(hint)[1], value, key, origin)
    if kind is str:
        return _text(value, key, origin)
    if kind is bool and not isinstance(value, bool):
        raise wrong(key, value, "must be true or false", origin)
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise wrong(key, value, "must be an integer" + WHY_WHOLE.get(key.rsplit(".", 1)[-1], ""), origin)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise wrong(key, value, "must be a finite number", origin)
        return float(value)
    return value


def wrong(key: str, value: object, need: str, origin: Origin) -> InputError:
    """The error for a value that a key cannot have."""
    return InputError(f"{origin(key)}: {key or 'the file'} is {value!r}; it {need}")


def joined(*parts: str) -> str:
    """A dotted key of its parts, empty ones left out."""
    return ".".join(part for part in parts if part)


def _tuple(item: Any, value: object, key: str, origin: Origin) -> tuple[Any, ...]:
    """A list, or one value that stands for a list of one; nothing is the empty list."""
    values: Sequence[object]
    if value is None:
        values = []
    elif isinstance(value, (list, tuple)):
        values = value
    else:
        values = [value]
    return tuple(convert(item, part, f"{key}[{_label(part, place)}]", origin) for place, part in enumerate(values))


def _label(value: object, place: int) -> str:
    """What a list's item is called in a message: its name if it has one, else its place from 0."""
    return str(value.get("name", place)) if isinstance(value, Mapping) else str(place)


def _mapping(item: Any, value: object, key: str, origin: Origin) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong(key, value, "must be a mapping", origin)
    return {str(name): convert(item, part, joined(key, str(name)), origin) for name, part in value.items()}


def _text(value: object, key: str, origin: Origin) -> str:
    words = WORDS.get(key.partition("[")[0])
    if value is False and words and "off" in words:
        value = "off"  # YAML reads a bare off as false
    if value is None:
        value = ""
    if words and value not in words:
        raise wrong(key, value, f"must be one of {', '.join(words)}", origin)
    if not isinstance(value, str):
        raise wrong(key, value, "must be a text (put it in quotes)", origin)
    return value
