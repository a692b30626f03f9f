"""Reasoning apart from answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symoe_ray.core import Request
from symoe_ray.serving.asking import Ask, Grown, Reply
from symoe_ray.serving.events import Answered
from symoe_ray.serving.question import answer_alone, answer_question
from symoe_ray.serving.reasoning import Reasoning, split_reasoning
from symoe_ray.serving.testing import FakeEngines
from tests.unit.test_live_question import CHAT, method, play

END = "</think>"


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        (f"so it is{END}\n\nyes", "stop", ("so it is", "yes")),
        ("so it", "length", ("so it", "")),
        ("yes", "stop", ("", "yes")),
        (END, "stop", ("", "")),
    ],
)
def test_a_finished_text(text: str, reason: str, expected: tuple[str, str]) -> None:
    assert split_reasoning(text, END, reason) == expected


@settings(deadline=None, derandomize=True)
@given(before=st.text("ab</thinkg> \n", max_size=30), after=st.text("ab<> \n", max_size=20), data=st.data())
def test_as_it_is_written_it_comes_to_the_same_however_it_is_cut(before: str, after: str, data: st.DataObject) -> None:
    text, parts, at = before + END + after, [], 0
    while at < len(text):
        to = data.draw(st.integers(at + 1, len(text)))
        parts.append(text[at:to])
        at = to
    splitter = Reasoning(END)
    halves = [splitter.add(part) for part in parts]
    made = "".join(r for r, _ in halves), "".join(a for _, a in halves)
    assert made == split_reasoning(text, END, "stop")


def test_a_thinking_aggregator_answers_without_its_thoughts() -> None:
    class Thinking(FakeEngines):
        async def ask(self, ask: Ask):  # type: ignore[no-untyped-def]
            request: Request = ask.request
            async for came in super().ask(ask):
                if isinstance(came, Reply) and request.expert == "D":
                    texts = [f"I think.{END} {c.text}" for c in came.completions]
                    made = zip(came.completions, texts, strict=True)
                    if ask.stream:
                        yield Grown(tuple((i, f"I think.{END[:4]}") for i in range(request.n)))
                        yield Grown(tuple((i, f"{END[4:]} x") for i in range(request.n)))
                    yield replace(came, completions=tuple(replace(c, text=t) for c, t in made))
                elif isinstance(came, Reply) or request.expert != "D":
                    yield came

    experts = method().experts
    made = method(experts={**experts, "D": replace(experts["D"], think_end_token=END)})
    for events in (
        answer_question(CHAT, made, Thinking(), seed=7, stream=True),
        answer_alone(CHAT, made, Thinking(), "D", seed=7, stream=True),
    ):
        *told, last = play(events)
        assert isinstance(last, Answered)
        assert last.reasoning == {0: "I think."}
        assert "think" not in last.completions[0].text
        grown = [e for e in told if isinstance(e, Grown)]
        assert "".join(t for g in grown for _, t in g.reasoning) == "I think."
        assert "".join(t for g in grown for _, t in g.texts) == "x"
