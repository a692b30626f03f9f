"""From a question to what an expert is asked: identity, seed and sampling of a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from symoe_ray.core import ExpertSpec, Message, Question, Request, Sampling
from symoe_ray.fingerprints import digest, seed_of
from symoe_ray.prompts import aggregate_messages, answer_messages, fit_responses

CHARACTERS_PER_TOKEN = 3


def make_request(
    spec: ExpertSpec, question_id: str, messages: Sequence[Message], sampling: Sampling, *, run_seed: int, n: int = 1
) -> Request:
    """A request whose id is the fingerprint of all that its text follows from.

    The id depends on the question, expert, prompt, sampling, model, revision, adapter, chat template and what it is
    rendered with, server and run seed; not on `n`, so that more samples of the same request extend those that are
    there. Sample i has the seed hash(run seed, question, expert) + i.
    """
    identity = digest(
        question_id, spec.name, [asdict(m) for m in messages], sampling.facts,
        spec.model, spec.revision, spec.chat_template, spec.add_bos, spec.max_model_len, spec.lora, run_seed,
        *([spec.server.identity] if spec.is_remote else []), *filter(None, [dict(spec.chat_template_kwargs)]),
    )  # fmt: skip
    return Request(
        id=identity, question_id=question_id, expert=spec.name, messages=tuple(messages), sampling=sampling,
        seed=seed_of(run_seed, question_id, spec.name), n=n,
    )  # fmt: skip


def answer_request(spec: ExpertSpec, question: Question, *, run_seed: int, max_tokens: int = 0, n: int = 1) -> Request:
    """An expert's request to answer a question (method, steps 2 and 5): the same prompt and sampling in both."""
    sampling = capped(spec.sampling, max_tokens)
    return make_request(spec, question.id, answer_messages(question), sampling, run_seed=run_seed, n=n)


def aggregate_request(
    spec: ExpertSpec,
    question: Question,
    responses: Sequence[str],
    *,
    run_seed: int,
    max_tokens: int = 0,
    limit: int = 0,
) -> tuple[Request, int]:
    """An aggregator's request to write the final answer (method, steps 3 and 6), and how many responses were cut.

    Half of the context at most is kept for the answer; the longest responses are cut in the middle until the rest holds
    them, a token taken as three characters. `limit` > 0 bounds the responses' characters further.
    """
    sampling = capped(spec.sampling, max_tokens)
    overhead = sum(len(m.content) for m in aggregate_messages(question, [""] * len(responses)))
    answer = min(sampling.max_tokens, spec.max_model_len // 2)
    room = max(300, (spec.max_model_len - answer) * CHARACTERS_PER_TOKEN - overhead)
    shown, cut = fit_responses(responses, min(room, limit) if limit else room)
    messages = aggregate_messages(question, shown)
    return make_request(spec, question.id, messages, sampling, run_seed=run_seed), cut


def capped(sampling: Sampling, max_tokens: int) -> Sampling:
    """The sampling with at most that many tokens (0: as it is)."""
    return replace(sampling, max_tokens=min(sampling.max_tokens, max_tokens)) if max_tokens else sampling


def samples_wanted(seats: Sequence[Sequence[str]], everyone: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many samples of each expert a question needs, so that every method finds its own.

    `seats` are the experts drawn by each method (an expert's j-th seat takes its sample j); `everyone` is what the
    other baselines want of each expert. Samples are shared: the largest wish decides.
    """
    wanted: dict[str, int] = dict(everyone or {})
    for drawn in seats:
        for expert, count in Counter(drawn).items():
            wanted[expert] = max(wanted.get(expert, 0), count)
    return {expert: count for expert, count in sorted(wanted.items()) if count}


def seat_samples(experts: Sequence[str]) -> list[tuple[str, int]]:
    """The (expert, sample) of each seat: an expert's j-th seat takes its sample j."""
    seen: Counter[str] = Counter()
    seats = []
    for expert in experts:
        seats.append((expert, seen[expert]))
        seen[expert] += 1
    return seats
