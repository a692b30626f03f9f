"""`symoe serve` over real HTTP and fake engines: what OpenAI's own client, curl and `symoe ask` make of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest

from tests.processes import family
from tests.serve.conftest import REPOSITORY, TIMEOUT_S, Served, end, make_run, start

pytestmark = [pytest.mark.real_ray, pytest.mark.slow]

SECRET = "sk-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def metric(served: Served, name: str, *labels: str, **how: object) -> float:
    """The sum of a metric over those of its samples that have one of these labels (all)."""
    lines = httpx.get(f"{served.url}/metrics", **how).text.splitlines()  # type: ignore[arg-type]
    mine = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(x.rsplit(" ", 1)[1]) for x in mine if not labels or any(label in x for label in labels))


class TestOpenAI:
    @pytest.fixture
    def client(self, served: Served) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)

    def test_models(self, client: openai.OpenAI) -> None:
        names = [m.id for m in client.models.list()]
        assert names[0] == "symoe"
        assert client.models.retrieve("TinyLlama").id == "TinyLlama"

    def test_an_answer_whose_usage_is_the_sum_of_its_stages(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model="symoe", messages=MESSAGES, seed=1)
        assert answer.choices[0].message.content
        assert answer.usage is not None
        stages = answer.symoe["usage"]
        assert list(stages) == ["annotate", "answer", "aggregate"]
        assert answer.usage.prompt_tokens == sum(s["prompt_tokens"] for s in stages.values())
        assert answer.usage.completion_tokens == sum(s["completion_tokens"] for s in stages.values())
        assert len(answer.symoe["recruitment"]["experts"]) == 3

    def test_a_stream(self, client: openai.OpenAI) -> None:
        stream = client.chat.completions.create(
            model="symoe", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, seed=1
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        whole = client.chat.completions.create(model="symoe", messages=MESSAGES, seed=1)
        assert text == whole.choices[0].message.content
        assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 1
        assert chunks[-1].usage == whole.usage
        assert chunks[-2].choices[0].finish_reason == "stop"

    def test_many_at_once_share_loads(self, served: Served) -> None:
        before = len(served.events("load"))

        async def ask() -> list[str | None]:
            async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
                answers = await asyncio.gather(
                    *(
                        client.chat.completions.create(
                            model="symoe", messages=[{"role": "user", "content": f"Question {i}?"}]
                        )
                        for i in range(24)
                    )
                )
                return [a.choices[0].message.content for a in answers]

        assert all(asyncio.run(ask()))
        wait_for(lambda: metric(served, "symoe_running_samples") == 0)
        assert metric(served, "symoe_queue_samples") == 0
        loads = len(served.events("load")) - before
        assert loads < 24 * 3, "every question loads its own engines"

    def test_errors_are_the_clients_own(self, served: Served, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(model="gpt", messages=MESSAGES)
        assert raised.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="symoe", messages=[])
        with pytest.raises(openai.BadRequestError) as long:
            client.chat.completions.create(
                model="symoe", messages=[{"role": "user", "content": "word " * 5000}], max_tokens=4
            )
        assert long.value.code == "context_length_exceeded"

    def test_other_ways_to_ask(self, client: openai.OpenAI) -> None:
        named = client.chat.completions.create(model="symoe:TinyQwen2", messages=MESSAGES, n=2)
        assert named.symoe["aggregator"] == "TinyQwen2"
        assert [c.index for c in named.choices] == [0, 1]
        short = client.chat.completions.create(model="TinyGemma2", messages=MESSAGES, max_tokens=2)
        assert (short.choices[0].finish_reason, short.usage and short.usage.completion_tokens) == ("length", 2)
        form = client.chat.completions.create(
            model="TinyGemma2", messages=MESSAGES, response_format={"type": "json_object"}
        )
        assert isinstance(json.loads(form.choices[0].message.content or ""), dict)


def test_curl(served: Served) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": "TinyLlama", "messages": MESSAGES, "stream": True})
    out = subprocess.run(
        [curl, "-sN", f"{served.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert out.startswith("data: {")
    assert out.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("option", ["--explain", "--json"])
def test_symoe_ask(served: Served, option: str) -> None:
    command = [sys.executable, "-m", "pipelines", "ask", "Why is the sky blue?", "--url", served.url, option]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if option == "--json":
        assert len(json.loads(done.stdout)["symoe"]["drafts"]) == 3
    else:
        assert done.stdout.strip()
        assert "skills:" in done.stderr
        assert '"recruitment"' in done.stderr


def test_what_the_page_is_made_of_is_served(served: Served) -> None:
    page = httpx.get(f"{served.url}/")
    assert page.headers["content-type"].startswith("text/html")
    assert httpx.get(f"{served.url}/page.js").status_code == 200
    assert httpx.get(f"{served.url}/healthz").json() == {"status": "ok"}


def test_keys_a_caller_that_leaves_a_killed_engine_and_a_drain(tmp_path: Path) -> None:
    """One endpoint whose engine writes a word a second, ended at last by SIGTERM under a question."""
    folder = make_run(tmp_path / "made", "engine.kind=fake", "pool=tiny")
    served = start(folder, "engine.fake_tokens_per_s=1", environment={"SYMOE_API_KEYS": f"anna: {SECRET}"})
    try:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0).models.list()
        headers = {"authorization": f"Bearer {SECRET}"}
        body = {"model": "TinyLlama", "messages": MESSAGES, "stream": True}
        named = {**headers, "x-request-id": "the-one-that-left"}
        with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, headers=named) as left:
            wait_for(lambda: metric(served, "symoe_engine_samples", headers=headers) == 1)
            assert left.status_code == 200
        wait_for(lambda: metric(served, "symoe_requests_under_way", headers=headers) == 0)
        wait_for(lambda: metric(served, "symoe_running_samples", headers=headers) == 0)
        wait_for(lambda: metric(served, "symoe_engine_samples", headers=headers) == 0)
        with ThreadPoolExecutor() as threads:
            client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=SECRET, max_retries=0)
            whole = threads.submit(
                lambda: client.chat.completions.create(model="TinyLlama", messages=MESSAGES, max_tokens=3)
            )
            wait_for(lambda: metric(served, "symoe_running_samples", headers=headers) == 1)
            for pid in fake_engines(served):
                os.kill(pid, signal.SIGKILL)
            assert whole.result().choices[0].finish_reason == "length", "it is asked again on a new engine"
            last = threads.submit(
                lambda: "".join(
                    c.choices[0].delta.content or ""
                    for c in client.chat.completions.create(
                        model="TinyLlama", messages=MESSAGES, max_tokens=4, stream=True
                    )
                    if c.choices
                )
            )
            wait_for(lambda: metric(served, "symoe_running_samples", headers=headers) == 1)
            served.process.terminate()
            assert len(last.result().split()) == 4
        assert served.process.wait(TIMEOUT_S) == 0
        logs = "".join(f.read_text() for f in (tmp_path / "made-serving" / "logs" / "ray").glob("worker-*"))
        assert "request=the-one-that-left key=anna model=TinyLlama status=499" in logs
        assert SECRET not in logs + (tmp_path / "serve.log").read_text()
        assert MESSAGES[0]["content"] not in logs
    finally:
        end(served)


def test_a_port_that_is_taken_and_a_replica_that_dies(tmp_path: Path) -> None:
    """Whoever takes the replica's place listens at the same port."""
    folder = make_run(tmp_path / "made", "engine.kind=fake", "pool=tiny")
    served = start(folder)
    try:
        port = served.url.rpartition(":")[2]
        second = subprocess.run(
            [sys.executable, "-m", "pipelines", "serve", "--run", str(folder), f"serve.port={port}"],
            capture_output=True, text=True, timeout=TIMEOUT_S, cwd=REPOSITORY,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        )  # fmt: skip
        assert (second.returncode, f"serve.port={port}: Address already in use" in second.stderr) == (4, True)
        with httpx.Client(base_url=served.url) as kept:  # its connection is open when the replica dies
            assert kept.get("/readyz").status_code == 200
            before = set(fake_engines(served))
            (replica,) = (pid for pid, args in family_of(served).items() if args.startswith("ray::ServeReplica"))
            os.kill(replica, signal.SIGKILL)
            wait_for(lambda: replica not in family_of(served))
            wait_for(lambda: _is_ready(served))
        assert before
        wait_for(lambda: not before & set(fake_engines(served)))
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        assert client.chat.completions.create(model="TinyLlama", messages=MESSAGES).choices[0].message.content
        assert served.stop() == 0
    finally:
        end(served)


def _is_ready(served: Served) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{served.url}/readyz").status_code == 200
    return False


def family_of(served: Served) -> dict[int, str]:
    """Process id and command line of an endpoint and all it has started."""
    return {pid: args for pid, _, args in family(served.process.pid)}


def fake_engines(served: Served) -> list[int]:
    """Process ids of an endpoint's engines."""
    return [pid for pid, args in family_of(served).items() if "actors.fake_engine" in args]
