"""The endpoint over real vLLM engines with tiny models on one slot: answers, streams, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serve.conftest import Served, end, make_run, start
from tests.serve.test_endpoint import MESSAGES

pytestmark = [pytest.mark.real_ray, pytest.mark.real_engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An endpoint with real engines."""
    pytest.importorskip("vllm")
    folder = make_run(tmp_path_factory.mktemp("real") / "made", "pool=tiny", "embedding_model=all-MiniLM-L6-v2")
    running = start(folder)
    yield running
    end(running)


@pytest.fixture
def client(real: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0, timeout=300)


def ask(client: openai.OpenAI, **how: Any) -> Any:
    return client.chat.completions.create(**{"model": "TinyLlama", "messages": MESSAGES, "max_tokens": 12, **how})


def test_the_whole_method_answers_and_its_usage_adds_up(client: openai.OpenAI) -> None:
    answer = ask(client, model="symoe", seed=3)
    assert answer.choices[0].message.content
    for kind in ("prompt_tokens", "completion_tokens"):
        assert getattr(answer.usage, kind) == sum(s[kind] for s in answer.symoe["usage"].values())
    assert answer.symoe["usage"]["aggregate"]["completion_tokens"] <= 12


def test_a_stream_is_what_the_engine_writes(client: openai.OpenAI) -> None:
    whole = ask(client, temperature=0)
    chunks = list(ask(client, temperature=0, n=2, stream=True))
    for index in range(2):
        text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)
        assert text == whole.choices[0].message.content
    assert sum(bool(c.delta.content) for chunk in chunks for c in chunk.choices if c.index == 0) > 2
    assert whole.choices[0].finish_reason == "length"


def test_an_answer_follows_a_schema(client: openai.OpenAI) -> None:
    """Of one word, as a model with random weights would fill an object with blanks."""
    answer = ask(
        client, response_format={"type": "json_schema", "json_schema": {"name": "v", "schema": {"enum": ["yes", "no"]}}}
    )
    assert json.loads(answer.choices[0].message.content) in ("yes", "no")
    assert answer.choices[0].finish_reason == "stop"
