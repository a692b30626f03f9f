"""The life of one live question: annotated, recruited, answered by the recruits, written by the aggregator.

What happens comes out as events, in order; the last one is `Answered`. Nothing here knows how engines are reached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import numpy as np

from symoe_ray.core import Completion, Draft, ExpertSpec, Failure, Message, Profile, Recruitment, Sampling
from symoe_ray.grading import strip_reasoning
from symoe_ray.requests import make_request, samples_wanted, seat_samples
from symoe_ray.routing import Router
from symoe_ray.serving.asking import Ask, Engines, Grown, RefusedError, Reply
from symoe_ray.serving.chat import Chat, final_messages, plain, skill_messages
from symoe_ray.serving.events import Answered, Drafted, Event, QuestionFailedError, Recruited, StageUsage, Started
from symoe_ray.serving.reasoning import Reasoning, split_reasoning
from symoe_ray.settings import AggregateSettings, AnnotateSettings, ServeSettings
from symoe_ray.skills import consistent_skills, map_skills


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What the endpoint knows from a run, and the rules it follows. `embed` turns texts into vectors; it may block."""

    experts: Mapping[str, ExpertSpec]
    profiles: Sequence[Profile]
    known_skills: Sequence[str]
    router: Router
    kept: Collection[str]
    annotator: str
    aggregator: str
    annotate: AnnotateSettings
    aggregate: AggregateSettings
    serve: ServeSettings
    embed: Callable[[Sequence[str]], np.ndarray]


@dataclass(slots=True)
class _Account:
    """What the stages have cost so far, and what went wrong."""

    usage: dict[str, StageUsage] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    reasoning: dict[int, str] = field(default_factory=dict)

    def add(self, stage: str, replies: Sequence[Reply], started: float) -> None:
        self.usage[stage] = StageUsage(
            prompt_tokens=sum(r.prompt_tokens for r in replies),
            completion_tokens=sum(r.completion_tokens for r in replies),
            seconds=time.monotonic() - started,
        )


def skills_of(profiles: Sequence[Profile]) -> tuple[str, ...]:
    """The skills that profiles know, in order."""
    return tuple(sorted({skill for profile in profiles for skill in profile.scores}))


async def answer_question(
    chat: Chat, method: Method, engines: Engines, *, seed: int, aggregator: str = "", stream: bool = False
) -> AsyncGenerator[Event, None]:
    """A conversation's answer by the whole method. `Grown` tells the aggregator's text as it is written if `stream`.

    RefusedError where the question is not let in, QuestionFailedError where nothing comes of it.
    """
    await engines.admit(method.annotator)
    account = _Account()
    yield Started(stage="annotate", experts=(method.annotator,))
    skills = await _annotated(chat, method, engines, seed, account)
    recruitment = await asyncio.to_thread(_recruited, chat.id, skills, method)
    yield Recruited(recruitment=recruitment)
    yield Started(stage="answer", experts=recruitment.experts)
    by_seat: dict[tuple[str, int], Draft] = {}
    async with aclosing(_drafted(chat, recruitment, method, engines, seed, account)) as answers:
        async for drafted in answers:
            by_seat |= {(d.expert, d.sample): d for d in drafted.drafts}
            yield drafted
    drafts = [by_seat[seat] for seat in seat_samples(recruitment.experts)]
    usable = [d for d in drafts if d.failure is None and d.text.strip()]
    if len(usable) < max(1, method.aggregate.min_experts):
        raise _no_drafts(drafts, len(usable), method.aggregate.min_experts)
    spec = method.experts[aggregator or method.aggregator]
    yield Started(stage="aggregate", experts=(spec.name,))
    sampling = chat.sampling(spec, method.serve.max_tokens)
    limit = method.aggregate.max_draft_characters
    messages = final_messages(chat, [d.text for d in usable], spec, sampling.max_tokens, limit)
    ask = _ask(chat, spec, messages, sampling, seed, n=chat.n, stream=stream)
    async with aclosing(
        _written(ask, spec, engines, method.serve.aggregate_timeout_s, "aggregate", account)
    ) as written:
        async for came in written:
            if isinstance(came, Grown):
                yield came
            else:
                yield Answered(
                    completions=came.completions, usage=account.usage, recruitment=recruitment, drafts=tuple(drafts),
                    aggregator=spec.name, warnings=tuple(account.warnings), reasoning=account.reasoning,
                )  # fmt: skip


