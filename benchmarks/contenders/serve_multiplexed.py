"""Ray Serve's model multiplexing, one model per replica, over this project's engines.

https://docs.ray.io/en/latest/serve/model-multiplexing.html: one replica, `max_num_models_per_replica=1`. Serve decides
which request has which model loaded, and when; loading is what a slot does for a pool, with the same tiers. Serve
unloads a model whatever its requests are at; here it waits for them, or they would fail.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from ray import serve

from actors.slot import Slot, SlotConfig
from symoe_ray.core import ExpertSpec
from symoe_ray.serving.asking import Ask, Reply
from symoe_ray.settings import EngineSettings

MOST_REQUESTS = 10_000


@serve.deployment(num_replicas=1, max_ongoing_requests=MOST_REQUESTS, ray_actor_options={"num_cpus": 0})
class Multiplexed:
    """A replica with room for one engine."""

    async def __init__(self, config: SlotConfig) -> None:  # type: ignore[misc]
        self._slot, self._swaps, self._running, self._expert = Slot(config), 0, 0, ""
        self._drained = asyncio.Event()
        self._drained.set()
        await self._slot.start()
        problems = await self._slot.resolve([e.name for e in config.experts])
        if problems:
            raise RuntimeError(f"models are missing: {problems}")

    @serve.multiplexed(max_num_models_per_replica=1)
    async def engine_of(self, expert: str) -> str:
        """Load an expert's engine, once the one before has nothing to do."""
        await self._drained.wait()
        self._expert = ""
        await self._slot.load(expert)
        self._expert, self._swaps = expert, self._swaps + 1
        return expert

    async def ask(self, ask: Ask) -> Reply:
        """The answer to one request."""
        started, expert = time.monotonic(), serve.get_multiplexed_model_id()
        while self._expert != expert:  # another's load may have begun right after this one's
            await self.engine_of(expert)
        wait_s = time.monotonic() - started
        self._running += 1
        self._drained.clear()
        try:
            return replace(await self._slot.answer(ask), wait_s=wait_s)
        finally:
            self._running -= 1
            if not self._running:
                self._drained.set()

    async def swaps(self) -> int:
        """Engines loaded so far."""
        return self._swaps

    async def stop(self) -> None:
        """End the engine."""
        await self._slot.stop()


class Served:
    """The contender over the deployment's handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def ask(self, ask: Ask) -> Reply:
        """The answer to one request."""
        handle = self._handle.options(multiplexed_model_id=ask.request.expert)
        reply: Reply = await handle.ask.remote(ask)
        return reply

    async def swaps(self) -> int:
        """Engines loaded so far."""
        return int(await self._handle.swaps.remote())


@asynccontextmanager
async def deployed(folder: str, experts: Sequence[ExpertSpec], engine: EngineSettings) -> AsyncIterator[Served]:
    """The deployment, up."""
    config = SlotConfig(id="slot-0", index=0, slots=1, run_uri=folder, epoch=1, experts=tuple(experts), engine=engine)
    await asyncio.to_thread(lambda: serve.start(proxy_location="Disabled"))
    handle = await asyncio.to_thread(
        lambda: serve.run(Multiplexed.bind(config), name="multiplexed", route_prefix=None)  # type: ignore[attr-defined]
    )
    try:
        yield Served(handle)
    finally:
        await handle.stop.remote()
        await asyncio.to_thread(serve.shutdown)
