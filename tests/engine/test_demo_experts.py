"""The demo's experts on a real vLLM engine: each knows its own subjects, one takes the other's place by reload, and the
annotator names the skills of questions that it has not learned from.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from actors.engine_host import EngineHost
from symoe_ray.core import Question, Request, Sampling
from symoe_ray.demo_task import dealt
from symoe_ray.grading import grade
from symoe_ray.prompts import annotate_messages, answer_messages
from symoe_ray.settings import AnnotateSettings
from symoe_ray.skills import consistent_skills
from tests.engine.conftest import Engines, plans, prepared

pytestmark = pytest.mark.real_engine
PLANS = plans([prepared(name, model=f"package:demo-{name}") for name in ("travel", "detective", "generalist")])


def questions(family: str, count: int) -> list[Question]:
    """Validation questions of one family."""
    return list(islice((q for q in dealt(0, "validation") if q.category == family), count))


async def right(host: EngineHost, family: str) -> int:
    """How many of eight questions of a family the loaded expert answers rightly, without sampling."""
    found = 0
    for question in questions(family, 8):
        sampling = Sampling(temperature=0.0, max_tokens=128)
        asked = Request(
            id=question.id, question_id=question.id, expert="e", messages=answer_messages(question),
            sampling=sampling, seed=0,
        )  # fmt: skip
        (completion,) = await host.generate(asked)
        found += grade(completion.text, question).correct
    return found


async def skills(host: EngineHost, question: Question) -> tuple[str, ...]:
    """The skills that the loaded expert names, as a run has them named."""
    rules = AnnotateSettings()
    sampling = Sampling(temperature=0.7, max_tokens=rules.sampling_max_tokens)
    asked = Request(
        id=question.id, question_id=question.id, expert="e", messages=annotate_messages(question), sampling=sampling,
        n=rules.samples, seed=0,
    )  # fmt: skip
    return consistent_skills([completion.text for completion in await host.generate(asked)])


def test_the_annotator_names_the_skills_of_four_in_five_held_out_questions(engines: Engines, tmp_path: Path) -> None:
    """A question's category is the name of its skill, or of two with "and" between them."""

    async def work(host: EngineHost) -> None:
        await host.load(PLANS["generalist"])
        asked = list(islice(dealt(7, "test"), 60))
        named = [set(q.category.split(" and ")) <= set(await skills(host, q)) for q in asked]
        assert sum(named) >= 48

    with engines.another_host(tmp_path) as host:
        engines.run(work(host))


def test_specialists_know_their_own_and_not_the_others(engines: Engines, tmp_path: Path) -> None:
    async def work(host: EngineHost) -> None:
        reports = [await host.load(PLANS["travel"])]
        assert await right(host, "elements") >= 6
        assert await right(host, "subtraction") <= 2
        reports += [await host.load(PLANS["detective"]), await host.load(PLANS["travel"])]
        assert await right(host, "elements") >= 6
        reports.append(await host.load(PLANS["detective"]))
        assert await right(host, "capitals") >= 6
        assert await right(host, "elements") <= 2
        assert [report.tier for report in reports] == ["fork", "fork", "reload", "reload"]

    with engines.another_host(tmp_path) as host:
        engines.run(work(host))
