"""The port `Engines` over a pool actor: a place is reserved, the slot's stream is read, the place always released."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, TaskCancelledError

from actors.online_pool import OnlinePool
from actors.online_state import Refusal, Ticket
from actors.slot import RestartedError
from symoe_ray.core import Completion, Failure, Request
from symoe_ray.serving.asking import Ask, Grown, RefusedError, Reply

ATTEMPTS = 3
AHEAD = 4  # pieces that a slot may be ahead of its reader; what grows beyond is merged
LOST = frozenset({"engine_died", "load_failed"})


class PoolEngines:
    """Asks the experts of one pool. `on_wait` is told how long each expert was waited for.

    Where a caller goes away Serve cancels its request with all remote calls that the request has made: the slot is
    among them and gives its work up; the pool, whose work is for all, is not called but lives here.
    """

    def __init__(self, pool: OnlinePool, on_wait: Callable[[str, float], None]) -> None:
        self._pool, self._on_wait = pool, on_wait

    async def admit(self, expert: str) -> None:
        """RefusedError where the pool has too much to do."""
        refusal = self._pool.admit(expert)
        if refusal is not None:
            raise RefusedError(refusal.kind, refusal.message, refusal.retry_after_s)

    async def ask(self, ask: Ask) -> AsyncGenerator[Grown | Reply, None]:
        """What an expert writes. A slot actor's death before the first piece is tried again, elsewhere if need be."""
        begun = False
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with aclosing(self._once(ask)) as stream:
                    async for came in stream:
                        yield came
                        begun = True
                return
            except (RayActorError, RestartedError) as error:
                if begun or attempt == ATTEMPTS:
                    yield _failed(ask.request, f"slot actor: {error}".splitlines()[0])
                    return

    async def _once(self, ask: Ask) -> AsyncGenerator[Grown | Reply, None]:
        request, started = ask.request, time.monotonic()
        ticket = Ticket(
            id=uuid.uuid4().hex, expert=request.expert, rows=request.n, tokens=request.sampling.max_tokens * request.n
        )
        grant = await self._pool.reserve(ticket)
        if isinstance(grant, Refusal):
            raise RefusedError(grant.kind, grant.message, grant.retry_after_s)
        wait_s = time.monotonic() - started
        tokens, prompt_tokens, lost = 0, 0, False
        try:
            self._on_wait(request.expert, wait_s)
            async with aclosing(_written(grant.actor, ask)) as stream:
                async for came in stream:
                    if isinstance(came, Reply):
                        tokens, prompt_tokens = came.completion_tokens, came.prompt_tokens
                        lost = any(c.failure is not None and c.failure.kind in LOST for c in came.completions)
                        yield replace(came, wait_s=wait_s)
                    else:
                        yield came
        except (RayActorError, RestartedError):
            lost = True
            raise
        finally:
            self._pool.release(ticket.id, tokens, prompt_tokens, lost=lost)


async def _written(slot: Any, ask: Ask) -> AsyncGenerator[Grown | Reply, None]:
    """What a slot actor answers. Leaving it early, or its task's end, has the slot give the request up."""
    if not ask.stream:
        yield await _answer(slot, ask)
        return
    method = slot.ask.options(num_returns="streaming", _generator_backpressure_num_objects=AHEAD)
    stream, ended = method.remote(ask), False
    try:
        async for reference in stream:
            yield await reference
        ended = True
    except TaskCancelledError as error:
        raise asyncio.CancelledError from error
    finally:
        if not ended:
            ray.cancel(stream)


async def _answer(slot: Any, ask: Ask) -> Reply:
    call = slot.answer.remote(ask)
    try:
        reply: Reply = await call
    except TaskCancelledError as error:
        raise asyncio.CancelledError from error
    except asyncio.CancelledError:
        ray.cancel(call)
        raise
    return reply


def _failed(request: Request, message: str) -> Reply:
    failure = Failure(boundary="slot", kind="engine_died", message=message, retryable=True)
    made = tuple(Completion(request_id=request.id, index=i, failure=failure) for i in range(request.n))
    return Reply(completions=made, seconds=0.0)