async def answer_alone(
    chat: Chat, method: Method, engines: Engines, expert: str, *, seed: int, stream: bool = False
) -> AsyncGenerator[Event, None]:
    """One expert's own answer to a conversation."""
    await engines.admit(expert)
    account, spec = _Account(), method.experts[expert]
    yield Started(stage="answer", experts=(expert,))
    ask = _ask(
        chat, spec, plain(chat.messages), chat.sampling(spec, method.serve.max_tokens), seed, n=chat.n, stream=stream
    )
    async with aclosing(_written(ask, spec, engines, method.serve.answer_timeout_s, "answer", account)) as written:
        async for came in written:
            if isinstance(came, Grown):
                yield came
            else:
                yield Answered(completions=came.completions, usage=account.usage, reasoning=account.reasoning)


async def _annotated(chat: Chat, method: Method, engines: Engines, seed: int, account: _Account) -> tuple[str, ...]:
    """The question's skills; none where the annotator fails, which the recruiting can do without."""
    started, rules, spec = time.monotonic(), method.annotate, method.experts[method.annotator]
    sampling = replace(spec.sampling, max_tokens=rules.sampling_max_tokens)
    ask = _ask(chat, spec, skill_messages(chat, spec, sampling.max_tokens), sampling, seed, n=rules.samples)
    ask = replace(ask, json_schema="")
    try:
        reply = await asyncio.wait_for(_reply(ask, engines), method.serve.annotate_timeout_s)
    except (TimeoutError, RefusedError) as error:
        if isinstance(error, RefusedError) and error.kind == "overloaded":
            raise
        why = str(error) or f"no answer within {method.serve.annotate_timeout_s:.0f} s"
        account.warnings.append(f"annotator {spec.name}: {why}")
        account.add("annotate", [], started)
        return ()
    account.add("annotate", [reply], started)
    account.warnings += [f"annotator {spec.name}: {c.failure.message}" for c in reply.completions[:1] if c.failure]
    texts = [c.text for c in reply.completions if c.failure is None]
    return consistent_skills(texts, min_count=rules.min_count, max_characters=rules.max_characters)


def _recruited(question_id: str, skills: Sequence[str], method: Method) -> Recruitment:
    """Who answers. The question and its skills decide, not the seed of its answer."""
    mapping = map_skills(skills, method.known_skills, method.embed)
    return method.router.recruit([(question_id, skills)], mapping, kept=method.kept).recruitment(0)


async def _drafted(
    chat: Chat, recruitment: Recruitment, method: Method, engines: Engines, seed: int, account: _Account
) -> AsyncGenerator[Drafted, None]:
    """What the recruited experts answer, each as it comes; who is late is left out."""
    started, replies = time.monotonic(), []
    asked: dict[asyncio.Task[Reply], tuple[str, int]] = {}
    for expert, n in samples_wanted([recruitment.experts]).items():
        spec = method.experts[expert]
        sampling = replace(spec.sampling, max_tokens=min(spec.sampling.max_tokens, method.serve.max_tokens))
        ask = replace(_ask(chat, spec, plain(chat.messages), sampling, seed, n=n), json_schema="")
        asked[asyncio.create_task(_reply(ask, engines))] = expert, n
    try:
        pending, deadline = set(asked), started + method.serve.answer_timeout_s
        while pending:
            left_s = max(0.0, deadline - time.monotonic())
            done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done or pending:
                expert, n = asked[task]
                reply = _settled(task, n, method.serve.answer_timeout_s)
                replies.append(reply)
                account.warnings += [
                    f"expert {expert}: {c.failure.message}" for c in reply.completions[:1] if c.failure
                ]
                drafts = tuple(_draft(chat.id, method.experts[expert], c) for c in reply.completions)
                yield Drafted(expert=expert, drafts=drafts, seconds=time.monotonic() - started)
            if not done:
                break
    finally:
        for task in asked:
            task.cancel()
    account.add("answer", replies, started)


