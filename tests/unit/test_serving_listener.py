"""The endpoint's own HTTP server, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from actors.serving import listener as module
from actors.serving.listener import Listener, bound
from symoe_ray.core import ResourceError


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class App:
    """Answers when it is let go; `inside` counts who waits."""

    def __init__(self) -> None:
        self.go, self.come, self.inside = asyncio.Event(), asyncio.Event(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        self.come.set()
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def listening(use: Callable[[App, Listener, httpx.AsyncClient], Awaitable[None]], *, most: int = 8) -> None:
    """Something done with a listener, its application and a client."""

    async def run() -> None:
        app, port = App(), free_port()
        listener = Listener(app, bound("127.0.0.1", port), most_requests=most)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            try:
                await use(app, listener, http)
            finally:
                app.go.set()
                await listener.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_more_requests_than_it_takes_are_refused_and_those_inside_are_answered() -> None:
    async def use(app: App, _: Listener, http: httpx.AsyncClient) -> None:
        first = asyncio.create_task(http.get("/"))
        await app.come.wait()
        refused = await http.get("/")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        app.go.set()
        assert (await first).text == "done"
        assert (await http.get("/")).status_code == 200, "there is room again"

    listening(use, most=1)


def test_closing_lets_answers_out_and_takes_nothing_more() -> None:
    async def use(app: App, listener: Listener, http: httpx.AsyncClient) -> None:
        under_way = asyncio.create_task(http.get("/"))
        await app.come.wait()
        closing = asyncio.create_task(listener.close())
        app.go.set()
        assert (await under_way).text == "done"
        assert not listener.has_ended
        await closing
        assert listener.has_ended
        with pytest.raises(httpx.ConnectError):
            await http.get("/")

    listening(use)


def test_a_caller_that_does_not_read_its_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_S", 0.2)
    given_up = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        finally:
            given_up.set()

    async def run() -> None:
        port = free_port()
        listener = Listener(endless, bound("127.0.0.1", port), most_requests=1)
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        await given_up.wait()
        writer.close()
        await listener.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_headers_without_end_are_refused() -> None:
    async def use(app: App, _: Listener, http: httpx.AsyncClient) -> None:
        app.go.set()
        with suppress(httpx.TransportError):  # it may hang up before all is sent
            assert (await http.get("/", headers={"x-filler": "x" * 4_000_000})).status_code == 400
        assert app.inside == 0

    listening(use)


def test_an_address_that_is_taken_is_named() -> None:
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"serve.host=127.0.0.1 serve.port={port}: .*in use"):
            bound("127.0.0.1", port)


@pytest.mark.parametrize("host", ["a..b", "192.0.2.1"])
def test_so_is_one_that_is_not_here(host: str) -> None:
    with pytest.raises(ResourceError, match=rf"serve.host={host} serve.port=80"):
        bound(host, 8000)
