"""What a server elsewhere is sent, what its errors mean, and how long it is left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest

from symoe_ray.core import ExpertSpec, Message, RemoteServer, Request, Sampling
from symoe_ray.remote_faults import Fault, fault_of, retry_after_s, wait_s
from symoe_ray.remote_requests import chat_body
from symoe_ray.requests import make_request
from symoe_ray.retrying import delay_s

SERVER = RemoteServer(base_url="http://server/v1")
SPEC = ExpertSpec(name="A", model="model", server=SERVER, max_model_len=1000)
NOW = 1_000_000.0


def request_of(**sampling: Any) -> Request:
    return Request(
        id="r", question_id="q", expert="A", messages=(Message(role="user", content="why" * 100),),
        sampling=Sampling(**sampling), seed=40, n=3,
    )  # fmt: skip


class TestBody:
    def test_one_sample_is_one_request_with_its_own_seed(self) -> None:
        assert chat_body(SPEC, request_of(temperature=0.5, top_p=0.9, max_tokens=64), 2) == {
            "model": "model", "messages": [{"role": "user", "content": "why" * 100}], "temperature": 0.5,
            "top_p": 0.9, "seed": 42, "max_tokens": 64,
        }  # fmt: skip

    def test_what_only_some_servers_know_is_said_where_it_is_set(self) -> None:
        body = chat_body(SPEC, request_of(top_k=20, repetition_penalty=1.1, stop=("END",)), 0)
        assert (body["top_k"], body["repetition_penalty"], body["stop"]) == (20, 1.1, ["END"])
        rest = {"min_p": 0.05, "presence_penalty": 1.5, "frequency_penalty": -0.5}
        assert rest.items() <= chat_body(SPEC, request_of(**rest), 0).items()
        absent = {"top_k", "repetition_penalty", "stop", *rest}
        assert not absent & chat_body(SPEC, request_of(), 0).keys()

    def test_an_answer_is_bounded_by_what_the_context_leaves(self) -> None:
        assert chat_body(SPEC, request_of(max_tokens=4096), 0)["max_tokens"] == 900
        assert chat_body(replace(SPEC, max_model_len=10), request_of(), 0)["max_tokens"] == 1

    def test_extra_fields_are_added_and_null_leaves_one_out(self) -> None:
        server = replace(
            SERVER, token_limit="max_completion_tokens",
            extra_body={"reasoning_effort": "low", "seed": None, "temperature": 1},
        )  # fmt: skip
        body = chat_body(replace(SPEC, server=server), request_of(max_tokens=8), 0)
        assert body["max_completion_tokens"] == 8
        assert (body["reasoning_effort"], body["temperature"]) == ("low", 1)
        assert not {"seed", "max_tokens"} & body.keys()

    def test_a_schema_and_a_stream_are_asked_for(self) -> None:
        body = chat_body(SPEC, request_of(), 0, json_schema='{"type":"string"}', stream=True)
        assert body["response_format"] == {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "string"}},
        }  # fmt: skip
        assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
        assert chat_body(SPEC, request_of(), 0, json_schema='{"type":"object"}')["response_format"] == {
            "type": "json_object"
        }


class TestIdentity:
    def made(self, spec: ExpertSpec) -> str:
        return make_request(spec, "q", (), spec.sampling, run_seed=0).id

    def test_which_server_it_is_counts_and_how_it_is_asked_does_not(self) -> None:
        other = replace(SERVER, max_concurrency=1, timeout_s=1.0, retries=0, api_key_env="KEY")
        assert self.made(replace(SPEC, server=other)) == self.made(SPEC)
        assert replace(SPEC, server=other).facts == SPEC.facts
        for changed in (replace(SERVER, base_url="http://other/v1"), replace(SERVER, extra_body={"a": 1})):
            assert self.made(replace(SPEC, server=changed)) != self.made(SPEC)
            assert replace(SPEC, server=changed).facts != SPEC.facts

    def test_an_engine_of_ours_is_known_by_what_it_was_known_by(self) -> None:
        spec = ExpertSpec(name="A", model="model")
        assert self.made(spec) == "ae775d043bdff1f67821dba5"
        assert "server" not in spec.facts

    def test_experts_share_a_slot_where_model_and_all_limits_are_the_same(self) -> None:
        assert replace(SPEC, name="B", sampling=Sampling(temperature=0)).engine_key == SPEC.engine_key
        assert replace(SPEC, model="other").engine_key != SPEC.engine_key
        assert replace(SPEC, server=replace(SERVER, max_concurrency=1)).engine_key != SPEC.engine_key


class TestFaults:
    @pytest.mark.parametrize(
        ("status", "body", "kind", "retryable"),
        [
            (429, {"error": {"message": "slow down"}}, "rate_limited", True),
            (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}, "rate_limited", False),
            (500, {"error": {"message": "oops"}}, "server_error", True),
            (503, {"detail": "loading"}, "server_error", True),
            (408, {}, "server_error", True),
            (401, {"error": {"message": "who are you"}}, "unauthorized", False),
            (403, {}, "unauthorized", False),
            (404, {"error": "no such model"}, "not_found", False),
            (400, {"error": {"message": "x", "code": "context_length_exceeded"}}, "prompt_too_long", False),
            (400, {"error": {"message": "This model's maximum context length is 8 tokens"}}, "prompt_too_long", False),
            (422, {"message": "the prompt is too long"}, "prompt_too_long", False),
            (413, {}, "prompt_too_long", False),
            (400, {"error": {"message": "unknown field top_k"}}, "bad_request", False),
            (307, {}, "bad_request", False),
        ],
    )
    def test_a_status_is_a_kind(self, status: int, body: object, kind: str, retryable: bool) -> None:
        fault = fault_of(status, json.dumps(body).encode(), {}, NOW)
        assert (fault.kind, fault.retryable) == (kind, retryable)
        assert fault.message.startswith(f"HTTP {status}")

    def test_a_message_is_one_line_of_bounded_length(self) -> None:
        fault = fault_of(500, b"<html>\n  <p>Bad gateway</p>" + b"x" * 10_000, {}, NOW)
        assert fault.message.startswith("HTTP 500: <html> <p>Bad gateway</p>")
        assert len(fault.message) < 400

    def test_retry_after_holds_seconds_or_a_date(self) -> None:
        date = format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)
        assert retry_after_s({"retry-after": "1.5"}, NOW) == 1.5
        assert retry_after_s({"retry-after": date}, NOW) == 90
        assert retry_after_s({"retry-after": format_datetime(datetime.fromtimestamp(NOW - 90, UTC))}, NOW) == 0
        assert [retry_after_s({"retry-after": bad}, NOW) for bad in ("", "soon", "inf", "nan")] == [None] * 4


class TestWaiting:
    def wait(self, attempt: int, *, draw: float = 0.0, most_s: float = 300.0, **changes: Any) -> float | None:
        fault = replace(Fault(kind="rate_limited", message="", retryable=True), **changes)
        return wait_s(fault, attempt, retries=8, most_s=most_s, draw=draw)

    def test_it_doubles_up_to_a_longest_wait(self) -> None:
        waits = [self.wait(attempt) for attempt in range(1, 9)]
        assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
        assert waits == [delay_s("rate_limited", attempt) for attempt in range(1, 9)]
        assert self.wait(9) is None

    def test_chance_takes_up_to_half_of_it_away(self) -> None:
        assert self.wait(3, draw=0.5) == 1.5
        assert self.wait(3, draw=1.0) == 1.0

    def test_it_never_comes_back_before_the_server_asks(self) -> None:
        assert self.wait(1, retry_after_s=20.0) == 20.0
        assert self.wait(3, retry_after_s=20.0, draw=0.5) == 20.5
        assert self.wait(5, retry_after_s=1.0) == 8.0

    def test_it_gives_up_where_waiting_does_not_help(self) -> None:
        assert self.wait(1, retryable=False) is None
        assert self.wait(1, retry_after_s=3600.0) is None
