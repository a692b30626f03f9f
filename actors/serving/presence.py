"""Working for a caller only as long as the caller is there, and a stream that leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from actors.serving.service import Record

T = TypeVar("T")


async def while_present(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The work's result; ClientDisconnect, and the work cancelled, if the caller goes away before.

    `receive` must have given the whole body: what comes then is the caller's end.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await _ended(working, leaving)


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Wait for the end of tasks. Serve may cancel the waiter meanwhile: that is passed on, but only then."""
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Stream(StreamingResponse):
    """A stream that is cleaned up after even if it was never begun, because its reader had gone."""

    def __init__(self, content: AsyncGenerator[bytes, None], record: Record, room: AsyncExitStack, **how: Any) -> None:
        super().__init__(content, **how)
        self._content, self._record, self._room = content, record, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream to its end, or to that of its reader."""
        try:
            await while_present(self.stream_response(send), receive)
        except ClientDisconnect:
            pass
        finally:
            try:
                await self._content.aclose()
            finally:
                self._record.end()
                await self._room.aclose()
