"""Stable digests: the same values give the same text in every process, on every machine and Python version."""

from __future__ import annotations

import hashlib
import json


def digest(*values: object, size: int = 12) -> str:
    """Hex digest (2 * `size` characters) of JSON-able values; mappings are compared without regard to key order."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=list)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def uniform(*values: object) -> float:
    """A number in [0, 1) determined by the values alone (53 bits of their blake2b digest)."""
    return (int(digest(*values, size=8), 16) >> 11) / (1 << 53)


def seed_of(*values: object) -> int:
    """A generation seed in [0, 2**31), determined by the values alone."""
    return int(digest(*values, size=4), 16) >> 1
