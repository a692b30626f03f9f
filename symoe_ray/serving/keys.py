"""Who may ask, and how much: API keys by name, compared in constant time, and limits for each of them.

Only hashes are kept. SHA-256 without salt is enough for keys that are long and random, and only for those.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from symoe_ray.core import InputError

HASHED = "sha256:"
SHORTEST = 16
_LIMITS = ("requests_per_minute", "concurrency")
_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*:\s*(?P<key>\S+)(?P<limits>(?:\s+[a-z_]+=\d+)*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A named key: its hash, and how much it may ask (0: no limit)."""

    name: str
    sha256: bytes
    requests_per_minute: int = 0
    concurrency: int = 0


def hash_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def parse_keys(lines: Iterable[str], place: str, *, requests_per_minute: int = 0, concurrency: int = 0) -> list[Key]:
    """The keys of `name: key` lines, plain or hashed; empty lines and those that begin with # say nothing.

    A line's own `requests_per_minute=N concurrency=N` come before the general ones. InputError names place and line,
    never the key.
    """
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(f"{place}, line {number}: must be `name: key`, with limits like requests_per_minute=60")
        if match["name"] in keys:
            raise InputError(f"{place}, line {number}: the name {match['name']!r} is there twice")
        limits = {"requests_per_minute": requests_per_minute, "concurrency": concurrency}
        for name, _, value in (word.partition("=") for word in match["limits"].split()):
            if name not in _LIMITS:
                raise InputError(f"{place}, line {number}: {name} is no limit; there are {', '.join(_LIMITS)}")
            limits[name] = int(value)
        sha256 = _sha256(match["key"], f"{place}, line {number}")
        keys[match["name"]] = Key(name=match["name"], sha256=sha256, **limits)
    return list(keys.values())


def _sha256(key: str, place: str) -> bytes:
    if key.startswith(HASHED):
        try:
            digest = bytes.fromhex(key.removeprefix(HASHED))
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise InputError(f"{place}: {HASHED} must be followed by 64 hexadecimal digits")
        return digest
    if len(key) < SHORTEST:
        raise InputError(f"{place}: a key must have {SHORTEST} characters or more")
    return hash_of(key)


def find_key(keys: Iterable[Key], given: str) -> Key | None:
    """The key that was given, if it is one of them. The time taken depends neither on which nor on how near it is."""
    offered, found = hash_of(given), None
    for key in keys:
        if hmac.compare_digest(key.sha256, offered):
            found = key
    return found


class LimitError(Exception):
    """A key has asked too much for now; it may try again in `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Use:
    tokens: float
    at: float
    open: int = 0


@dataclass(slots=True)
class Limits:
    """What the keys use. A bucket of `requests_per_minute` requests fills evenly over a minute. `now` is in seconds."""

    now: Callable[[], float] = time.monotonic
    _uses: dict[str, _Use] = field(default_factory=dict)

    @contextmanager
    def one(self, key: Key) -> Iterator[None]:
        """Room for one request while inside; LimitError where there is none."""
        use = self._refilled(key)
        if key.concurrency and use.open >= key.concurrency:
            raise LimitError(f"{key.concurrency} requests of this key are under way", 1.0)
        if key.requests_per_minute:
            if use.tokens < 1:
                wait_s = (1 - use.tokens) * 60 / key.requests_per_minute
                raise LimitError(f"this key may ask {key.requests_per_minute} times a minute", wait_s)
            use.tokens -= 1
        use.open += 1
        try:
            yield
        finally:
            use.open -= 1

    def _refilled(self, key: Key) -> _Use:
        now = self.now()
        use = self._uses.setdefault(key.name, _Use(tokens=key.requests_per_minute, at=now))
        grown = use.tokens + (now - use.at) * key.requests_per_minute / 60
        use.tokens, use.at = min(float(key.requests_per_minute), grown), now
        return use
