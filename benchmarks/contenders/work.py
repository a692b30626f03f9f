"""What the contenders are asked: questions of the generated task, as this project asks them, answered greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contenders.models import Variant, folder_of
from benchmarks.contenders.peers import Task
from symoe_ray.core import ExpertSpec, Question, Request, Sampling
from symoe_ray.demo_task import generate
from symoe_ray.prompts import answer_messages
from symoe_ray.requests import make_request
from symoe_ray.settings import DemoTask

MAX_MODEL_LEN = 1024
MOST_SURPLUS = 0.02

Work = Mapping[str, Sequence[Request]]  # expert -> its requests


class UnequalWorkError(RuntimeError):
    """A contender did not generate what the others did, so that its time means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tokens of a contender's work."""

    prompt: int
    completion: int


def expert_of(variant: Variant, max_tokens: int) -> ExpertSpec:
    """The expert that a variant is, decoding greedily."""
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    return ExpertSpec(name=variant.name, model=str(folder_of(variant)), max_model_len=MAX_MODEL_LEN, sampling=sampling)


def questions(count: int) -> tuple[Question, ...]:
    """The first questions of the generated task, all different."""
    return generate(DemoTask(seed=0, validation=0, test=count))[1]


def requests_of(spec: ExpertSpec, asked: Sequence[Question]) -> list[Request]:
    """One request per question."""
    return [make_request(spec, q.id, answer_messages(q), spec.sampling, run_seed=0) for q in asked]


def task_of(spec: ExpertSpec, requests: Sequence[Request]) -> Task:
    """The same work for a peer."""
    conversations = tuple(tuple({"role": m.role, "content": m.content} for m in r.messages) for r in requests)
    return Task(model=spec.model, conversations=conversations, max_tokens=spec.sampling.max_tokens)


def check_equal(who: str, counts: Counts, expected: Counts) -> None:
    """UnequalWorkError where a contender's tokens differ by more than a few percent from those expected."""
    for kind, had, wanted in (
        ("prompt", counts.prompt, expected.prompt),
        ("completion", counts.completion, expected.completion),
    ):
        if abs(had - wanted) > MOST_SURPLUS * wanted:
            raise UnequalWorkError(f"{who} worked on {had} {kind} tokens, others on {wanted}")
