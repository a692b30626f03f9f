"""The life of one live question over engines that are made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from symoe_ray.core import ExpertSpec, Failure, Message, Profile, Request
from symoe_ray.routing import Router, RoutingRules
from symoe_ray.serving.asking import Grown, RefusedError
from symoe_ray.serving.chat import Chat
from symoe_ray.serving.events import Answered, Drafted, Event, QuestionFailedError, Recruited, Started
from symoe_ray.serving.question import Method, answer_alone, answer_question, skills_of
from symoe_ray.serving.testing import FakeEngines
from symoe_ray.settings import AggregateSettings, AnnotateSettings, ServeSettings
from symoe_ray.testing import TOPICS, fake_embeddings

NAMES = ("A", "B", "C", "D")
CHAT = Chat(messages=(Message(role="user", content="Why is the sky blue?"),))
DIED = Failure(boundary="engine", kind="engine_died", message="it was killed")


def method(**changes: Any) -> Method:
    """A pool of four; each is good at two topics."""
    profiles = [
        Profile(
            expert=name, task="t", graded=9, correct=5,
            scores={topic: 3.0 if i % 4 == number else 1.0 for i, topic in enumerate(TOPICS)},
        )
        for number, name in enumerate(NAMES)
    ]  # fmt: skip
    rules = RoutingRules(
        k=3, router="reference", sampler="hash", replacement=True, trim_threshold=0.0, no_skills="competence", seed=7
    )
    made = Method(
        experts={n: ExpertSpec(name=n, model=f"org/{n}") for n in NAMES}, profiles=profiles, kept=NAMES,
        known_skills=skills_of(profiles), router=Router(profiles, rules), annotator="A", aggregator="D",
        annotate=AnnotateSettings(), aggregate=AggregateSettings(), serve=ServeSettings(),
        embed=lambda texts: np.asarray(fake_embeddings(texts)),
    )  # fmt: skip
    return replace(made, **changes)


def play(events: AsyncGenerator[Event, None]) -> list[Event]:
    """All that happens."""

    async def collect() -> list[Event]:
        async with aclosing(events) as all_events:
            return [event async for event in all_events]

    return asyncio.run(asyncio.wait_for(collect(), 20))


def answer(engines: FakeEngines, chat: Chat = CHAT, **changes: Any) -> Answered:
    last = play(answer_question(chat, method(**changes), engines, seed=7))[-1]
    assert isinstance(last, Answered)
    return last


def test_events_come_in_the_order_of_the_method() -> None:
    engines = FakeEngines()
    events = play(answer_question(CHAT, method(), engines, seed=7, stream=True))
    kinds = [type(e) for e in events if not isinstance(e, Grown)]
    drafted = [e for e in events if isinstance(e, Drafted)]
    assert kinds == [Started, Recruited, Started, *[Drafted] * len(drafted), Started, Answered]
    recruited = next(e for e in events if isinstance(e, Recruited)).recruitment
    assert len(recruited.experts) == 3
    assert recruited.skills
    assert sorted(d.expert for d in drafted) == sorted(set(recruited.experts))
    assert {d.expert: len(d.drafts) for d in drafted} == {n: recruited.experts.count(n) for n in recruited.experts}
    assert engines.given_up == []


def test_what_is_streamed_adds_up_to_the_answer() -> None:
    events = play(answer_question(CHAT, method(), FakeEngines(), seed=7, stream=True))
    told = "".join(text for e in events if isinstance(e, Grown) for _, text in e.texts)
    assert isinstance(events[-1], Answered)
    assert told == events[-1].completions[0].text


def test_usage_is_what_the_engines_were_asked_for() -> None:
    engines = FakeEngines()
    answered = answer(engines)
    assert list(answered.usage) == ["annotate", "answer", "aggregate"]
    prompts = sum(len(a.request.messages[-1].content.split()) for a in engines.asked)
    assert sum(u.prompt_tokens for u in answered.usage.values()) == prompts
    written = sum(len(d.text.split()) for d in answered.drafts)
    assert answered.usage["answer"].completion_tokens == written
    assert answered.usage["annotate"].completion_tokens > 0


def test_the_aggregator_sees_the_drafts_and_the_conversation() -> None:
    engines = FakeEngines()
    chat = Chat(
        messages=(
            Message(role="system", content="Answer in verse."), Message(role="user", content="Hello"),
            Message(role="assistant", content="Hi"), Message(role="user", content="Why is the sky blue?"),
        )
    )  # fmt: skip
    answered = answer(engines, chat)
    asked = engines.asked[-1].request
    assert asked.expert == "D"
    assert [m.role for m in asked.messages] == ["user", "assistant", "user"]
    assert asked.messages[0].content.startswith("Answer in verse.")
    for draft in answered.drafts:
        assert draft.text.strip() in asked.messages[-1].content
    assert "Why is the sky blue?" in asked.messages[-1].content


def test_the_same_seed_gives_the_same_answer_and_another_aggregator_may_be_named() -> None:
    one, two = answer(FakeEngines()), answer(FakeEngines())
    assert (one.recruitment, one.completions) == (two.recruitment, two.completions)
    named = play(answer_question(CHAT, method(), FakeEngines(), seed=7, aggregator="B"))[-1]
    assert isinstance(named, Answered)
    assert named.aggregator == "B"


def test_wishes_reach_the_final_answer_alone() -> None:
    engines = FakeEngines()
    answer(engines, replace(CHAT, max_tokens=5, temperature=0.0, stop=("x",), json_schema='{"type":"object"}', n=2))
    *before, final = engines.asked
    assert (final.request.sampling.max_tokens, final.request.sampling.temperature) == (5, 0.0)
    assert (final.request.sampling.stop, final.json_schema, final.request.n) == (("x",), '{"type":"object"}', 2)
    assert all(a.request.sampling.stop == () and not a.json_schema for a in before)


def test_an_expert_that_fails_is_left_out_and_named() -> None:
    first = answer(FakeEngines())
    assert first.recruitment is not None
    failing = next(n for n in first.recruitment.experts if n not in ("A", "D"))
    answered = answer(FakeEngines(failures={failing: DIED}))
    assert [d.expert for d in answered.drafts if d.failure] == [failing] * first.recruitment.experts.count(failing)
    assert answered.warnings == (f"expert {failing}: it was killed",)
    assert answered.completions[0].text


def test_where_all_experts_fail_there_is_no_answer() -> None:
    failures = dict.fromkeys(NAMES, DIED)
    with pytest.raises(QuestionFailedError, match="0 of 3 experts answered") as raised:
        answer(FakeEngines(failures=failures))
    assert raised.value.kind == "experts_failed"


def test_fewer_than_min_experts_is_a_failure() -> None:
    first = answer(FakeEngines())
    assert first.recruitment is not None
    failing = next(n for n in first.recruitment.experts if n not in ("A", "D"))
    with pytest.raises(QuestionFailedError):
        answer(FakeEngines(failures={failing: DIED}), aggregate=AggregateSettings(min_experts=3))


def test_a_prompt_that_fits_nobody_is_the_askers_mistake() -> None:
    failures = dict.fromkeys(NAMES, replace(DIED, kind="prompt_too_long"))
    with pytest.raises(QuestionFailedError) as raised:
        answer(FakeEngines(failures=failures))
    assert raised.value.kind == "prompt_too_long"


def test_without_an_annotator_the_experts_are_drawn_by_competence() -> None:
    answered = answer(FakeEngines(refusals={"A": RefusedError("load_failed", "no such model")}))
    assert answered.recruitment is not None
    assert (answered.recruitment.skills, answered.recruitment.fallback) == ((), "no_skills")
    assert "annotator A: no such model" in answered.warnings


def test_a_question_that_is_not_let_in_asks_nobody() -> None:
    engines = FakeEngines(full={"A": RefusedError("overloaded", "too much", 9.0)})
    with pytest.raises(RefusedError, match="too much"):
        answer(engines)
    assert engines.asked == []


def test_who_is_late_is_left_out() -> None:
    recruited = answer(FakeEngines()).recruitment
    assert recruited is not None
    late = next(n for n in recruited.experts if n not in ("A", "D"))

    async def pause(request: Request) -> None:
        if request.expert == late:
            await asyncio.Event().wait()

    engines = FakeEngines(pause=pause)
    answered = answer(engines, serve=ServeSettings(answer_timeout_s=0.2))
    assert {d.expert for d in answered.drafts if d.failure and d.failure.kind == "timeout"} == {late}
    assert engines.given_up == [late]


def test_an_aggregator_that_is_late_is_a_time_out() -> None:
    async def pause(request: Request) -> None:
        if "Several experts" in request.messages[-1].content:
            await asyncio.Event().wait()

    engines = FakeEngines(pause=pause)
    with pytest.raises(QuestionFailedError) as raised:
        answer(engines, serve=ServeSettings(aggregate_timeout_s=0.1))
    assert raised.value.kind == "timeout"
    assert engines.given_up == ["D"]


@pytest.mark.parametrize("after", range(5))
def test_whoever_goes_away_gives_everything_up(after: int) -> None:
    """Closed after any event, no request goes on."""

    async def leave() -> FakeEngines:
        engines = FakeEngines()
        events = answer_question(CHAT, method(), engines, seed=7, stream=True)
        for _ in range(after + 1):
            await anext(events)
        await events.aclose()
        begun = len(engines.asked)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(engines.asked) == begun
        assert len(asyncio.all_tasks()) == 1
        return engines

    asyncio.run(leave())


def test_an_expert_alone() -> None:
    engines = FakeEngines()
    events = play(answer_alone(replace(CHAT, n=2), method(), engines, "B", seed=1, stream=True))
    last = events[-1]
    assert isinstance(last, Answered)
    assert [c.index for c in last.completions] == [0, 1]
    assert (list(last.usage), last.recruitment) == (["answer"], None)
    assert [a.request.expert for a in engines.asked] == ["B"]
    with pytest.raises(QuestionFailedError, match="B: it was killed"):
        play(answer_alone(CHAT, method(), FakeEngines(failures={"B": DIED}), "B", seed=1))
