"""`key=value` from the command line: which setting each one means, and its value read as that setting's type."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from symoe_ray.config_files import GROUPS, first_line
from symoe_ray.core import ExpertSpec, InputError
from symoe_ray.settings import PoolSettings, Settings
from symoe_ray.typed import hints, unknown_key

COMMAND_LINE = "the command line"


@dataclass(frozen=True, slots=True)
class Override:
    """One `key=value`. `value` is plain data of the key's type, or a group's NAME or FILE.yaml."""

    key: str
    value: Any


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """The overrides in order; `++key=value` means `key=value`. InputError for an unknown key or an unreadable value."""
    return [_parse(text) for text in texts]


def put(values: dict[str, Any], override: Override) -> None:
    """Set a dotted key within nested mappings, in place."""
    *path, last = override.key.split(".")
    for part in path:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = override.value


def _parse(text: str) -> Override:
    key, equals, value = text.removeprefix("++").partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"{COMMAND_LINE}: {text!r} is not of the form key=value")
    if key in GROUPS:
        return Override(key, _unquoted(value))
    return Override(key, _read(_hint_of(key), key, value))


def _hint_of(key: str) -> Any:
    """The type of a dotted key; InputError with the nearest key where there is none."""
    hint: Any = Settings
    for part in key.split("."):
        hint = _optional(hint)
        if typing.get_origin(hint) in (dict, Mapping):
            hint = typing.get_args(hint)[1]
            continue
        fields = _fields(hint) if dataclasses.is_dataclass(hint) else {}
        if hint is PoolSettings and part == "experts":
            raise InputError(f"{COMMAND_LINE}: {key}: experts are written in a pool file; give pool=FILE.yaml")
        if part not in fields:
            raise unknown_key(key, known_keys(), COMMAND_LINE)
        hint = fields[part]
    hint = _optional(hint)
    if dataclasses.is_dataclass(hint):
        raise InputError(
            f"{COMMAND_LINE}: {key} is a group of keys: {', '.join(f'{key}.{name}' for name in _fields(hint))}"
        )
    return hint


def known_keys(hint: Any = Settings, prefix: str = "") -> Iterator[str]:
    """Every dotted key that the command line can set."""
    for name, inner in _fields(hint).items():
        if prefix == "" and name in GROUPS:
            yield name
        if dataclasses.is_dataclass(group := _optional(inner)):
            yield from known_keys(group, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _fields(hint: Any) -> dict[str, Any]:
    """A group's keys on the command line: a pool's experts are set in its file, their common `defaults` here too."""
    fields = hints(hint)
    if hint is PoolSettings:
        del fields["experts"]
        fields["defaults"] = ExpertSpec
    if hint is ExpertSpec:
        del fields["name"]
    return fields


def _optional(hint: Any) -> Any:
    """X of `X | None`."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if type(None) in typing.get_args(hint) else hint


def _read(hint: Any, key: str, text: str) -> Any:
    """Texts are taken as they stand (a bare off stays off); all else is YAML; a,b,c is a list too."""
    if hint is str:
        return _unquoted(text)
    if typing.get_origin(hint) in (tuple, list):
        if text.strip().startswith("["):
            return _yaml(key, text)
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return [_read(typing.get_args(hint)[0], key, part) for part in parts]
    return _yaml(key, text)


def _yaml(key: str, text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # type: ignore[index,call-overload]
    except YAMLError as error:
        raise InputError(f"{COMMAND_LINE}: {key}={text}: not readable as YAML: {first_line(error)}") from None


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text
