"""What both engine processes make of a request, where that needs no model: greedy samples above all."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from actors.engine import _distinct, _Engine, _samples
from actors.engine_host import _frame_of
from actors.fake_engine import MAX_NUM_SEQS, _FakeEngine
from actors.protocol import Abort, Finished, Generate, LoadEngine, Rejected, Sample
from symoe_ray.core import Message, Request, Sampling
from symoe_ray.testing import fake_text

REPOSITORY = Path(__file__).resolve().parents[2]


def generate(content: str = "Why?", **changes: Any) -> Generate:
    given: dict[str, Any] = {
        "tag": "t", "messages": [{"role": "user", "content": content}], "n": 1, "first_sample": 0, "seed": 7,
        "temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_tokens": 99, "repetition_penalty": 1.0,
    }  # fmt: skip
    return Generate(**(given | changes))


def outputs(*texts: str) -> list[Any]:
    """As vLLM gives them: numbered within the submission, a token a word."""
    return [
        SimpleNamespace(index=i, text=text, finish_reason="stop", token_ids=text.split())
        for i, text in enumerate(texts)
    ]


def engine(load: LoadEngine, tokenizer: Any = None) -> Any:
    """An engine of which only what it makes of a request is there."""
    made: Any = object.__new__(_Engine)
    made._load, made._tokenizer, made.max_model_len = load, tokenizer, 100
    return made


class TestPrompt:
    def test_a_template_is_rendered_with_what_the_expert_gives_it(self) -> None:
        given: dict[str, Any] = {}

        class Tokenizer:
            bos_token_id = 1

            def apply_chat_template(self, messages: Any, **arguments: Any) -> list[int]:
                given.update(arguments, messages=messages)
                return [5, 6]

        load = LoadEngine(args={}, chat_template="{{ m }}", chat_template_kwargs={"enable_thinking": False})
        assert engine(load, Tokenizer())._prompt(generate("Why?")) == [5, 6]
        assert given == {
            "messages": [{"role": "user", "content": "Why?"}], "chat_template": "{{ m }}", "enable_thinking": False,
            "add_generation_prompt": True, "tokenize": True, "return_dict": False,
        }  # fmt: skip


class TestParameters:
    def test_every_sampling_key_reaches_vllm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        vllm = SimpleNamespace(
            RequestOutputKind=SimpleNamespace(DELTA=1, FINAL_ONLY=2), StructuredOutputsParams=None,
            SamplingParams=lambda **given: given,
        )  # fmt: skip
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(sampling_params=vllm))
        monkeypatch.setitem(sys.modules, "vllm.sampling_params", vllm)
        sampling = Sampling(
            temperature=0.5, top_p=0.9, top_k=7, max_tokens=33, repetition_penalty=1.25, stop=("x",), min_p=0.05,
            presence_penalty=1.5, frequency_penalty=-0.5,
        )  # fmt: skip
        request = Request(
            id="r", question_id="q", expert="A", messages=(Message(role="user", content="Why?"),), sampling=sampling,
            seed=40, n=3,
        )  # fmt: skip
        given = engine(LoadEngine(args={}))._parameters(_frame_of(request, ""), 10)
        assert {name: given[name] for name in asdict(sampling)} == asdict(sampling) | {"stop": ["x"]}


class TestSamples:
    @pytest.mark.parametrize(("temperature", "n", "expected"), [(0.0, 5, 1), (0.0, 1, 1), (0.01, 5, 5), (1.0, 1, 1)])
    def test_greedy_samples_are_generated_once(self, temperature: float, n: int, expected: int) -> None:
        assert _distinct(generate(temperature=temperature, n=n)) == expected

    def test_copies_of_a_greedy_sample_cost_no_tokens(self) -> None:
        found = _samples(generate(temperature=0.0, n=3), outputs("so it is"))
        assert found == [
            Sample(index=0, text="so it is", finish_reason="stop", tokens=3),
            Sample(index=1, text="so it is", finish_reason="stop", tokens=0),
            Sample(index=2, text="so it is", finish_reason="stop", tokens=0),
        ]

    def test_copies_are_numbered_from_the_first_sample_that_was_asked_for(self) -> None:
        found = _samples(generate(temperature=0.0, n=2, first_sample=4), outputs("so it is"))
        assert [(s.index, s.tokens) for s in found] == [(4, 3), (5, 0)]

    def test_samples_that_differ_are_as_the_engine_made_them(self) -> None:
        found = _samples(generate(n=2, first_sample=4), outputs("so", "it is"))
        assert [(s.index, s.text, s.tokens) for s in found] == [(4, "so", 1), (5, "it is", 2)]

    def test_a_sample_without_a_reason_to_end_has_none(self) -> None:
        output = outputs("so")[0]
        output.finish_reason = None
        assert _samples(generate(), [output])[0].finish_reason == ""


class TestFakeEngine:
    """In process, and without a speed: what it takes is finished at its next step."""

    @staticmethod
    def answers(*requests: Generate, expert: str = "A", max_model_len: int = 50) -> list[Any]:
        engine = _FakeEngine(LoadEngine(args={"max_model_len": max_model_len}, fake={"expert": expert}))
        refused = [frame for request in requests for frame in engine.take(request)]
        return refused + engine.step()

    def test_samples_follow_from_expert_prompt_and_seed(self) -> None:
        (answer,) = self.answers(generate("Why so?", n=3, first_sample=2), expert="B")
        assert (answer.tag, answer.prompt_tokens) == ("t", 2)
        texts = [fake_text("B", "Why so?", 7 + 2 + i) for i in range(3)]
        assert [(s.index, s.text, s.tokens) for s in answer.samples] == [
            (2 + i, text, len(text.split())) for i, text in enumerate(texts)
        ]
        assert len(set(texts)) > 1

    @pytest.mark.parametrize("changes", [{}, {"seed": 8}, {"first_sample": 3}], ids=str)
    def test_greedy_samples_are_alike_whatever_their_seed(self, changes: dict[str, int]) -> None:
        (answer,) = self.answers(generate(n=4, temperature=0.0, **changes))
        assert {s.text for s in answer.samples} == {fake_text("A", "Why?", 0)}
        first = changes.get("first_sample", 0)
        assert [s.index for s in answer.samples] == list(range(first, first + 4))

    def test_a_prompt_that_fills_the_context_is_refused_and_the_others_are_not(self) -> None:
        refused, answer = self.answers(generate("a b c", tag="long"), generate("a b", tag="fits"), max_model_len=3)
        assert isinstance(refused, Rejected)
        assert (refused.tag, refused.kind) == ("long", "prompt_too_long")
        assert isinstance(answer, Finished)
        assert answer.tag == "fits"

    def test_an_aborted_request_gets_no_answer(self) -> None:
        engine = _FakeEngine(LoadEngine(args={}, fake={"expert": "A"}))
        for tag in ("a", "b"):
            engine.take(msgspec.structs.replace(generate(), tag=tag))
        engine.take(Abort(tags=["a"]))
        assert [answer.tag for answer in engine.step() if isinstance(answer, Finished)] == ["b"]

    def test_as_many_run_at_once_as_it_says(self) -> None:
        engine = _FakeEngine(LoadEngine(args={}, fake={"expert": "A", "tokens_per_s": 0.01}))
        for number in range(MAX_NUM_SEQS + 3):
            engine.take(msgspec.structs.replace(generate(), tag=str(number)))
        assert engine.step() == []
        assert engine.running == MAX_NUM_SEQS


def test_importing_the_engine_process_loads_no_vllm() -> None:
    """The zygote decides what is imported before it forks; and a test or a slot need not have vLLM at all."""
    code = (
        "import json, sys, actors.engine, actors.fake_engine\n"
        "print(json.dumps(sorted({'vllm', 'torch', 'ray'} & sys.modules.keys())))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []
