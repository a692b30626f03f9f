"""The endpoint over engines that are made up: OpenAI's shapes, errors, and what leaving does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any

import httpx
import pytest

from actors.online_state import OnlineStatus
from actors.serving import app as app_module
from actors.serving.app import make_app
from actors.serving.service import Service
from symoe_ray.core import Failure, Request, Sampling
from symoe_ray.serving.asking import RefusedError
from symoe_ray.serving.keys import Key
from symoe_ray.serving.testing import FakeEngines
from symoe_ray.settings import ServeSettings
from tests.unit.test_live_question import DIED, NAMES, method

SECRET = "sk-0123456789abcdef"
QUESTION = {"model": "symoe", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
CHAT = "/v1/chat/completions"
TOO_LONG = Failure(boundary="engine", kind="prompt_too_long", message="9 > 8")


def service(engines: FakeEngines | None = None, *, keys: tuple[Key, ...] = (), **limits: Any) -> Service:
    """An endpoint that is ready."""

    async def status() -> OnlineStatus:
        return OnlineStatus(queues=(), swaps={}, crashes=0, engine_samples=0)

    made = method(serve=ServeSettings(**limits))
    return Service(method=made, engines=engines or FakeEngines(), keys=keys, status=status)


def talk(of: Service, use: Callable[[httpx.AsyncClient], Awaitable[Any]], *, client: str = "127.0.0.1") -> Any:
    """What a client makes of it."""

    async def run() -> Any:
        transport = httpx.ASGITransport(make_app(of), client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await asyncio.wait_for(use(http), 20)

    return asyncio.run(run())


def post(of: Service, body: Any = QUESTION, **how: Any) -> httpx.Response:
    """The answer to a question."""
    content = (
        {"json": body} if isinstance(body, dict) else {"content": body, "headers": {"content-type": "application/json"}}
    )
    answer: httpx.Response = talk(of, lambda http: http.post(CHAT, **{**content, **how}))
    return answer


def chunks(answer: httpx.Response) -> list[Any]:
    """The data of a stream."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


class TestAnswers:
    def test_an_answer_in_one_piece(self) -> None:
        answer = post(service())
        body = answer.json()
        assert (answer.status_code, body["object"], body["model"]) == (200, "chat.completion", "symoe")
        (choice,) = body["choices"]
        assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "stop")
        stages = body["symoe"]["usage"].values()
        for kind in ("prompt_tokens", "completion_tokens"):
            assert body["usage"][kind] == sum(stage[kind] for stage in stages) > 0
        assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
        assert answer.headers["x-symoe-experts"].split(",") == body["symoe"]["recruitment"]["experts"]
        assert set(body["symoe"]["scores"]) == set(body["symoe"]["recruitment"]["mapped"])
        assert "drafts" not in body["symoe"]

    def test_drafts_go_out_where_they_are_wanted(self) -> None:
        body = post(service(), QUESTION | {"symoe": {"drafts": True}}).json()
        assert [d["expert"] for d in body["symoe"]["drafts"]] == body["symoe"]["recruitment"]["experts"]

    def test_a_stream(self) -> None:
        answer = post(service(), QUESTION | {"stream": True, "stream_options": {"include_usage": True}, "seed": 3})
        whole = post(service(), QUESTION | {"seed": 3}).json()
        *data, done = chunks(answer)
        assert (answer.status_code, done) == (200, "[DONE]")
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert data[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(c["delta"].get("content", "") for chunk in data for c in chunk["choices"])
        assert text == whole["choices"][0]["message"]["content"]
        *_, end, used = data
        assert end["choices"][0]["finish_reason"] == "stop"
        assert end["symoe"]["recruitment"] == whole["symoe"]["recruitment"]
        assert (used["choices"], used["usage"]) == ([], whole["usage"])
        assert {chunk["id"] for chunk in data} == {data[0]["id"]}

    def test_progress_goes_out_as_comments_and_never_as_content(self) -> None:
        answer = post(service(), QUESTION | {"stream": True})
        comments = [json.loads(x.removeprefix(": symoe ")) for x in answer.text.split("\n") if x.startswith(": symoe ")]
        assert [c["event"] for c in comments if c["event"] != "drafted"] == [
            "started",
            "recruited",
            "started",
            "started",
        ]
        assert any(c["event"] == "drafted" for c in comments)
        assert not any("usage" in chunk for chunk in chunks(answer)[:-1])

    def test_several_answers(self) -> None:
        body = post(service(), QUESTION | {"n": 3}).json()
        assert [c["index"] for c in body["choices"]] == [0, 1, 2]
        data = chunks(post(service(), QUESTION | {"n": 3, "stream": True}))
        assert {c["index"] for chunk in data[:-1] for c in chunk["choices"]} == {0, 1, 2}

    def test_models(self) -> None:
        of = service()
        names = [m["id"] for m in talk(of, lambda http: http.get("/v1/models")).json()["data"]]
        assert names == ["symoe", *(f"symoe:{n}" for n in NAMES), *NAMES]
        for name in names:
            assert talk(of, lambda http, name=name: http.get(f"/v1/models/{name}")).status_code == 200
            assert post(of, QUESTION | {"model": name}).json()["model"] == name
        assert "recruitment" not in post(of, QUESTION | {"model": "B"}).json()["symoe"]
        assert talk(of, lambda http: http.get("/v1/models/gpt")).status_code == 404

    def test_a_silent_stream_is_kept_alive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app_module, "HEARTBEAT_S", 0.01)
        released = asyncio.Event()

        async def pause(_: Request) -> None:
            if not released.is_set():
                asyncio.get_running_loop().call_later(0.1, released.set)
                await released.wait()

        answer = post(service(FakeEngines(pause=pause)), QUESTION | {"stream": True})
        assert ": waiting\n\n" in answer.text
        assert chunks(answer)[-1] == "[DONE]"


