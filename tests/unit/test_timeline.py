"""The report's timeline worked out by hand, and the totals beside it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from symoe_ray.timeline import PlannedSpan, PlannedStage, build_timeline, duration, engine_rows, stage_rows


def event(kind: str, t: float, seconds: float, slot: int = 0, expert: str = "Ann", **more: object) -> dict[str, Any]:
    return {
        "event": kind,
        "t": t,
        "seconds": seconds,
        "slot": slot,
        "expert": expert,
        "stage": "answer",
        "attempt": 1,
        **more,
    }


def test_bars_end_at_their_event_and_chunks_are_merged() -> None:
    events = [
        event("load", 10, 10, tier="fork"),
        event("generate", 30, 20, requests=3, completion_tokens=100),
        event("generate", 50, 20, requests=4, completion_tokens=200),
        event("load", 60, 10, expert="Bob", tier="reload"),
        event("generate", 100, 40, expert="Bob"),
        event("prefetch", 45, 15, expert="Bob"),
        event("sleep", 100, 0, expert="Bob"),
    ]
    shuffled = list(events)
    random.Random(0).shuffle(shuffled)
    timeline = build_timeline(shuffled)
    assert timeline is not None
    assert timeline.length_s == 100
    (lane,) = timeline.lanes
    assert [(bar.event, bar.expert, bar.left, bar.width, bar.row) for bar in lane.bars] == [
        ("load", "Ann", 0, 10, 0),
        ("generate", "Ann", 10, 40, 0),
        ("load", "Bob", 50, 10, 0),
        ("generate", "Bob", 60, 40, 0),
        ("prefetch", "Bob", 30, 15, 1),
    ]
    assert lane.bars[1].title == "Ann: generate, 40 s, 7 requests, 300 tokens, from 10 s, stage answer"
    assert (lane.generating, lane.loading, lane.idle) == (pytest.approx(0.8), pytest.approx(0.2), pytest.approx(0))
    assert [label for _, label in timeline.ticks] == ["0 s", "30 s", "1 min", "1 min 30 s"]
    assert (timeline.predicted_s, timeline.cut, lane.predicted) == (0, False, ())


def test_overlapping_work_gets_rows_and_time_is_not_counted_twice() -> None:
    timeline = build_timeline(
        [event("generate", 80, 80), event("generate", 100, 60, expert="Bob"), event("crash", 90, 0)]
    )
    assert timeline is not None
    (lane,) = timeline.lanes
    assert [(bar.expert, bar.event, bar.row) for bar in lane.bars] == [
        ("Ann", "generate", 0),
        ("Bob", "generate", 1),
        ("Ann", "crash", 0),
    ]
    assert lane.rows == 2
    assert lane.generating == pytest.approx(1.0)


def test_attempts_are_laid_end_to_end_and_slots_ordered_by_number() -> None:
    events = [
        event("generate", 30, 30, slot=10, attempt=0),
        event("generate", 10, 50, slot=2, attempt=1, stage="aggregate"),
    ]
    timeline = build_timeline(events)
    assert timeline is not None
    assert [lane.name for lane in timeline.lanes] == ["2", "10"]
    assert timeline.attempts == ((75.0, "attempt 1"),)
    # The second attempt lasted 10 s, so its bar cannot reach back into the first.
    assert (timeline.lanes[0].bars[0].left, timeline.lanes[0].bars[0].width) == (75.0, 25.0)
    assert [(bar.expert, bar.left) for bar in timeline.stages.bars] == [("answer", 0.0), ("aggregate", 75.0)]


def planned(seconds: float, *stages: str) -> list[PlannedStage]:
    """Stages of that length: on slot 0 a load for the first quarter, then generation."""
    spans = (
        PlannedSpan(slot="0", event="load", expert="Ann", begin_s=0, end_s=seconds / 4),
        PlannedSpan(slot="0", event="generate", expert="Ann", begin_s=seconds / 4, end_s=seconds),
    )
    return [PlannedStage(stage=stage, seconds=seconds, spans=spans) for stage in stages]


def test_predicted_stages_follow_each_other_from_the_first_event() -> None:
    timeline = build_timeline([event("load", 40, 20), event("generate", 100, 50)], planned(40, "answer", "aggregate"))
    assert timeline is not None
    assert (timeline.length_s, timeline.predicted_s, timeline.cut) == (100, 80, False)
    (lane,) = timeline.lanes
    assert [(bar.event, bar.left, bar.width) for bar in lane.predicted] == [
        ("load", 20, 10),
        ("generate", 30, 30),
        ("load", 60, 10),
        ("generate", 70, 30),
    ]
    assert [(bar.expert, bar.left, bar.width) for bar in timeline.stages.predicted] == [
        ("answer", 20, 40),
        ("aggregate", 60, 40),
    ]
    assert lane.predicted[0].title == "predicted: Ann: load, 10 s, from 20 s, stage answer"
    assert lane.idle == pytest.approx(0.3)


def test_a_prediction_far_too_long_does_not_squeeze_what_happened() -> None:
    timeline = build_timeline([event("generate", 10, 10)], planned(500, "answer", "aggregate"))
    assert timeline is not None
    assert (timeline.length_s, timeline.actual_s, timeline.predicted_s, timeline.cut) == (20, 10, 1000, True)
    assert timeline.lanes[0].bars[0].width == 50
    assert [(bar.left, bar.width) for bar in timeline.lanes[0].predicted] == [(0, 100)]
    assert timeline.lanes[0].generating == pytest.approx(1.0)


def test_stages_say_what_they_took_beside_what_was_predicted() -> None:
    events = [
        event("load", 10, 4),
        event("generate", 30, 20, completion_tokens=7),
        event("generate", 5, 5, attempt=2, completion_tokens=3),
        event("generate", 9, 2, attempt=2, stage="aggregate"),
        event("unload", 50, 0, stage=""),
    ]
    answer, aggregate = stage_rows(events, planned(40, "answer"))
    assert (answer.predicted_s, answer.actual_s, answer.loads, answer.completion_tokens) == (40, 24 + 5, 1, 10)
    assert (aggregate.predicted_s, aggregate.actual_s) == (None, 2)


def test_stages_that_were_planned_together_are_one() -> None:
    events = [
        event("load", 10, 4, stage="annotate"),
        event("generate", 30, 20, stage="annotate", completion_tokens=7),
        event("generate", 50, 30, stage="profile", completion_tokens=3),
        event("prefetch", 40, 1, stage="annotate+profile"),
    ]
    together = planned(40, "annotate+profile", "aggregate")
    (row,) = stage_rows(events, together)
    assert (row.stage, row.predicted_s, row.actual_s, row.completion_tokens) == ("annotate+profile", 40, 44, 10)
    timeline = build_timeline(events, together)
    assert timeline is not None
    assert [bar.expert for bar in timeline.stages.bars] == ["annotate+profile"]
    assert [row.stage for row in stage_rows(events)] == ["annotate", "profile", "annotate+profile"]


def test_no_events_no_timeline() -> None:
    assert build_timeline([]) is None
    assert build_timeline([event("unload", 5, 0)]) is None


def test_engine_totals_by_expert() -> None:
    events = [
        event("load", 2, 2.0, tier="fork"),
        event("load", 20, 3.0, tier="fork"),
        event("wake", 30, 0.5, tier="asleep"),
        event("generate", 40, 8.0, requests=5, completion_tokens=800),
        event("crash", 41, 0.0),
    ]
    (ann,) = engine_rows(events)
    assert (ann.loads, ann.tiers, ann.load_s, ann.generate_s) == (3, "1 asleep, 2 fork", 5.5, 8.0)
    assert (ann.requests, ann.completion_tokens) == (5, 800)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.44, "0.4 s"),
        (12.4, "12 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (3600, "1 h"),
    ],
)
def test_duration_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
