"""A conversation as the endpoint gets it, and the prompts that the method makes of it.

Experts see the conversation itself. Several chat templates refuse a system role, or two messages of one role in a row,
so instructions are put in front of the first user message and neighbours are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from symoe_ray.core import ExpertSpec, Message, Question, Sampling
from symoe_ray.fingerprints import digest
from symoe_ray.prompts import annotate_messages, fit_responses
from symoe_ray.requests import CHARACTERS_PER_TOKEN

LEAST_CHARACTERS = 300
WISHES = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What a user asks for. None and () leave the model's own value; `json_schema` is JSON text ("": free text)."""

    messages: tuple[Message, ...]
    n: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: str = ""

    @property
    def id(self) -> str:
        """What the conversation is known by: equal conversations are recruited alike."""
        return digest([[m.role, m.content] for m in self.messages])

    def sampling(self, spec: ExpertSpec, most_tokens: int) -> Sampling:
        """An expert's sampling with the user's wishes, and at most so many tokens."""
        own = spec.sampling
        most = own.max_tokens if self.max_tokens is None else self.max_tokens
        wished = {name: value for name in WISHES if (value := getattr(self, name)) is not None}
        return replace(own, max_tokens=min(most, most_tokens), stop=own.stop + self.stop, **wished)


def plain(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation as user and assistant in turn, beginning and ending with the user."""
    instructions = "\n\n".join(m.content for m in messages if m.role == "system")
    turns: list[Message] = []
    for message in messages:
        if message.role == "system":
            continue
        if turns and turns[-1].role == message.role:
            turns[-1] = Message(role=message.role, content=f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(message)
    if turns and turns[0].role == "assistant":
        turns.insert(0, Message(role="user", content=""))
    if not turns or turns[-1].role == "assistant":
        turns.append(Message(role="user", content=""))
    if instructions:
        turns[0] = Message(role="user", content=f"{instructions}\n\n{turns[0].content}".strip())
    return tuple(turns)


def skill_messages(chat: Chat, spec: ExpertSpec, answer_tokens: int) -> tuple[Message, ...]:
    """Asks for the skills that the last question needs (method, step 1), cut in the middle to fit the annotator."""
    text = next((m.content for m in reversed(chat.messages) if m.role == "user"), chat.messages[-1].content)
    (shown,), _ = fit_responses([text], _room(spec, answer_tokens, LEAST_CHARACTERS))
    return annotate_messages(Question(id=chat.id, text=shown, kind="integer", task=""))


def final_messages(
    chat: Chat, drafts: Sequence[str], spec: ExpertSpec, answer_tokens: int, limit: int = 0
) -> tuple[Message, ...]:
    """Asks for the final answer out of the experts' drafts (method, step 6): the conversation, its last turn replaced.

    The longest drafts are cut in the middle until all fits; `limit` > 0 bounds their characters further.
    """
    *before, last = plain(chat.messages)
    overhead = sum(len(m.content) for m in before) + len(_final("", last.content))
    room = _room(spec, answer_tokens, overhead)
    shown, _ = fit_responses(drafts, min(room, limit) if limit else room)
    listed = "\n\n".join(f"### Response {number}\n{text.strip()}" for number, text in enumerate(shown, 1))
    return (*before, Message(role="user", content=_final(listed, last.content)))


def _final(listed: str, question: str) -> str:
    return (
        "Several experts have answered the message below, independently of each other. Any of them may be wrong, and "
        "so may most of them. Check their reasoning, keep what is sound, and write your own answer to the message, in "
        "the form that it asks for. Do not mention the experts.\n\n"
        f"{listed}\n\n### Message\n{question}"
    )


def _room(spec: ExpertSpec, answer_tokens: int, overhead: int) -> int:
    """Characters that a context has left beside an answer, of which half the context is kept at most."""
    answer = min(answer_tokens, spec.max_model_len // 2)
    return max(LEAST_CHARACTERS, (spec.max_model_len - answer) * CHARACTERS_PER_TOKEN - overhead)
