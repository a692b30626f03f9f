"""A real HTTP server that answers as it is told, request by request: well, late, wrongly, half, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Action = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(text: str = "hello", *, prompt: int = 7, written: int = 3, finish: str = "stop", **changes: Any) -> Action:
    """A completion."""
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }  # fmt: skip
    return reply(200, body | changes)


def refusal(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Action:
    """An error in OpenAI's shape; `retry_after` is a header."""
    return reply(status, {"error": {"message": message, "type": "error", "code": code}}, **headers)


def reply(status: int, body: object, **headers: str) -> Action:
    """Any answer: JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Told", f"content-length: {len(data)}", "content-type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return _write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)


def stream(*pieces: dict[str, Any] | bytes, cut: bool = False) -> Action:
    """Server-sent events, one for each piece; `cut`: the connection ends before the last of them."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            data = piece if isinstance(piece, bytes) else b"data: " + json.dumps(piece).encode() + b"\n\n"
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
        if cut:
            writer.close()
        else:
            writer.write(b"0\r\n\r\n")

    return act


def piece(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    """A chunk of a streamed completion."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


async def hang(_: asyncio.StreamWriter) -> None:
    """Take the request and say nothing."""
    await asyncio.Event().wait()


async def cut(writer: asyncio.StreamWriter) -> None:
    """Close the connection in the middle of the answer."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()


def _write(data: bytes) -> Action:
    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return act


@dataclass
class Server:
    """What it is asked, in order; `models` is its list, `most` how many requests it had at once."""

    script: Iterator[Action]
    models: Action = field(default_factory=lambda: reply(200, {"data": [{"id": "model"}]}))
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    listed: int = 0
    now: int = 0
    most: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.headers.append(headers)
                if " /v1/models " in first:
                    self.listed += 1
                    await self.models(writer)
                else:
                    assert first.startswith("POST /v1/chat/completions "), first
                    self.bodies.append(json.loads(body))
                    await self._act(writer)
                await writer.drain()
        writer.close()

    async def _act(self, writer: asyncio.StreamWriter) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await next(self.script)(writer)
        finally:
            self.now -= 1


@asynccontextmanager
async def scripted(script: Iterator[Action]) -> AsyncIterator[Server]:
    """The server on a free port of this machine."""
    server = Server(script)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listening.close()
