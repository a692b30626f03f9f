"""The endpoint over real vLLM engines with tiny models on one slot: answers, streams, JSON."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serve.conftest import Served, end, make_run, start
from tests.serve.test_endpoint import MESSAGES, metric, wait_for

pytestmark = [pytest.mark.real_ray, pytest.mark.real_engine, pytest.mark.slow]


EXPERTS, AGGREGATOR = ("TinyQwen2", "TinyGemma2"), "TinyQwen3"
LONG = ("pool.defaults.max_model_len=4096", "pool.defaults.sampling.max_tokens=600")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An endpoint with real engines: annotator, experts and aggregator are different ones."""
    pytest.importorskip("vllm")
    folder = make_run(
        tmp_path_factory.mktemp("real") / "made", "pool=tiny", "embedding_model=all-MiniLM-L6-v2",
        f"aggregator={AGGREGATOR}", *LONG, kept=EXPERTS,
    )  # fmt: skip
    running = start(folder)
    yield running
    end(running)


@pytest.fixture
def client(real: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0, timeout=300)


def ask(client: openai.OpenAI, **how: Any) -> Any:
    return client.chat.completions.create(**{"model": "TinyLlama", "messages": MESSAGES, "max_tokens": 48, **how})


def test_the_whole_method_answers_and_its_usage_adds_up(real: Served, client: openai.OpenAI) -> None:
    before = metric(real, "vllm:generation_tokens_total")
    answer = ask(client, model="symoe", seed=3)
    counted = metric(real, "vllm:generation_tokens_total") - before
    assert counted == answer.usage.completion_tokens, "vLLM's own count, over the engines that were swapped"
    assert answer.choices[0].message.content
    for kind in ("prompt_tokens", "completion_tokens"):
        assert getattr(answer.usage, kind) == sum(s[kind] for s in answer.symoe["usage"].values())
    assert answer.symoe["usage"]["aggregate"]["completion_tokens"] <= 48


def test_a_stream_is_what_the_engine_writes(client: openai.OpenAI) -> None:
    whole = ask(client, temperature=0)
    chunks = list(ask(client, temperature=0, n=2, stream=True))
    for index in range(2):
        text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)
        assert text == whole.choices[0].message.content
    assert sum(bool(c.delta.content) for chunk in chunks for c in chunk.choices if c.index == 0) > 1
    assert whole.choices[0].finish_reason == "length"


def test_an_answer_follows_a_schema(client: openai.OpenAI) -> None:
    """Of one word, as a model with random weights would fill an object with blanks."""
    answer = ask(
        client, response_format={"type": "json_schema", "json_schema": {"name": "v", "schema": {"enum": ["yes", "no"]}}}
    )
    assert json.loads(answer.choices[0].message.content) in ("yes", "no")
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["answer", "aggregate"])
def test_a_caller_that_leaves_has_its_work_aborted_on_the_engine(real: Served, stage: str, stream: bool) -> None:
    """Engines would have seconds of work left: each says by itself that it has none."""
    running = EXPERTS if stage == "answer" else (AGGREGATOR,)
    final = f'model_name="{AGGREGATOR}"'
    finished = metric(real, "vllm:request_success_total", final)
    caller = http.client.HTTPConnection(real.url.removeprefix("http://"))
    body = {"model": "symoe", "messages": MESSAGES, "stream": stream, "max_tokens": 3500, "seed": 1}
    caller.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    wait_for(lambda: metric(real, "symoe_running_samples", *running) > 0 and metric(real, "symoe_engine_samples") > 0)
    caller.close()
    left = time.monotonic()
    wait_for(lambda: metric(real, "symoe_engine_samples") == 0)
    print(f"{stage}, stream={stream}: the engine was idle after {time.monotonic() - left:.3f} s")
    assert metric(real, "symoe_running_samples") == metric(real, "symoe_queue_samples") == 0
    assert metric(real, "vllm:num_requests_running") == 0
    assert metric(real, "vllm:request_success_total", final) == finished
