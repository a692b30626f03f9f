"""Who answers single requests to more experts than fit, over the same slot with the same engines and swap tiers.

- `symoe`: `actors.online_pool`.
- `first_come`: the same pool, which works on requests strictly in their order and changes engines whenever the next one
  needs another, as llama-swap does.
- `ray_serve`: Ray Serve's own multiplexing, one model per replica: `benchmarks.contenders.serve_multiplexed`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

from actors.online_pool import OnlinePool
from actors.serving.pool_engines import PoolEngines
from actors.slot_pool import PoolConfig
from symoe_ray.config import load
from symoe_ray.core import ExpertSpec
from symoe_ray.schedule_views import GroupView, Lease, Online, Prepare
from symoe_ray.serving.asking import Ask, Reply
from symoe_ray.settings import EngineSettings
from symoe_ray.slot_places import anywhere
from symoe_ray.storage import Storage

MOST_WAITING = 5000


class Contender(Protocol):
    """Answers requests."""

    async def ask(self, ask: Ask) -> Reply:
        """The answer to one request; RefusedError where it is not let in."""

    async def swaps(self) -> int:
        """Engines loaded so far."""


class FirstComePool(OnlinePool):
    """Works on requests in their order: the oldest of all decides which engine there is."""

    def _decide(self, slot: Any, views: Mapping[str, GroupView], peers: Mapping[str, int]) -> Lease | Prepare | None:
        waiting = [q for q in self._queues.values() if q.waiting]
        if not waiting:
            return None
        first = min(waiting, key=lambda q: q.waiting[0].since)
        view = self._view(slot, self._queues)
        room = first.key == slot.key and view.rows < view.capacity
        return Lease(view.id, first.key, 1) if room or not view.rows else None


class Pooled:
    """A contender over a pool. `admit`: requests that would wait too long are refused."""

    def __init__(self, pool: OnlinePool, *, admit: bool) -> None:
        self._pool, self._admit = pool, admit
        self._engines = PoolEngines(pool, lambda expert, seconds: None)

    async def ask(self, ask: Ask) -> Reply:
        """The answer to one request."""
        if self._admit:
            await self._engines.admit(ask.request.expert)
        async for came in self._engines.ask(ask):
            if isinstance(came, Reply):
                return came
        raise AssertionError("a request ended without a reply")

    async def swaps(self) -> int:
        """Engines loaded so far."""
        return sum((await self._pool.status()).swaps.values())


def one_slot() -> EngineSettings:
    """Engines on one slot."""
    return replace(load(["task=demo", "pool=tiny"]).engine, slots=1)


@asynccontextmanager
async def opened(name: str, experts: Sequence[ExpertSpec], max_wait_s: float) -> AsyncIterator[Contender]:
    """A contender that is up."""
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        Storage(folder).write_json("manifest.json", {})
        if name == "ray_serve":
            from benchmarks.contenders.serve_multiplexed import deployed

            async with deployed(folder, experts, one_slot()) as served:
                yield served
            return
        config = PoolConfig(
            run_uri=folder, epoch=1, started=time.time(), experts=tuple(experts), engine=one_slot(), places=anywhere(1)
        )
        kind = {"symoe": OnlinePool, "first_come": FirstComePool}[name]
        pool = kind(config, Online(max_wait_s=max_wait_s), MOST_WAITING)
        try:
            problems = await pool.open()
            if problems:
                raise RuntimeError(f"models are missing: {problems}")
            yield Pooled(pool, admit=name == "symoe")
        finally:
            await pool.stop()
