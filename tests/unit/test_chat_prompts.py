"""Conversations as prompts."""

from __future__ import annotations

import pytest

from symoe_ray.core import ExpertSpec, Message
from symoe_ray.serving.chat import Chat, final_messages, plain, skill_messages

SPEC = ExpertSpec(name="A", model="org/a", max_model_len=1000)


def messages(*turns: str) -> tuple[Message, ...]:
    """ "u text" is the user's, "a text" the assistant's, "s text" the system's."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return tuple(Message(role=roles[t[0]], content=t[2:]) for t in turns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["u q"], ["u q"]),
        (["s be kind", "u q"], ["u be kind\n\nq"]),
        (["s one", "u q", "a b", "s two", "u c"], ["u one\n\ntwo\n\nq", "a b", "u c"]),
        (["u q", "u r"], ["u q\n\nr"]),
        (["a hello", "u q"], ["u ", "a hello", "u q"]),
        (["u q", "a half an ans"], ["u q", "a half an ans", "u "]),
        (["s be kind"], ["u be kind"]),
    ],
)
def test_a_conversation_is_user_and_assistant_in_turn(given: list[str], expected: list[str]) -> None:
    made = plain(messages(*given))
    assert [f"{m.role[0]} {m.content}" for m in made] == expected


def test_skills_are_asked_of_the_last_question() -> None:
    chat = Chat(messages=messages("u old", "a b", "u the new question"))
    (prompt,) = skill_messages(chat, SPEC, 64)
    assert "the new question" in prompt.content
    assert "Keywords:" in prompt.content
    assert "old" not in prompt.content


def test_long_texts_are_cut_to_the_context() -> None:
    chat = Chat(messages=messages("u " + "x" * 100_000))
    assert len(skill_messages(chat, SPEC, 64)[0].content) < 3 * SPEC.max_model_len
    short = Chat(messages=messages("u why?"))
    (final,) = final_messages(short, ["y" * 100_000, "brief"], SPEC, 500)
    assert len(final.content) <= 3 * SPEC.max_model_len
    assert "brief" in final.content
    assert len(final_messages(short, ["y" * 100_000], SPEC, 500, limit=50)[0].content) < 600


def test_equal_conversations_have_one_id() -> None:
    one, two = Chat(messages=messages("u q")), Chat(messages=messages("u q"), n=2)
    assert one.id == two.id != Chat(messages=messages("u r")).id
