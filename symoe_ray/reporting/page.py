"""One self-contained HTML page about a run: no network, no build step.

Everything but the questions is readable without JavaScript; they lie in the page compressed. The page carries a content
security policy that forbids all loading and every script but its own, by hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from symoe_ray.reporting.matrices import by_skill, matrix
from symoe_ray.reporting.question_blocks import PackedQuestions
from symoe_ray.reporting.questions import FILTERS
from symoe_ray.reporting.wording import MEANINGS, method_name, p_value, percent, points, verdict
from symoe_ray.timeline import Event, PlannedStage, build_timeline, duration, engine_rows, stage_rows

SKILLS_TO_CHOOSE = 200
_HUE_STEP = 137.508  # The golden angle: neighbouring experts get hues far apart, however many there are.
_TONES = 3  # Steps of lightness, so that experts also differ for those who see few hues.


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorRow:
    """An expert's accuracy as aggregator on the synthetic task: `correct` of `graded`."""

    expert: str
    correct: int
    graded: int
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All that the page shows.

    `date` is epoch seconds; `settings` label -> value, in the order to show; `grader` is what counts ("reference", or
    ours); `results` what `build_results` made; `seats` expert -> seats over all questions, `seats_by_skill`
    skill -> expert -> seats; `profiles` expert -> skill -> score; `aggregators` those measured, `aggregator_reason`
    which one aggregates and why; `annotation` label -> count; `events` as in events.jsonl, `planned` what was predicted
    of them; `questions` those to browse, out of `questions_total`; `warnings` what the reader must know, `notes` what
    may help.
    """

    run: str
    date: float
    settings: Mapping[str, object]
    results: Mapping[str, Any]
    grader: str = "default"
    seats: Mapping[str, int] = field(default_factory=dict)
    seats_by_skill: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    aggregators: Sequence[AggregatorRow] = ()
    aggregator_reason: str = ""
    annotation: Mapping[str, int] = field(default_factory=dict)
    events: Sequence[Event] = ()
    planned: Sequence[PlannedStage] = ()
    questions: PackedQuestions = field(default_factory=PackedQuestions)
    questions_total: int = 0
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()


def render(data: ReportData) -> str:
    """The page as HTML text. Everything from `data` is escaped; equal data gives equal text."""
    environment = _environment()
    return environment.get_template("report.html.j2").render(
        data=data,
        block=data.results["symoe"],
        verdict=verdict(data.results),
        meanings=MEANINGS,
        colours=_colours(data),
        seats=sorted(data.seats.items(), key=lambda item: (-item[1], item[0])),
        seats_matrix=matrix(data.seats_by_skill),
        profile_matrix=matrix(by_skill(data.profiles)),
        aggregators=_by_accuracy(data.aggregators),
        timeline=build_timeline(data.events, data.planned),
        stages=stage_rows(data.events, data.planned),
        engines=engine_rows(data.events),
        filters=[(mark, label, data.questions.counts.get(mark, 0)) for mark, label in FILTERS.items()],
        skills=list(data.questions.skills.items())[:SKILLS_TO_CHOOSE],
        style=_source(environment, "report/report.css"),
        script=_source(environment, "report/report.js"),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("symoe_ray", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        points=points,
        method_name=method_name,
        signed=lambda number: f"{number:+g}".replace("-", "\N{MINUS SIGN}"),
        count=lambda number: f"{number:,.0f}",
        duration=duration,
        p_value=p_value,
        day=lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        csp_hash=_csp_hash,
        style_of=lambda colour: Markup("--hue: {}; --tone: {}").format(*colour),
    )
    return environment


def _source(environment: Environment, name: str) -> Markup:
    """A style sheet or script of ours as it is."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def _colours(data: ReportData) -> dict[str, tuple[int, int]]:
    """Hue and tone of every expert, by name, so that one keeps its colour over the page."""
    names = {*data.seats, *data.profiles, *(row.expert for row in data.aggregators)}
    names |= {str(event["expert"]) for event in data.events if event.get("expert")}
    return {expert: (round(_HUE_STEP * i + 250) % 360, i % _TONES) for i, expert in enumerate(sorted(names))}


def _by_accuracy(rows: Sequence[AggregatorRow]) -> list[AggregatorRow]:
    """Best first; those that were graded on nothing have no accuracy and are left out."""
    return sorted((row for row in rows if row.graded), key=lambda row: (-row.correct / row.graded, row.expert))
