"""Who may ask the endpoint and how much at once, how it says how it does, and how it ends; over made-up engines."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from symoe_ray.core import Request
from symoe_ray.serving.keys import Key, hash_of
from symoe_ray.serving.testing import FakeEngines
from tests.unit.test_serving_app import CHAT, QUESTION, SECRET, post, service, talk


class TestWho:
    KEYS = (Key(name="anna", sha256=hash_of(SECRET), concurrency=1), Key(name="ben", sha256=hash_of(SECRET[::-1])))

    def test_a_key_is_needed_where_there_are_keys(self) -> None:
        of = service(keys=self.KEYS)
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": SECRET},
            {"authorization": f"Basic {SECRET}"},
        ):
            answer = post(of, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert post(of, headers={"authorization": f"Bearer {SECRET}"}).status_code == 200
        for path in ("/v1/models", "/metrics"):
            assert talk(of, lambda http, path=path: http.get(path)).status_code == 401
        for path in ("/healthz", "/readyz", "/", "/page.js", "/page.css"):
            assert talk(of, lambda http, path=path: http.get(path)).status_code == 200

    def test_with_keys_others_are_served_too(self) -> None:
        of = service(keys=self.KEYS)
        ask = {"headers": {"authorization": f"Bearer {SECRET}"}, "json": QUESTION}
        assert talk(of, lambda http: http.post(CHAT, **ask), client="203.0.113.9").status_code == 200

    def test_without_keys_only_this_machine_is_served_and_only_by_its_name(self) -> None:
        of = service()
        answer = talk(of, lambda http: http.post(CHAT, json=QUESTION), client="203.0.113.9")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "keys_required")
        rebound = talk(of, lambda http: http.post(CHAT, json=QUESTION, headers={"host": "evil.example"}))
        assert rebound.status_code == 403
        assert talk(of, lambda http: http.get("/v1/models"), client="::1").status_code == 200

    def test_a_key_has_its_limits(self) -> None:
        held = asyncio.Event()

        async def pause(_: Request) -> None:
            await held.wait()

        of = service(FakeEngines(pause=pause), keys=self.KEYS)

        async def two(http: httpx.AsyncClient) -> list[int]:
            mine = {"authorization": f"Bearer {SECRET}"}
            first = asyncio.create_task(http.post(CHAT, json=QUESTION, headers=mine))
            while not of._under_way:
                await asyncio.sleep(0)
            second = await http.post(CHAT, json=QUESTION, headers=mine)
            held.set()
            third = await http.post(CHAT, json=QUESTION, headers={"authorization": f"Bearer {SECRET[::-1]}"})
            return [(await first).status_code, second.status_code, third.status_code]

        assert talk(of, two) == [200, 429, 200]

    def test_so_many_questions_are_under_way(self) -> None:
        held = asyncio.Event()

        async def pause(_: Request) -> None:
            await held.wait()

        of = service(FakeEngines(pause=pause), max_questions=1)

        async def two(http: httpx.AsyncClient) -> list[int]:
            first = asyncio.create_task(http.post(CHAT, json=QUESTION))
            while not of._under_way:
                await asyncio.sleep(0)
            second = await http.post(CHAT, json=QUESTION)
            held.set()
            return [(await first).status_code, second.status_code]

        assert talk(of, two) == [200, 429]


class TestState:
    def test_readiness(self) -> None:
        of = service()
        assert talk(of, lambda http: http.get("/readyz")).json() == {"ready": True, "reason": ""}
        of.starting = "models are fetched"
        waiting = talk(of, lambda http: http.get("/readyz"))
        assert (waiting.status_code, waiting.json()["reason"]) == (503, "models are fetched")
        assert post(of).status_code == 503
        assert talk(of, lambda http: http.get("/healthz")).status_code == 200

    def test_draining_waits_for_what_is_under_way_and_takes_nothing_new(self) -> None:
        held = asyncio.Event()

        async def pause(_: Request) -> None:
            await held.wait()

        of = service(FakeEngines(pause=pause))

        async def drain(http: httpx.AsyncClient) -> tuple[list[int], bool]:
            first = asyncio.create_task(http.post(CHAT, json=QUESTION))
            while not of._under_way:
                await asyncio.sleep(0)
            assert not await of.drain(0.01)
            draining = asyncio.create_task(of.drain(10))
            second = await http.post(CHAT, json=QUESTION)
            held.set()
            return [(await first).status_code, second.status_code], await draining

        assert talk(of, drain) == ([200, 503], True)

    def test_metrics(self) -> None:
        of = service()
        post(of)
        post(of, QUESTION | {"model": "gpt"})
        text = talk(of, lambda http: http.get("/metrics")).text
        assert 'symoe_requests_total{model="symoe",status="200"} 1.0' in text
        assert 'symoe_requests_total{model="unknown",status="404"} 1.0' in text
        assert 'symoe_stage_seconds_count{stage="aggregate"} 1.0' in text
        assert "gpt" not in text

    def test_prompts_are_not_logged_unless_wanted(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "symoe.serving")
        post(service())
        assert "sky" not in caplog.text
        assert "model=symoe status=200" in caplog.text
        post(service(log_prompts=True))
        assert "sky" in caplog.text

    def test_the_page_loads_nothing_from_elsewhere(self) -> None:
        page = talk(service(), lambda http: http.get("/"))
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http" not in page.text.replace("http-equiv", "")
        assert "access-control-allow-origin" not in page.headers
