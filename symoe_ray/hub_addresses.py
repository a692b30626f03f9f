"""Addresses of question sets on the Hugging Face hub, or in a folder laid out as one: which rows of which split.

`hf://datasets/OWNER/NAME[@REVISION]?split=S&...` or `hf:///FOLDER?split=S&...`, with these words after the question
mark: `split` (needed), `config`; `group=COLUMN` with `skip=N` and `take=N`: of each value of the column that many rows;
`skip` and `take` alone: of all rows; `seed=N`: which rows these are; `without=COLUMN:VALUE`: less the rows with that
value; `except=CONFIG:COLUMN`: less the rows whose value in that column occurs in another configuration;
`rename=COLUMN:NAME`: for two datasets that call the same thing differently.
"""

from __future__ import annotations

import urllib.parse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from symoe_ray.core import InputError
from symoe_ray.fingerprints import digest

SCHEME = "hf://"
_HUB = "datasets/"
_WORDS = ("split", "config", "group", "skip", "take", "seed", "without", "except", "rename")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """A parsed address. `dataset` is OWNER/NAME or the path of a folder; `take` 0 means all that are left."""

    address: str
    dataset: str
    is_folder: bool
    split: str
    revision: str = ""
    config: str = ""
    group: str = ""
    skip: int = 0
    take: int = 0
    seed: int = 0
    without: tuple[str, str] | None = None
    other: tuple[str, str] | None = None
    rename: tuple[str, str] | None = None

    @classmethod
    def parse(cls, address: str) -> HubAddress:
        """InputError, naming the address and what is wrong with it."""
        place, _, query = address.removeprefix(SCHEME).partition("?")
        words = _words(address, query)
        is_folder = place.startswith("/")
        path, _, revision = place.rpartition("@") if "@" in place else (place, "", "")
        if is_folder and revision:
            raise InputError(f"{address}: a folder has no revisions; set task.revision= (empty) beside task.dataset")
        if not is_folder and (not path.startswith(_HUB) or path.count("/") != 2):
            raise InputError(f"{address}: must be hf://datasets/OWNER/NAME?split=... or hf:///FOLDER?split=...")
        if "split" not in words:
            raise InputError(f"{address}: names no split; add ?split=test or the like")
        return cls(
            address=address, dataset=path if is_folder else path.removeprefix(_HUB), is_folder=is_folder,
            revision=revision, split=words["split"], config=words.get("config", ""), group=words.get("group", ""),
            skip=_number(address, words, "skip"), take=_number(address, words, "take"),
            seed=_number(address, words, "seed"), without=_pair(address, words, "without"),
            other=_pair(address, words, "except"), rename=_pair(address, words, "rename"),
        )  # fmt: skip

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that decide which rows are taken."""
        named = (self.group, self.without[0] if self.without else "", self.other[1] if self.other else "")
        return tuple(dict.fromkeys(name for name in named if name))

    def chosen(self, count: int, columns: Mapping[str, Sequence[object]], elsewhere: Sequence[object]) -> list[int]:
        """The numbers of the rows that are taken, ascending, of `count` rows with these `columns`.

        `elsewhere` are the values of the `except` column in the other configuration. A group's rows are ranked by a
        digest of seed and row number, so that `skip=25` begins where `take=25` has ended.
        """
        known = set(elsewhere)
        rows = [row for row in range(count) if self._passes(row, columns, known)]
        if not self.take and not self.skip:
            return rows
        groups: dict[object, list[int]] = defaultdict(list)
        for row in rows:
            groups[columns[self.group][row] if self.group else None].append(row)
        return sorted(row for name, members in groups.items() for row in self._sample(name, members))

    def _passes(self, row: int, columns: Mapping[str, Sequence[object]], elsewhere: set[object]) -> bool:
        return (self.without is None or str(columns[self.without[0]][row]) != self.without[1]) and (
            self.other is None or columns[self.other[1]][row] not in elsewhere
        )

    def _sample(self, group: object, rows: list[int]) -> list[int]:
        ranked = sorted(rows, key=lambda row: digest(self.seed, row))
        taken = ranked[self.skip :][: self.take or None]
        if len(taken) < self.take:
            where = f" with {self.group} {group!r}" if self.group else ""
            raise InputError(
                f"{self.address}: {len(rows)} rows{where} are too few for skip={self.skip} and take={self.take}"
            )
        return taken


def _words(address: str, query: str) -> dict[str, str]:
    try:
        pairs = urllib.parse.parse_qsl(query, strict_parsing=bool(query), keep_blank_values=True)
    except ValueError:
        raise InputError(f"{address}: what follows the ? must be word=value&word=value") from None
    for name, value in pairs:
        if name not in _WORDS:
            raise InputError(f"{address}: unknown word {name!r}; allowed: {', '.join(_WORDS)}")
        if not value:
            raise InputError(f"{address}: {name} has no value")
    return dict(pairs)


def _number(address: str, words: Mapping[str, str], name: str) -> int:
    text = words.get(name, "0")
    if not text.isascii() or not text.isdigit():
        raise InputError(f"{address}: {name}={text}: must be a number, 0 or more")
    return int(text)


def _pair(address: str, words: Mapping[str, str], name: str) -> tuple[str, str] | None:
    if name not in words:
        return None
    first, colon, second = words[name].partition(":")
    if not colon or not first or not second:
        raise InputError(f"{address}: {name}={words[name]}: must be two names with a colon between them")
    return first, second
