"""Many clients at once that behave badly, and engines that are killed under them.

Short by default; `SYMOE_CHAOS_SECONDS=120 SYMOE_CHAOS_CLIENTS=200` (`make chaos-serve`) makes it the long one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Served, end, make_run, start
from tests.serve.test_endpoint import MESSAGES, SECRET, fake_engines, family_of, metric, wait_for

pytestmark = [pytest.mark.real_ray, pytest.mark.slow]

SECONDS = float(os.environ.get("SYMOE_CHAOS_SECONDS", "7"))
CLIENTS = int(os.environ.get("SYMOE_CHAOS_CLIENTS", "24"))
KILL_EVERY_S = min(20.0, SECONDS / 3)
CHAT = "/v1/chat/completions"
KEY = {"authorization": f"Bearer {SECRET}"}
JSON = {"content-type": "application/json"}
WRONG_KEYS = ("", "Bearer wrong", f"Bearer {SECRET}x", f"Basic {SECRET}", "Bearer " + "x" * 5000)
MALFORMED = (
    b"", b'{"model": "symoe", "messages": [{"role": "user", "content": "x', b'{"model": 7}', b"\xff\xfe\x00",
    json.dumps({"model": "symoe", "messages": MESSAGES * 1000}).encode(),
    json.dumps({"model": "nobody", "messages": MESSAGES}).encode(),
)  # fmt: skip
DOCUMENTED = {200, 400, 404, 413, 429, 502, 503, 504}


class Chaos:
    """Clients against one endpoint; `outcomes` counts what came of what they did."""

    def __init__(self, url: str) -> None:
        self._url, self.outcomes = url, Counter[str]()

    async def run(self, served: Served) -> None:
        """All clients until the time is over, and whoever kills engines."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=300, limits=limits, headers=KEY) as http:
            deadline = time.monotonic() + SECONDS
            killer = asyncio.create_task(self._kill(served))
            try:
                await asyncio.gather(*(self._client(http, random.Random(i), deadline) for i in range(CLIENTS)))
            finally:
                killer.cancel()

    async def _kill(self, served: Served) -> None:
        while True:
            await asyncio.sleep(KILL_EVERY_S)
            killed = 0
            while not killed:  # an engine may have been swapped before the signal gets there
                for pid in await asyncio.to_thread(fake_engines, served):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
            self.outcomes["engine killed"] += killed

    async def _client(self, http: httpx.AsyncClient, dice: random.Random, deadline: float) -> None:
        acts = (self._whole, self._stream, self._leave, self._malformed, self._strange, self._large)
        while time.monotonic() < deadline:
            act = dice.choices(acts, weights=[4, 4, 3, 2, 1, 0.2])[0]
            await act(http, dice)

    def _question(self, dice: random.Random, **more: Any) -> dict[str, Any]:
        model = dice.choice(["symoe", "symoe", "TinyLlama", "TinyQwen2", "TinyGemma2"])
        return {"model": model, "messages": [{"role": "user", "content": f"{dice.random()}?"}], **more}

    async def _whole(self, http: httpx.AsyncClient, dice: random.Random) -> None:
        answer = await http.post(CHAT, json=self._question(dice))
        assert answer.status_code in DOCUMENTED, answer.text
        assert ("choices" if answer.status_code == 200 else "error") in answer.json()
        self.outcomes[f"whole {answer.status_code}"] += 1

    async def _stream(self, http: httpx.AsyncClient, dice: random.Random) -> None:
        answer = await http.post(CHAT, json=self._question(dice, stream=True))
        assert answer.status_code in DOCUMENTED, answer.text
        if answer.status_code == 200:
            data = [line for line in answer.text.split("\n") if line.startswith("data: ")]
            error = "error" in data[-1]
            assert error != (data[-1] == "data: [DONE]"), data[-1]
            self.outcomes["stream broken by a typed error" if error else "stream 200"] += 1
        else:
            self.outcomes[f"stream {answer.status_code}"] += 1

    async def _leave(self, http: httpx.AsyncClient, dice: random.Random) -> None:
        try:
            await asyncio.wait_for(
                http.post(CHAT, json=self._question(dice, stream=dice.random() < 0.5)), dice.random() * 0.5
            )
        except TimeoutError:
            self.outcomes["left"] += 1

    async def _malformed(self, http: httpx.AsyncClient, dice: random.Random) -> None:
        answer = await http.post(CHAT, content=dice.choice(MALFORMED), headers=JSON)
        assert answer.status_code in (400, 404, 429), answer.text
        self.outcomes[f"malformed {answer.status_code}"] += 1

    async def _strange(self, http: httpx.AsyncClient, dice: random.Random) -> None:
        headers = {"authorization": dice.choice(WRONG_KEYS)}
        if dice.random() < 0.5:
            answer = await http.post(CHAT, json=self._question(dice), headers=headers)
        else:
            answer = await http.get(dice.choice(["/v1/models", "/metrics"]), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), answer.text
        self.outcomes["wrong key 401"] += 1

    async def _large(self, http: httpx.AsyncClient, _: random.Random) -> None:
        try:
            answer = await http.post(CHAT, content=b"x" * 10_000_000, headers=JSON)
        except httpx.TransportError:  # it was answered and hung up on before it had sent everything
            self.outcomes["large cut off"] += 1
            return
        assert answer.status_code in (413, 429), answer.text
        self.outcomes[f"large {answer.status_code}"] += 1


def started(pid: int) -> int:
    """When a process was started, in the kernel's ticks; 0 where it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state == "Z" else int(fields[18])


def memory_bytes(served: Served) -> int:
    """Resident memory of the endpoint and all it has started."""
    total = 0
    for pid in family_of(served):
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


def test_whatever_clients_do_each_gets_an_answer_or_a_typed_error_and_nothing_is_left(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "made", "engine.kind=fake", "pool=tiny")
    served = start(
        folder, "engine.fake_tokens_per_s=200", "engine.fake_load_s=0.05",
        environment={"SYMOE_API_KEYS": f"anna: {SECRET}"},
    )  # fmt: skip
    try:
        asyncio.run(Chaos(served.url).run(served))  # so that what is filled once is filled
        before = memory_bytes(served)
        chaos = Chaos(served.url)
        asyncio.run(chaos.run(served))
        for name in (
            "symoe_requests_under_way", "symoe_queue_samples", "symoe_running_samples", "symoe_engine_samples"
        ):  # fmt: skip
            wait_for(lambda name=name: metric(served, name, headers=KEY) == 0)  # type: ignore[misc]
        grown = memory_bytes(served) - before
        print(f"\n{CLIENTS} clients, {SECONDS:.0f} s: {dict(chaos.outcomes)}; memory grew by {grown / 1e6:.0f} MB")
        for outcome in ("whole 200", "stream 200", "left", "wrong key 401", "engine killed"):
            assert chaos.outcomes[outcome], outcome
        assert httpx.get(f"{served.url}/readyz").status_code == 200
        assert grown < 150e6
        family = {pid: since for pid in family_of(served) if (since := started(pid))}
        assert served.stop() == 0
        wait_for(lambda: all(started(pid) != since for pid, since in family.items()))
    finally:
        end(served)
