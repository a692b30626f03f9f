"""The slots that stand for servers elsewhere, beside those with engines."""

from __future__ import annotations

from collections.abc import Iterable

from symoe_ray.core import ExpertSpec


def remote_slots(experts: Iterable[ExpertSpec]) -> dict[str, str]:
    """Engine key -> name of its slot, of each model that a server elsewhere has."""
    keys = dict.fromkeys(e.engine_key for e in experts if e.is_remote)
    return {key: f"remote-{number}" for number, key in enumerate(keys)}
