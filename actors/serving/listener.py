"""An HTTP server in the replica's own process, so that a request passes no other process on its way to the method."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.serving.bodies import Error
from symoe_ray.core import ResourceError

KEEP_ALIVE_S = 90  # longer than clients keep an unused connection: httpx 5, aiohttp 15, Go 90
GRACE_S = 2  # for answers that are being sent when it is closed
SEND_S = 30.0  # for a caller to read a piece of its answer, beyond what the kernel keeps
BACKLOG = 1024


class Listener:
    """Serves an application on one address until it is closed."""

    def __init__(self, app: ASGIApp, at: socket.socket, *, most_requests: int) -> None:
        """Serve at a socket that listens. Requests beyond `most_requests` at once get 429.

        h11, the slower of uvicorn's parsers, is the one that limits what headers may take.
        """
        self._server = _Server(
            uvicorn.Config(
                _Bounded(app, most_requests), http="h11", ws="none", lifespan="off", access_log=False, log_config=None,
                server_header=False, backlog=BACKLOG, timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )  # fmt: skip
        self._serving = asyncio.create_task(self._server.serve(sockets=[at]))

    @property
    def has_ended(self) -> bool:
        """Whether nobody listens any more."""
        return self._serving.done()

    async def close(self) -> None:
        """Take no more connections; answers that are being sent have `GRACE_S` seconds to get out."""
        self._server.should_exit = True
        await self._serving


class _Server(uvicorn.Server):
    """Without handlers of signals: those are Ray's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Bounded:
    """An application that answers so many requests at once, to callers that read what they are sent."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most, self._now = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._now >= self._most:
            error = Error(status=429, message=f"{self._now} requests are under way", code="overloaded")
            await JSONResponse(error.body, status_code=429, headers={"retry-after": "1"})(scope, receive, send)
            return

        async def patiently(message: Message) -> None:
            try:
                async with asyncio.timeout(SEND_S):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        self._now += 1
        try:
            await self._app(scope, receive, patiently)
        finally:
            self._now -= 1


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at an address, maybe just after another's did; ResourceError where it is taken."""
    listening: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        if listening is not None:
            listening.close()
        reason = getattr(error, "strerror", None) or error
        raise ResourceError(f"serve.host={host} serve.port={port}: {reason}") from None
    return listening
