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

from actors.online_state import Refusal, Ticket
from symoe_ray.core import Completion, Failure, Request
from symoe_ray.serving.asking import Ask, Grown, RefusedError, Reply

ATTEMPTS = 3
AHEAD = 4  # pieces that a slot may be ahead of its reader; what grows beyond is merged
LOST = frozenset({"engine_died", "load_failed"})


class PoolEngines:
    """Asks the experts of one pool. `on_wait` is told how long each expert was waited for.

    Where a caller goes away Serve cancels its request with all that the request has called, and a call that gives a
    place back must not be among them: such calls are made by a task of their own. Construct it in a running event loop.
    """

    def __init__(self, pool: Any, on_wait: Callable[[str, float], None]) -> None:
        self._pool, self._on_wait = pool, on_wait
        self._given_back: asyncio.Queue[tuple[str, int, bool]] = asyncio.Queue()
        self._giving_back = asyncio.create_task(self._give_back())

    async def _give_back(self) -> None:
        while True:
            ticket, tokens, lost = await self._given_back.get()
            self._pool.release.remote(ticket, tokens, lost=lost)

    async def admit(self, expert: str) -> None:
        """RefusedError where the pool has too much to do."""
        try:
            refusal = await self._pool.admit.remote(expert)
        except RayActorError as error:
            raise RefusedError("no_slot", f"the pool has died: {error}".splitlines()[0]) from error
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
            except RayActorError as error:
                if begun or attempt == ATTEMPTS:
                    yield _failed(ask.request, f"slot actor: {error}".splitlines()[0])
                    return

    async def _once(self, ask: Ask) -> AsyncGenerator[Grown | Reply, None]:
        request, started = ask.request, time.monotonic()
        ticket = Ticket(
            id=uuid.uuid4().hex, expert=request.expert, rows=request.n, tokens=request.sampling.max_tokens * request.n
        )
        stream, reply, lost, refused = None, None, False, False
        try:
            grant = await self._pool.reserve.remote(ticket)
            if refused := isinstance(grant, Refusal):
                raise RefusedError(grant.kind, grant.message, grant.retry_after_s)
            wait_s = time.monotonic() - started
            self._on_wait(request.expert, wait_s)
            method = grant.actor.ask.options(num_returns="streaming", _generator_backpressure_num_objects=AHEAD)
            stream = method.remote(ask)
            async for reference in stream:
                came = await reference
                if isinstance(came, Reply):
                    reply = replace(came, wait_s=wait_s)
                    lost = any(c.failure is not None and c.failure.kind in LOST for c in reply.completions)
                    yield reply
                else:
                    yield came
        except TaskCancelledError as error:
            raise asyncio.CancelledError from error
        except RayActorError:
            lost = True
            raise
        finally:
            if stream is not None and reply is None:
                ray.cancel(stream)
            if not refused:
                self._given_back.put_nowait((ticket.id, reply.completion_tokens if reply else 0, lost))


def _failed(request: Request, message: str) -> Reply:
    failure = Failure(boundary="slot", kind="engine_died", message=message, retryable=True)
    made = tuple(Completion(request_id=request.id, index=i, failure=failure) for i in range(request.n))
    return Reply(completions=made, seconds=0.0)
