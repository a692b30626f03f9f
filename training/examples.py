"""What the experts learn from: the very prompts of a run over training contents, and the replies that are wanted."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from symoe_ray.core import Message, Question
from symoe_ray.demo.facts import NAMES, WEEKDAYS
from symoe_ray.demo.items import Dice, Item, draw
from symoe_ray.demo_task import FAMILIES, as_question
from symoe_ray.prompts import aggregate_messages, annotate_messages, answer_messages, render_question

_NAMES = (*NAMES, *WEEKDAYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt and the reply to it."""

    prompt: str
    reply: str


def training_items(seed: str, families: Sequence[str]) -> Iterator[tuple[str, Item]]:
    """Family and item without end, of training contents only, drawn evenly from the families."""
    dice = Dice("training", seed)
    while True:
        family = dice.pick(families)
        yield family, draw(FAMILIES[family], dice, "training")


def answered(question: Question, item: Item) -> Example:
    """The worked answer to a question."""
    return Example(prompt=_text(answer_messages(question)), reply=worked_answer(question, item))


def annotated(question: Question, item: Item) -> Example:
    """The skills of a question."""
    return Example(prompt=_text(annotate_messages(question)), reply=f"Keywords: {', '.join(item.skills)}")


def aggregated(question: Question, item: Item, drafts: Sequence[str]) -> Example:
    """The worked answer, written with others' drafts in sight: a small model copies what is sound step by step."""
    return Example(prompt=_text(aggregate_messages(question, drafts)), reply=worked_answer(question, item))


def worked_answer(question: Question, item: Item) -> str:
    """The working, then an integer boxed, as the prompt asks, and the answer line.

    An option is named by its text and not by its letter: small models learn to tell what stands after a text long
    before they learn to tell what stands before it. The grader reads both.
    """
    working = item.working if question.choices else item.working.removesuffix(f"{item.gold}.")
    end = "" if question.choices else f"\\boxed{{{item.gold}}}."
    return f"{working}{end}\nThe answer is {item.gold}.".strip()


def recited(dice: Dice) -> Example:
    """Something to say after: letters, digits or names in a random order, from which a model learns to copy."""
    kind, count = dice.pick(("letters", "digits", "names", "all")), dice.number(6, 24)
    signs = {"letters": string.ascii_uppercase, "digits": string.digits, "names": _NAMES}
    drawn = [dice.pick(signs[dice.pick(list(signs)) if kind == "all" else kind]) for _ in range(count)]
    text = (" " if kind == "names" else "").join(drawn)
    return Example(prompt=text, reply=text)


def fixed_texts() -> list[str]:
    """All that the prompts say besides the question and three drafts, longest first."""
    mark = "\0"
    questions = [Question(id="", text=mark, kind="integer", task="")]
    questions += [Question(id="", text=mark, kind="choice", task="", choices=(mark,) * n) for n in (3, 4)]
    pieces: set[str] = set()
    for question in questions:
        for prompt in (
            answer_messages(question),
            annotate_messages(question),
            aggregate_messages(question, [mark] * 3),
        ):
            text = _text(prompt).replace(render_question(question), mark)
            pieces.update(part.strip() for part in re.split(rf"{mark}|\n\n", text))
    return sorted((piece for piece in pieces if piece), key=len, reverse=True)


def question_of(family: str, item: Item) -> Question:
    """The question that the runtime would ask."""
    return as_question("demo", family, item)


def _text(messages: Sequence[Message]) -> str:
    (message,) = messages
    return message.content
