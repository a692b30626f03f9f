"""A client of one server with OpenAI's API: one sample a request, so many at once, and again where that may help."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx
import msgspec

from symoe_ray.core import RemoteServer
from symoe_ray.remote_faults import Fault, error_text, fault_of, wait_s

CONNECT_TIMEOUT_S = 10.0
LIST_TIMEOUT_S = 30.0
_T = TypeVar("_T")
OnText = Callable[[str], None]
Body = Mapping[str, object]


class RemoteError(Exception):
    """A request has no answer, after so many attempts."""

    def __init__(self, fault: Fault, attempts: int) -> None:
        super().__init__(fault.message)
        self.fault, self.attempts = fault, attempts


class _FaultError(Exception):
    """One attempt has failed."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time and chance, so that a test needs neither: epoch and monotonic seconds, a wait, a number in [0, 1)."""

    epoch_s: Callable[[], float] = time.time
    now_s: Callable[[], float] = time.monotonic
    wait: Callable[[float], Awaitable[object]] = asyncio.sleep
    draw: Callable[[], float] = random.random


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text | None = None
    delta: _Text | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    """A completion, or a piece of one that is streamed, or an error in place of a piece."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


@dataclass(slots=True)
class Written:
    """One sample as the server wrote it. A server that tells no usage counts no tokens."""

    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1

    def count(self, usage: _Usage | None) -> None:
        """Note what the server says that it has read and written."""
        if usage is not None:
            self.prompt_tokens, self.completion_tokens = usage.prompt_tokens or 0, usage.completion_tokens or 0


@dataclass(slots=True)
class _Told:
    """Passes text on, and knows whether there was any: then it is too late for another attempt."""

    on_text: OnText
    begun: bool = False

    def __call__(self, text: str) -> None:
        self.begun = True
        self.on_text(text)


@dataclass(slots=True)
class RemoteClient:
    """Asks one server. `key` is sent as a bearer token ("": none is) and cut out of whatever the server says.

    While the server has asked to be left alone, nothing is sent. `under_way` counts what is being written.
    """

    server: RemoteServer
    key: str = field(default="", repr=False)
    clock: Clock = field(default_factory=Clock)
    under_way: int = 0
    _http: httpx.AsyncClient = field(init=False, repr=False)
    _room: asyncio.Semaphore = field(init=False, repr=False)
    _closed_until: float = 0.0

    def __post_init__(self) -> None:
        timeout_s, most = self.server.timeout_s, self.server.max_concurrency
        self._http = httpx.AsyncClient(
            base_url=self.server.base_url, headers={"authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S), pool=None),
            limits=httpx.Limits(max_connections=most + 1),
        )  # fmt: skip
        self._room = asyncio.Semaphore(most)

    async def complete(self, body: Body, on_text: OnText | None = None) -> Written:
        """The sample that a body asks for; `on_text` is told a streamed one as it comes. RemoteError without one."""
        told = _Told(on_text) if on_text is not None else None
        written, attempts = await self._persist(lambda: self._write(body, told), told)
        return replace(written, attempts=attempts)

    async def models(self) -> list[str] | None:
        """The names of the server's models; None where it answers, but lists none. RemoteError where it does not."""
        return (await self._persist(self._list))[0]

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()

    async def _persist(self, work: Callable[[], Awaitable[_T]], told: _Told | None = None) -> tuple[_T, int]:
        """Attempt it again and again, as the faults allow; what came of it, and at which attempt."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await work(), attempt
            except _FaultError as error:
                fault = self._without_key(error.fault)
            pause_s = self._pause_s(fault, attempt)
            if pause_s is None or (told is not None and told.begun):
                raise RemoteError(fault, attempt)
            await self.clock.wait(pause_s)

    def _pause_s(self, fault: Fault, attempt: int) -> float | None:
        server = self.server
        pause_s = wait_s(fault, attempt, retries=server.retries, most_s=server.timeout_s, draw=self.clock.draw())
        if pause_s is not None and fault.retry_after_s:
            self._closed_until = max(self._closed_until, self.clock.now_s() + fault.retry_after_s)
        return pause_s

    async def _write(self, body: Body, told: _Told | None) -> Written:
        async with self._room:
            while (left_s := self._closed_until - self.clock.now_s()) > 0:
                await self.clock.wait(left_s * (1 + self.clock.draw() / 4))  # not all at the same moment
            self.under_way += 1
            try:
                async with self._http.stream("POST", "chat/completions", json=body) as response:
                    if response.status_code != 200:
                        raise await self._refusal(response)
                    return await _streamed(response, told) if told is not None else _whole(await response.aread())
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _FaultError(self._fault(error)) from None
            finally:
                self.under_way -= 1

    async def _list(self) -> list[str] | None:
        try:
            response = await self._http.get("models", timeout=min(self.server.timeout_s, LIST_TIMEOUT_S))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _FaultError(self._fault(error)) from None
        if response.status_code != 200:
            refusal = await self._refusal(response)
            if refusal.fault.retryable or refusal.fault.kind == "unauthorized":
                raise refusal
        try:
            return [str(row["id"]) for row in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return None

    async def _refusal(self, response: httpx.Response) -> _FaultError:
        body = await response.aread()
        return _FaultError(fault_of(response.status_code, body, response.headers, self.clock.epoch_s()))

    def _fault(self, error: Exception) -> Fault:
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return Fault(kind="timeout", message=f"silent for {self.server.timeout_s:g} s", retryable=True)
        message = f"{type(error).__name__}: {error}".rstrip(": ")
        return Fault(kind="connection", message=message, retryable=isinstance(error, httpx.TransportError))

    def _without_key(self, fault: Fault) -> Fault:
        return replace(fault, message=fault.message.replace(self.key, "***")) if self.key else fault


async def _streamed(response: httpx.Response, told: _Told) -> Written:
    written = Written()
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        piece = _decoded(data)
        written.count(piece.usage)
        for choice in (piece.choices or [])[:1]:
            written.finish_reason = choice.finish_reason or written.finish_reason
            if choice.delta is not None and choice.delta.content:
                written.text += choice.delta.content
                told(choice.delta.content)
    if not written.finish_reason:
        raise _bad("the stream was cut off")
    return written


def _whole(data: bytes) -> Written:
    answer = _decoded(data)
    if not answer.choices or answer.choices[0].message is None:
        raise _bad("an answer without choices")
    choice = answer.choices[0]
    written = Written(text=answer.choices[0].message.content or "", finish_reason=choice.finish_reason or "stop")
    written.count(answer.usage)
    return written


def _decoded(data: bytes | str) -> _Answer:
    try:
        answer = msgspec.json.decode(data, type=_Answer)
    except msgspec.MsgspecError as error:
        raise _bad(f"not an answer of OpenAI's API: {error}") from None
    if answer.error:
        _, message = error_text(msgspec.json.encode({"error": answer.error}))
        raise _FaultError(Fault(kind="server_error", message=message, retryable=True))
    return answer


def _bad(message: str) -> _FaultError:
    return _FaultError(Fault(kind="bad_response", message=message, retryable=True))
