"""The client of a server elsewhere, against a real HTTP server that is flaky, slow, broken, or asks to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest

from actors.remote_client import Clock, RemoteClient, RemoteError, Written
from symoe_ray.core import RemoteServer
from tests.unit.scripted_server import Action, Server, answer, cut, hang, piece, refusal, reply, scripted, stream

T = TypeVar("T")
BODY = {"model": "model", "messages": []}
KEY = "sk-secret-1234"


@dataclass
class Time:
    """A clock that only waiting moves; chance always draws 0."""

    now_s: float = 1000.0
    waits: list[float] = field(default_factory=list)

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)

    def clock(self) -> Clock:
        return Clock(epoch_s=lambda: self.now_s, now_s=lambda: self.now_s, wait=self.wait, draw=lambda: 0.0)


def run(
    script: Iterable[Action], work: Callable[[RemoteClient], Awaitable[T]], *, key: str = "", **changes: Any
) -> tuple[T, Server, Time]:
    """What came of some work with a client, the server it asked, and how long it waited."""

    async def main() -> tuple[T, Server, Time]:
        time = Time()
        async with scripted(iter(script)) as server:
            settings = RemoteServer(base_url=server.url, retries=3, timeout_s=60.0)
            client = RemoteClient(replace(settings, **changes), key, time.clock())
            try:
                return await asyncio.wait_for(work(client), 20), server, time
            finally:
                await client.close()

    return asyncio.run(main())


async def complete(client: RemoteClient) -> Written:
    return await client.complete(BODY)


async def failure(client: RemoteClient) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await client.complete(BODY)
    return caught.value


class TestAnswers:
    def test_text_reason_and_usage_are_the_servers(self) -> None:
        written, server, _ = run([answer("hi", prompt=7, written=3, finish="length")], complete, key=KEY)
        assert written == Written("hi", "length", 7, 3, attempts=1)
        assert server.bodies == [BODY]
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"

    def test_without_a_key_none_is_sent(self) -> None:
        _, server, _ = run([answer()], complete)
        assert "authorization" not in server.headers[0]

    def test_what_a_server_leaves_out_is_empty(self) -> None:
        bare = reply(200, {"choices": [{"message": {"content": None}}], "usage": None})
        assert run([bare], complete)[0] == Written("", "stop", 0, 0)

    def test_a_stream_is_told_as_it_comes(self) -> None:
        told: list[str] = []
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        pieces = [b": waiting\n\n", piece(""), piece("a "), piece("b"), piece(None, "stop"), usage, b"data: [DONE]\n\n"]
        written, _, _ = run([stream(*pieces)], lambda client: client.complete(BODY, told.append))
        assert told == ["a ", "b"]
        assert written == Written("a b", "stop", 5, 2)

    def test_no_more_requests_than_allowed_are_under_way(self) -> None:
        async def eight(client: RemoteClient) -> None:
            await asyncio.gather(*(client.complete(BODY) for _ in range(8)))

        async def slow(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.02)
            await answer()(writer)

        _, server, _ = run([slow] * 8, eight, max_concurrency=3)
        assert (len(server.bodies), server.most) == (8, 3)


class TestRetries:
    @pytest.mark.parametrize(
        "bad",
        [
            refusal(429), refusal(500), refusal(503), cut, reply(200, b"<html>"), reply(200, {"choices": []}),
            reply(200, {"error": {"message": "overloaded", "code": 502}}),
        ],
    )  # fmt: skip
    def test_what_may_pass_is_asked_again(self, bad: Action) -> None:
        written, server, time = run([bad, bad, answer("at last")], complete)
        assert (written.text, written.attempts, len(server.bodies)) == ("at last", 3, 3)
        assert time.waits == [0.5, 1.0]

    @pytest.mark.parametrize(("status", "kind"), [(400, "bad_request"), (401, "unauthorized"), (404, "not_found")])
    def test_what_will_not_pass_is_asked_once(self, status: int, kind: str) -> None:
        error, server, time = run([refusal(status, "no")], failure)
        assert (error.fault.kind, error.attempts, len(server.bodies)) == (kind, 1, 1)
        assert str(error) == f"HTTP {status}: no"
        assert time.waits == []

    def test_a_silent_server_is_a_time_out(self) -> None:
        error, server, _ = run([hang] * 2, failure, timeout_s=0.1, retries=1)
        assert (error.fault.kind, error.attempts, len(server.bodies)) == ("timeout", 2, 2)
        assert str(error) == "silent for 0.1 s"

    def test_an_absent_server_is_a_connection(self) -> None:
        async def main() -> tuple[RemoteError, Time]:
            async with scripted(iter([])) as server:
                pass
            time = Time()
            client = RemoteClient(RemoteServer(base_url=server.url, retries=3), "", time.clock())
            return await failure(client), time

        error, time = asyncio.run(main())
        assert (error.fault.kind, error.attempts) == ("connection", 4)
        assert time.waits == [0.5, 1.0, 2.0]

    def test_a_server_that_asks_to_wait_is_not_asked_before_by_anybody(self) -> None:
        async def two(client: RemoteClient) -> list[float]:
            ends = []
            for work in [asyncio.create_task(client.complete(BODY)) for _ in range(2)]:
                await work
                ends.append(client.clock.now_s())
            return ends

        ends, server, _ = run([refusal(429, retry_after="40"), answer(), answer()], two, max_concurrency=1)
        assert len(server.bodies) == 3
        assert ends[0] >= 1040

    def test_a_wait_beyond_the_time_out_is_not_worth_it(self) -> None:
        error, server, _ = run([refusal(429, "tomorrow", retry_after="86400")], failure)
        assert (error.fault.kind, len(server.bodies)) == ("rate_limited", 1)

    def test_a_stream_that_has_told_something_is_not_begun_again(self) -> None:
        told: list[str] = []

        async def work(client: RemoteClient) -> RemoteError:
            with pytest.raises(RemoteError) as caught:
                await client.complete(BODY, told.append)
            return caught.value

        error, server, _ = run([stream(piece("half"), cut=True)], work)
        assert (told, error.attempts, len(server.bodies)) == (["half"], 1, 1)
        told.clear()
        _, server, _ = run(
            [stream(cut=True), stream(piece("all", "stop"))], lambda client: client.complete(BODY, told.append)
        )
        assert (told, len(server.bodies)) == (["all"], 2)

    def test_a_stream_without_an_end_is_cut_off(self) -> None:
        async def work(client: RemoteClient) -> RemoteError:
            with pytest.raises(RemoteError) as caught:
                await client.complete(BODY, lambda _: None)
            return caught.value

        error, _, _ = run([stream(piece("half"))], work)
        assert (error.fault.kind, str(error)) == ("bad_response", "the stream was cut off")


class TestKey:
    def test_a_server_that_repeats_the_key_does_not_spread_it(self) -> None:
        error, _, _ = run([refusal(401, f"{KEY} is no good")], failure, key=KEY)
        assert str(error) == "HTTP 401: *** is no good"

    def test_nothing_that_describes_a_client_holds_it(self) -> None:
        async def described(client: RemoteClient) -> str:
            return repr(client) + repr(client._http.headers)

        assert KEY not in run([], described, key=KEY)[0]


class TestModels:
    def listing(self, models: Action, **changes: Any) -> list[str] | None:
        async def main() -> list[str] | None:
            async with scripted(iter([])) as server:
                server.models = models
                client = RemoteClient(RemoteServer(base_url=server.url, retries=0, **changes))
                try:
                    return await client.models()
                finally:
                    await client.close()

        return asyncio.run(main())

    def test_the_names_that_it_lists(self) -> None:
        assert self.listing(reply(200, {"object": "list", "data": [{"id": "a"}, {"id": "b"}]})) == ["a", "b"]

    @pytest.mark.parametrize("models", [refusal(404), reply(200, b"ok"), reply(200, {"models": []})])
    def test_a_server_need_not_have_a_list(self, models: Action) -> None:
        assert self.listing(models) is None

    @pytest.mark.parametrize("models", [refusal(401), refusal(500), cut])
    def test_a_server_that_does_not_let_us_in_is_an_error(self, models: Action) -> None:
        with pytest.raises(RemoteError):
            self.listing(models)
