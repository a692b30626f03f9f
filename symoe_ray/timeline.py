"""What every slot did when, from the events of a run, beside what was predicted: geometry for the report's timeline,
and totals per expert and stage.

An event is written when it is over, so it covers [t - seconds, t]. Attempts of a resumed run are laid end to end. All
positions are percent of the whole length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from symoe_ray.stage_sizes import stages_of

Event = Mapping[str, Any]

_LOADING = frozenset({"load", "wake", "reload"})
_SHOWN = _LOADING | {"generate", "prefetch", "crash"}
_MERGE_BELOW = 0.002  # Of the whole length: chunks of one expert closer than this are drawn as one bar.
_STEPS_S = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
_MAX_TICKS = 9
_LONGEST_PREDICTION = 2.0  # Times the actual length: what was predicted beyond that is not drawn.


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One stretch of work: `left` and `width` in percent, `row` within its lane (overlapping bars get further rows)."""

    left: float
    width: float
    row: int
    event: str
    expert: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSpan:
    """What a slot was predicted to do from `begin_s` to `end_s` of its stage: `event` is load or generate."""

    slot: str
    event: str
    expert: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage as it was predicted before the run."""

    stage: str
    seconds: float
    spans: tuple[PlannedSpan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One slot (or the stages): its bars, how many rows they need, what was predicted of it, and the shares of the
    actual time generating, loading and idle.
    """

    name: str
    bars: tuple[Bar, ...]
    rows: int
    generating: float
    loading: float
    idle: float
    predicted: tuple[Bar, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Lanes by slot, the stages as a lane of their own, ticks as (percent, label), starts of further attempts.

    `length_s` is what 100 percent stand for, `actual_s` how long the run took; `predicted_s` is 0 without a
    prediction, which is `cut` where the axis ends before it does.
    """

    length_s: float
    actual_s: float
    predicted_s: float
    cut: bool
    stages: Lane
    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    attempts: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """Totals of one expert: loads by tier, seconds spent loading and generating, requests and tokens written."""

    expert: str
    loads: int
    tiers: str
    load_s: float
    generate_s: float
    requests: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage: seconds predicted (None: not predicted) and taken, from its first event's begin to its last one's end,
    over all attempts; its loads, and tokens written.
    """

    stage: str
    predicted_s: float | None
    actual_s: float
    loads: int
    completion_tokens: int


@dataclass(slots=True, kw_only=True)
class _Span:
    start: float
    end: float
    event: str
    expert: str
    stage: str
    slot: str
    tier: str = ""
    requests: int = 0
    tokens: int = 0


def build_timeline(events: Iterable[Event], planned: Sequence[PlannedStage] = ()) -> Timeline | None:
    """The timeline of a run's events, in any order; None where nothing took time. Predicted stages follow each other
    from the first thing that happened.
    """
    shown = [event for event in events if event["event"] in _SHOWN]
    offsets, actual_s = _offsets(shown)
    if actual_s <= 0:
        return None
    spans = sorted((_span(event, offsets) for event in shown), key=lambda span: (span.start, span.end))
    predicted_s, begin_s = sum(stage.seconds for stage in planned), spans[0].start
    length_s = max(actual_s, min(begin_s + predicted_s, _LONGEST_PREDICTION * actual_s))
    by_slot: dict[str, list[_Span]] = defaultdict(list)
    for span in spans:
        by_slot[span.slot].append(span)
    plans = _planned_spans(planned, begin_s, length_s)
    slots = sorted({*by_slot, *plans} - {""}, key=lambda s: (len(s), s))
    return Timeline(
        length_s=length_s,
        actual_s=actual_s,
        predicted_s=predicted_s,
        cut=begin_s + predicted_s > length_s,
        stages=_lane("", _stages(spans, _together(planned)), plans.get("", []), length_s, actual_s),
        lanes=tuple(_lane(slot, by_slot[slot], plans.get(slot, []), length_s, actual_s) for slot in slots),
        ticks=_ticks(length_s),
        attempts=tuple(
            (100 * offset / length_s, f"attempt {attempt}") for attempt, offset in offsets.items() if offset
        ),
    )


def stage_rows(events: Iterable[Event], planned: Sequence[PlannedStage] = ()) -> list[StageRow]:
    """What every stage took, beside what was predicted, in the order in which they first did something.

    Stages that were planned together are one.
    """
    together = _together(planned)
    of_stage: dict[str, list[Event]] = {}
    for event in events:
        if event.get("stage") and event["event"] in _SHOWN:
            stage = str(event["stage"])
            of_stage.setdefault(together.get(stage, stage), []).append(event)
    predicted = {stage.stage: stage.seconds for stage in planned}
    return [_stage_row(stage, own, predicted.get(stage)) for stage, own in of_stage.items()]


def engine_rows(events: Iterable[Event]) -> list[EngineRow]:
    """Totals per expert, by name."""
    of_expert: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["event"] in _LOADING or event["event"] == "generate":
            of_expert[str(event["expert"])].append(event)
    return [_engine_row(expert, of_expert[expert]) for expert in sorted(of_expert)]


def duration(seconds: float) -> str:
    """A length of time for people: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def _offsets(events: Sequence[Event]) -> tuple[dict[int, float], float]:
    """When each attempt begins on the common axis, and the length of all."""
    lengths: dict[int, float] = defaultdict(float)
    for event in events:
        lengths[int(event.get("attempt", 1))] = max(lengths[int(event.get("attempt", 1))], float(event["t"]))
    offsets, total = {}, 0.0
    for attempt in sorted(lengths):
        offsets[attempt] = total
        total += lengths[attempt]
    return offsets, total


def _span(event: Event, offsets: Mapping[int, float]) -> _Span:
    offset = offsets[int(event.get("attempt", 1))]
    end = offset + float(event["t"])
    return _Span(
        start=max(offset, end - float(event.get("seconds") or 0)),
        end=end,
        event=str(event["event"]),
        expert=str(event.get("expert") or ""),
        stage=str(event.get("stage") or ""),
        slot=str(event.get("slot", "")),
        tier=str(event.get("tier") or ""),
        requests=int(event.get("requests") or 0),
        tokens=int(event.get("completion_tokens") or 0),
    )


def _planned_spans(planned: Sequence[PlannedStage], begin_s: float, length_s: float) -> dict[str, list[_Span]]:
    """By slot, and the stages by "": what begins before the axis ends, cut off there."""
    found: dict[str, list[_Span]] = defaultdict(list)
    for stage in planned:
        whole = PlannedSpan(slot="", event="stage", expert=stage.stage, begin_s=0, end_s=stage.seconds)
        for span in (whole, *stage.spans):
            start, end = begin_s + span.begin_s, min(length_s, begin_s + span.end_s)
            if start < end:
                found[span.slot].append(
                    _Span(start=start, end=end, event=span.event, expert=span.expert, stage=stage.stage, slot=span.slot)
                )
        begin_s += stage.seconds
    return found


def _together(planned: Sequence[PlannedStage]) -> dict[str, str]:
    """Stage -> what it was planned as together with others."""
    return {stage: joint.stage for joint in planned for stage in stages_of(joint.stage)}


def _stages(spans: Iterable[_Span], together: Mapping[str, str]) -> list[_Span]:
    stages: dict[str, _Span] = {}
    for span in spans:
        if not span.stage:
            continue
        name = together.get(span.stage, span.stage)
        stage = stages.setdefault(
            name, _Span(start=span.start, end=span.end, event="stage", expert=name, stage=name, slot="")
        )
        stage.start, stage.end = min(stage.start, span.start), max(stage.end, span.end)
    return list(stages.values())


def _lane(name: str, spans: Sequence[_Span], planned: Sequence[_Span], length_s: float, actual_s: float) -> Lane:
    # A prefetch runs beside the work of its slot and is drawn under the rows of that work; a crash is drawn over it.
    work = _merge([span for span in spans if span.event not in ("prefetch", "crash")], _MERGE_BELOW * length_s)
    ends: list[float] = []
    bars = []
    for span in work:
        row = next((i for i, end in enumerate(ends) if span.start >= end - _MERGE_BELOW * length_s), len(ends))
        ends[row : row + 1] = [span.end]
        bars.append(_bar(span, row, length_s))
    bars += [_bar(span, len(ends), length_s) for span in spans if span.event == "prefetch"]
    bars += [_bar(span, 0, length_s) for span in spans if span.event == "crash"]
    return Lane(
        name=name,
        bars=tuple(bars),
        rows=len(ends),
        generating=_covered([s for s in work if s.event == "generate"]) / actual_s,
        loading=_covered([s for s in work if s.event in _LOADING]) / actual_s,
        idle=max(0.0, 1 - _covered(work) / actual_s),
        predicted=tuple(_bar(span, 0, length_s, "predicted: ") for span in planned),
    )


def _merge(spans: Sequence[_Span], gap_s: float) -> list[_Span]:
    merged: list[_Span] = []
    last: dict[tuple[str, str], _Span] = {}
    for span in spans:
        before = last.get((span.expert, span.stage))
        if span.event == "generate" and before and before.event == "generate" and span.start - before.end <= gap_s:
            before.end = max(before.end, span.end)
            before.requests += span.requests
            before.tokens += span.tokens
            continue
        merged.append(span)
        last[span.expert, span.stage] = span
    return merged


def _bar(span: _Span, row: int, length_s: float, prefix: str = "") -> Bar:
    return Bar(
        left=round(100 * span.start / length_s, 3),
        width=round(100 * (span.end - span.start) / length_s, 3),
        row=row,
        event=span.event,
        expert=span.expert,
        title=prefix + _title(span),
    )


def _title(span: _Span) -> str:
    if span.event == "stage":
        return f"{span.stage}: {duration(span.end - span.start)}, from {duration(span.start)}"
    parts = [f"{span.event} ({span.tier})" if span.tier else span.event, duration(span.end - span.start)]
    if span.requests:
        parts.append(f"{span.requests:,} requests")
    if span.tokens:
        parts.append(f"{span.tokens:,} tokens")
    parts.append(f"from {duration(span.start)}")
    if span.stage:
        parts.append(f"stage {span.stage}")
    return f"{span.expert}: " + ", ".join(parts)


def _covered(spans: Sequence[_Span]) -> float:
    """Seconds covered by at least one of the spans, which are in order of their start."""
    total, reached = 0.0, 0.0
    for span in spans:
        total += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return total


def _ticks(length_s: float) -> tuple[tuple[float, str], ...]:
    step = next((step for step in _STEPS_S if length_s / step <= _MAX_TICKS), _STEPS_S[-1])
    return tuple((100 * i * step / length_s, duration(i * step)) for i in range(int(length_s / step) + 1))


def _stage_row(stage: str, events: Sequence[Event], predicted_s: float | None) -> StageRow:
    lengths: dict[int, list[float]] = defaultdict(list)
    for event in events:
        end = float(event["t"])
        lengths[int(event.get("attempt", 1))] += [end - float(event.get("seconds") or 0), end]
    return StageRow(
        stage=stage,
        predicted_s=predicted_s,
        actual_s=sum(max(times) - min(times) for times in lengths.values()),
        loads=sum(event["event"] in _LOADING for event in events),
        completion_tokens=sum(int(event.get("completion_tokens") or 0) for event in events),
    )


def _engine_row(expert: str, events: Sequence[Event]) -> EngineRow:
    loads = [event for event in events if event["event"] in _LOADING]
    generated = [event for event in events if event["event"] == "generate"]
    tiers: dict[str, int] = defaultdict(int)
    for event in loads:
        tiers[str(event.get("tier") or event["event"])] += 1
    return EngineRow(
        expert=expert,
        loads=len(loads),
        tiers=", ".join(f"{tiers[tier]} {tier}" for tier in sorted(tiers)),
        load_s=sum(float(event.get("seconds") or 0) for event in loads),
        generate_s=sum(float(event.get("seconds") or 0) for event in generated),
        requests=sum(int(event.get("requests") or 0) for event in generated),
        completion_tokens=sum(int(event.get("completion_tokens") or 0) for event in generated),
    )
