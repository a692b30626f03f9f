"""One self-contained HTML page about a run: no network, no build step, readable without JavaScript.

The page carries a content security policy that forbids all loading and every script but its own, by hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypedDict

from jinja2 import Environment, PackageLoader, StrictUndefined

from symoe_ray.timeline import Event, build_timeline, duration, engine_rows

_SKILLS_SHOWN = 20
_HUE_STEP = 137.508  # The golden angle: neighbouring experts get hues far apart, however many there are.


class DraftRow(TypedDict):
    """One seat's answer; `correct` None where gold is unknown, `failure` "" where there is none."""

    expert: str
    answer: str
    correct: bool | None
    text: str
    truncated: bool
    failure: str


class QuestionRow(TypedDict):
    """One question to browse. `text` and `value` are the final answer, `method` says how it came about.

    `mapped` has one entry per skill, `weights` one per candidate. `correct` is None where gold is unknown.
    """

    id: str
    question: str
    choices: Sequence[str]
    gold: Sequence[str]
    skills: Sequence[str]
    mapped: Sequence[str]
    candidates: Sequence[str]
    weights: Sequence[float]
    experts: Sequence[str]
    drafts: Sequence[DraftRow]
    text: str
    value: str
    correct: bool | None
    method: str
    failure: str


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

    `date` is epoch seconds; `settings` label -> value, in the order to show; `results` what `build_results` made;
    `seats` expert -> seats over all questions, `seats_by_skill` skill -> expert -> seats; `profiles` expert -> skill ->
    score; `aggregators` those measured, `aggregator_reason` which one aggregates and why; `annotation` label -> count;
    `events` as in events.jsonl; `questions` those to browse, out of `questions_total` (the caller limits them);
    `warnings` what the reader must know, `notes` what may help.
    """

    run: str
    date: float
    settings: Mapping[str, object]
    results: Mapping[str, Any]
    seats: Mapping[str, int] = field(default_factory=dict)
    seats_by_skill: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    aggregators: Sequence[AggregatorRow] = ()
    aggregator_reason: str = ""
    annotation: Mapping[str, int] = field(default_factory=dict)
    events: Sequence[Event] = ()
    questions: Sequence[QuestionRow] = ()
    questions_total: int = 0
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """Numbers by skill and expert: `rows` of (skill, one value per column), `peak` the largest magnitude."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    peak: float
    left_out: int


def render(data: ReportData) -> str:
    """The page as HTML text. Everything from `data` is escaped; equal data gives equal text."""
    experts = _experts(data)
    by_skill: dict[str, dict[str, float]] = defaultdict(dict)
    for expert, scores in data.profiles.items():
        for skill, score in scores.items():
            by_skill[skill][expert] = score
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            block=data.results["symoe"],
            verdict=_verdict(data.results),
            hues={expert: round(_HUE_STEP * i + 250) % 360 for i, expert in enumerate(experts)},
            seats=sorted(data.seats.items(), key=lambda item: (-item[1], item[0])),
            seats_matrix=_matrix(data.seats_by_skill),
            profile_matrix=_matrix(by_skill),
            aggregators=_by_accuracy(data.aggregators),
            timeline=build_timeline(data.events),
            engines=engine_rows(data.events),
            questions=[(question, _marks(question)) for question in data.questions],
            filters=_filters(data.questions),
        )
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
        percent=lambda share: f"{100 * share:.1f}",
        points=lambda share: f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}"),
        signed=lambda number: f"{number:+g}".replace("-", "\N{MINUS SIGN}"),
        count=lambda number: f"{number:,.0f}",
        duration=duration,
        p_value=lambda p: "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}",
        day=lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        letter=lambda position: "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[position],
        csp_hash=_csp_hash,
    )
    return environment


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def _experts(data: ReportData) -> list[str]:
    """All experts by name, so that one keeps its colour over the page."""
    names = {*data.seats, *data.profiles, *(row.expert for row in data.aggregators)}
    names |= {str(event["expert"]) for event in data.events if event.get("expert")}
    names |= {draft["expert"] for question in data.questions for draft in question["drafts"]}
    return sorted(names)


def _verdict(results: Mapping[str, Any]) -> str:
    """One sentence on whether the pool is ahead of its best expert, no stronger than the interval allows."""
    pair = results["symoe"]["paired"].get("symoe_vs_best_single")
    if pair is None:
        return ""
    low, high = pair["ci95"]
    if low > 0:
        return "Ahead of the best single expert."
    if high < 0:
        return "Behind the best single expert."
    detectable = pair.get("smallest_detectable")
    if detectable is None:
        return "Not distinguishable from the best single expert: too few questions to tell any difference."
    return (
        "Not distinguishable from the best single expert on these questions, which can show differences "
        f"of {100 * detectable:.1f} points or more (80% power)."
    )


def _matrix(values: Mapping[str, Mapping[str, float]]) -> _Matrix:
    """The skills with the largest sum of magnitudes, ties by name."""
    columns = tuple(sorted({expert for row in values.values() for expert in row}))
    order = sorted(values, key=lambda skill: (-sum(map(abs, values[skill].values())), skill))
    rows = tuple((skill, tuple(values[skill].get(e, 0) for e in columns)) for skill in order[:_SKILLS_SHOWN])
    return _Matrix(
        columns=columns,
        rows=rows,
        peak=max((abs(value) for _, row in rows for value in row), default=0) or 1,
        left_out=len(order) - len(rows),
    )


def _by_accuracy(rows: Sequence[AggregatorRow]) -> list[AggregatorRow]:
    """Best first; those that were graded on nothing have no accuracy and are left out."""
    return sorted((row for row in rows if row.graded), key=lambda row: (-row.correct / row.graded, row.expert))


def _marks(question: QuestionRow) -> list[str]:
    """The filters that a question falls under; a failed one counts as wrong, as it does in the accuracy."""
    marks = []
    if question["correct"] is not None:
        marks.append("right" if question["correct"] else "wrong")
        if not question["correct"] and any(draft["correct"] for draft in question["drafts"]):
            marks.append("missed")
    return [*marks, "failed"] if question["failure"] else marks


def _filters(questions: Sequence[QuestionRow]) -> list[tuple[str, str, int]]:
    """(value, label, how many) of each filter."""
    labels = {"right": "Right", "wrong": "Wrong", "missed": "Wrong, though a draft was right", "failed": "Failed"}
    marks = [_marks(question) for question in questions]
    return [("all", "All", len(questions)), *((m, label, sum(m in q for q in marks)) for m, label in labels.items())]