def _settled(task: asyncio.Task[Reply], n: int, timeout_s: float) -> Reply:
    """What an expert's task came to, its failure as data."""
    if not task.done():
        failure = Failure(boundary="serve", kind="timeout", message=f"no answer within {timeout_s:.0f} s")
    elif isinstance(error := task.exception(), RefusedError):
        failure = Failure(boundary="pool", kind=error.kind, message=str(error), retryable=True)
    else:
        return task.result()
    return Reply(completions=tuple(Completion(request_id="", index=i, failure=failure) for i in range(n)), seconds=0.0)


def _draft(question_id: str, spec: ExpertSpec, completion: Completion) -> Draft:
    text, truncated = strip_reasoning(completion.text, spec.think_end_token)
    return Draft(
        question_id=question_id, expert=spec.name, sample=completion.index, text=text, truncated=truncated,
        failure=completion.failure,
    )  # fmt: skip


def _no_drafts(drafts: Sequence[Draft], usable: int, wanted: int) -> QuestionFailedError:
    kinds = {d.failure.kind for d in drafts if d.failure is not None}
    if kinds == {"prompt_too_long"}:
        return QuestionFailedError("prompt_too_long", next(d.failure.message for d in drafts if d.failure))
    why = "; ".join(dict.fromkeys(f"{d.expert}: {d.failure.message}" for d in drafts if d.failure is not None))
    return QuestionFailedError(
        "experts_failed", f"{usable} of {len(drafts)} experts answered, {max(1, wanted)} must: {why or 'empty answers'}"
    )


async def _written(
    ask: Ask, spec: ExpertSpec, engines: Engines, timeout_s: float, stage: str, account: _Account
) -> AsyncGenerator[Grown | Reply, None]:
    """What one expert writes, within a time, reasoning kept apart; QuestionFailedError where nothing comes of it."""
    started, end_token = time.monotonic(), spec.think_end_token
    thoughts: dict[int, Reasoning] = {}
    async with aclosing(engines.ask(ask)) as stream:
        while True:
            left_s = started + timeout_s - time.monotonic()
            try:
                came = await asyncio.wait_for(anext(stream), max(0.0, left_s))
            except TimeoutError:
                raise QuestionFailedError("timeout", f"{ask.request.expert}: not done in {timeout_s:.0f} s") from None
            if isinstance(came, Reply):
                break
            yield _apart(came, thoughts, end_token) if end_token else came
    account.add(stage, [came], started)
    failure = next((c.failure for c in came.completions if c.failure is not None), None)
    if failure is not None:
        raise QuestionFailedError(failure.kind, f"{ask.request.expert}: {failure.message}")
    if end_token:
        halves = {c.index: split_reasoning(c.text, end_token, c.finish_reason) for c in came.completions}
        account.reasoning = {index: reasoning for index, (reasoning, _) in halves.items()}
        came = replace(came, completions=tuple(replace(c, text=halves[c.index][1]) for c in came.completions))
    yield came


def _apart(grown: Grown, thoughts: dict[int, Reasoning], end_token: str) -> Grown:
    """What has grown, reasoning and answer apart."""
    halves = [(i, *thoughts.setdefault(i, Reasoning(end_token)).add(text)) for i, text in grown.texts]
    return Grown(
        texts=tuple((i, answer) for i, _, answer in halves if answer),
        reasoning=tuple((i, reasoning) for i, reasoning, _ in halves if reasoning),
    )


async def _reply(ask: Ask, engines: Engines) -> Reply:
    async with aclosing(engines.ask(ask)) as stream:
        async for came in stream:
            if isinstance(came, Reply):
                return came
    raise AssertionError("a request ended without a reply")


def _ask(
    chat: Chat, spec: ExpertSpec, messages: tuple[Message, ...], sampling: Sampling, seed: int, *, n: int,
    stream: bool = False,
) -> Ask:  # fmt: skip
    request = make_request(spec, chat.id, messages, sampling, run_seed=seed, n=n)
    return Ask(request=request, stream=stream, json_schema=chat.json_schema)