class TestSampling:
    def test_the_answer_is_written_as_the_request_asks_and_the_drafts_are_not(self) -> None:
        wishes = {
            "temperature": 0.3, "top_p": 0.8, "top_k": 5, "min_p": 0.1, "presence_penalty": -0.5,
            "frequency_penalty": 1.5, "repetition_penalty": 1.2,
        }  # fmt: skip
        engines = FakeEngines()
        assert post(service(engines), QUESTION | wishes).status_code == 200
        *before, last = (asdict(asked.request.sampling) for asked in engines.asked)
        assert {name: last[name] for name in wishes} == wishes
        assert all(sampling[name] != value for sampling in before for name, value in wishes.items())

    def test_what_it_does_not_ask_for_is_the_models_own(self) -> None:
        engines = FakeEngines()
        post(service(engines), QUESTION | {"top_k": -1, "min_p": None})
        sampling = engines.asked[-1].request.sampling
        assert replace(sampling, max_tokens=1) == Sampling(max_tokens=1), "and -1 is all tokens, as for vLLM"


class TestMistakes:
    @pytest.mark.parametrize(
        ("body", "status", "param"),
        [
            (b"", 400, None), (b"{", 400, None), (b'"symoe"', 400, None), (b"[1]", 400, None),
            (b"\xff\xfe{}", 400, None),
            (b'{"model": "symoe", "messages": [{"role": "user", "content": "\xff"}]}', 400, None),
            (b"[" * 100_000, 400, None), (b'{"model": "symoe", "messages": ' + b"[" * 100_000, 400, "messages[0]"),
            ({}, 400, None), ({"model": "symoe"}, 400, None), (QUESTION | {"model": 3}, 400, "model"),
            (QUESTION | {"model": "gpt"}, 404, "model"), (QUESTION | {"model": "symoe:gpt"}, 404, "model"),
            (QUESTION | {"messages": []}, 400, "messages"), (QUESTION | {"messages": "Why?"}, 400, "messages"),
            (QUESTION | {"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
            (QUESTION | {"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content"),
            (QUESTION | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0]"),
            (QUESTION | {"messages": [{"role": "user", "content": "x"}] * 1000}, 400, "messages"),
            (QUESTION | {"max_tokens": 0}, 400, "max_tokens"), (QUESTION | {"max_tokens": "9"}, 400, "max_tokens"),
            (QUESTION | {"temperature": -1}, 400, "temperature"), (QUESTION | {"top_p": 0}, 400, "top_p"),
            (QUESTION | {"top_k": -2}, 400, "top_k"), (QUESTION | {"top_k": 1.5}, 400, "top_k"),
            (QUESTION | {"min_p": 1.1}, 400, "min_p"), (QUESTION | {"presence_penalty": 3}, 400, "presence_penalty"),
            (QUESTION | {"frequency_penalty": -3}, 400, "frequency_penalty"),
            (QUESTION | {"repetition_penalty": 0}, 400, "repetition_penalty"),
            (QUESTION | {"n": 0}, 400, "n"), (QUESTION | {"n": 1000}, 400, "n"),
            (QUESTION | {"stop": [""]}, 400, "stop[0]"),
            (QUESTION | {"stream": "yes"}, 400, "stream"),
            (QUESTION | {"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
            (QUESTION | {"messages": [{"role": "user", "content": "x" * 2_000_000}]}, 413, None),
        ],
    )  # fmt: skip
    def test_a_mistake_is_named(self, body: Any, status: int, param: str | None) -> None:
        answer = post(service(), body)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
        assert param is None or error["param"].startswith(param)
        assert set(error) == {"message", "type", "param", "code"}

    def test_fields_that_are_not_known_are_ignored(self) -> None:
        body = QUESTION | {
            "logit_bias": {"1": 2},
            "user": "me",
            "tools": None,
            "max_completion_tokens": 9,
            "stop": None,
        }
        assert post(service(), body).status_code == 200

    def test_a_body_without_end_is_not_read_to_its_end(self) -> None:
        sent = 0

        async def pieces() -> Any:
            nonlocal sent
            while True:
                sent += 1
                yield b"x" * 65536

        headers = {"content-type": "application/json"}
        answer = talk(service(), lambda http: http.post(CHAT, content=pieces(), headers=headers))
        assert answer.status_code == 413
        assert sent < 100

    def test_a_body_that_does_not_come_holds_no_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app_module, "BODY_S", 0.05)
        of = service(max_questions=1)

        async def nothing() -> Any:
            yield b"{"
            await asyncio.Event().wait()

        headers = {"content-type": "application/json"}
        answer = talk(of, lambda http: http.post(CHAT, content=nothing(), headers=headers))
        assert (answer.status_code, answer.json()["error"]["type"]) == (408, "invalid_request_error")
        assert post(of).status_code == 200

    def test_only_json_is_taken(self) -> None:
        answer = post(service(), json.dumps(QUESTION).encode(), headers={"content-type": "text/plain"})
        assert answer.status_code == 415

    @pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), (CHAT, 405), ("/v1", 404)])
    def test_other_paths_and_methods(self, path: str, status: int) -> None:
        answer = talk(service(), lambda http: http.get(path))
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


class TestFailures:
    @pytest.mark.parametrize(
        ("engines", "status", "code"),
        [
            (FakeEngines(failures=dict.fromkeys(NAMES, DIED)), 502, "experts_failed"),
            (FakeEngines(failures={"D": DIED}), 502, "engine_died"),
            (FakeEngines(full={"A": RefusedError("overloaded", "too much", 7.2)}), 429, "overloaded"),
            (FakeEngines(refusals={"D": RefusedError("overloaded", "full", 3.0)}), 429, "overloaded"),
            (FakeEngines(full={"A": RefusedError("no_slot", "all gone")}), 503, "no_slot"),
            (FakeEngines(failures=dict.fromkeys(NAMES, TOO_LONG)), 400, "context_length_exceeded"),
        ],
    )  # fmt: skip
    def test_a_failure_has_a_status_and_a_code(self, engines: FakeEngines, status: int, code: str) -> None:
        body = QUESTION | {"seed": 5}
        answer = post(service(engines), body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert ("retry-after" in answer.headers) == (status in (429, 503))

    def test_retry_after_is_in_whole_seconds_and_not_too_soon(self) -> None:
        engines = FakeEngines(full={"A": RefusedError("overloaded", "too much", 7.2)})
        assert post(service(engines)).headers["retry-after"] == "8"

    def test_a_question_that_is_not_let_in_is_no_stream(self) -> None:
        engines = FakeEngines(full={"A": RefusedError("overloaded", "too much", 7.2)})
        assert post(service(engines), QUESTION | {"stream": True}).status_code == 429

    def test_a_failure_in_a_stream_is_an_event_and_there_is_no_done(self) -> None:
        answer = post(service(FakeEngines(failures={"D": DIED})), QUESTION | {"stream": True})
        *_, last = chunks(answer)
        assert answer.status_code == 200
        assert last["error"]["code"] == "engine_died"

    def test_what_nobody_expects_is_not_told(self) -> None:
        async def pause(_: Request) -> None:
            raise RuntimeError("the secret")

        answer = post(service(FakeEngines(pause=pause)))
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in answer.text


class TestLeaving:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_caller_that_goes_away_has_its_work_given_up(self, stream: bool) -> None:
        """Spoken to in ASGI itself, since httpx's transport does not leave."""
        begun = asyncio.Event()

        async def pause(_: Request) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def run() -> tuple[FakeEngines, Service, list[Any]]:
            engines, sent = FakeEngines(pause=pause), []
            of = service(engines)
            body = json.dumps(QUESTION | {"stream": stream}).encode()
            incoming = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def receive() -> Any:
                for message in incoming:
                    return message
                await begun.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {
                "type": "http", "method": "POST", "path": CHAT, "query_string": b"", "client": ("127.0.0.1", 1),
                "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "scheme": "http",
                "server": ("localhost", 80), "root_path": "", "http_version": "1.1", "asgi": {"spec_version": "2.3"},
            }  # fmt: skip
            await asyncio.wait_for(make_app(of)(scope, receive, send), 20)
            return engines, of, sent

        engines, of, _ = asyncio.run(run())
        assert engines.given_up == ["A"]
        assert of._under_way == 0
        assert b'status="499"' in of.metrics.text(asyncio.run(of.status()))
