"""What results.json says of the engines, from a handful of events."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.evaluate import engine_facts, read_events
from symoe_ray.engine_facts import token_seconds
from symoe_ray.storage import Storage


def event(kind: str, t: float, seconds: float = 0.0, **changes: Any) -> dict[str, Any]:
    """An event that ended at second `t` of its attempt."""
    swap = {"load": "fork", "reload": "reload", "wake": "wake"}
    timed: dict[str, Any] = {"seconds": seconds} if kind in (*swap, "generate") else {}
    if kind == "generate":
        timed["completion_tokens"] = 10
    if kind in swap:
        timed["tier"] = swap[kind]
    return {"event": kind, "t": t, "attempt": 1, "stage": "answer", "slot": "slot-0", "expert": "A", **timed, **changes}


def test_no_events_are_no_work() -> None:
    assert engine_facts([]) == {
        "loads": {}, "tiers": {}, "swap_s": 0, "generate_s": 0, "wall_s": 0, "busy_ratio": 0.0,
        "predicted_wall_s": None,
    }  # fmt: skip


def test_one_slot_that_loads_and_generates() -> None:
    events = [event("load", 2.0, 2.0), event("generate", 10.0, 6.0), event("unload", 10.0)]
    assert engine_facts(events) == {
        "loads": {"A": 1}, "tiers": {"fork": 1}, "swap_s": 2.0, "generate_s": 6.0, "wall_s": 10.0, "busy_ratio": 0.6,
        "predicted_wall_s": None,
    }  # fmt: skip


def test_loads_are_counted_by_expert_over_stages_slots_and_attempts() -> None:
    events = [
        event("load", 1.0, 1.0, expert="B"),
        event("load", 1.5, 1.0, slot="slot-1"),
        event("load", 9.0, 0.25, stage="aggregate"),
        event("load", 1.0, 0.5, attempt=2),
        event("crash", 3.0),
    ]
    facts = engine_facts(events)
    assert facts["loads"] == {"A": 3, "B": 1}
    assert list(facts["loads"]) == ["A", "B"]
    assert facts["swap_s"] == 2.75


def test_swaps_of_a_live_engine_take_time_and_are_no_loads() -> None:
    facts = engine_facts([event("load", 1.0, 0.5), event("reload", 2.0, 0.25), event("wake", 3.0, 0.125)])
    assert facts["loads"] == {"A": 1}
    assert facts["tiers"] == {"fork": 1, "reload": 1, "wake": 1}
    assert facts["swap_s"] == 0.875


def test_chunks_that_overlap_on_a_slot_count_once_and_on_two_slots_twice() -> None:
    events = [
        event("generate", 4.0, 4.0),  # 0 to 4
        event("generate", 6.0, 4.0),  # 2 to 6
        event("generate", 5.0, 1.0),  # 4 to 5, within the others
        event("generate", 8.0, 1.0),  # 7 to 8
        event("generate", 8.0, 5.0, slot="slot-1"),  # 3 to 8
    ]
    facts = engine_facts(events)
    assert facts["generate_s"] == 7.0 + 5.0
    assert facts["wall_s"] == 8.0
    assert facts["busy_ratio"] == pytest.approx(12 / 16)


def test_stages_that_an_engine_works_for_at_once_share_its_time_by_what_they_write() -> None:
    events = [
        event("generate", 4.0, 4.0, completion_tokens=300),  # 0 to 4
        event("generate", 6.0, 4.0, completion_tokens=100, stage="bench-aggregators"),  # 2 to 6
        event("generate", 8.0, 2.0, completion_tokens=50),  # 6 to 8
    ]
    seconds = token_seconds(events)
    assert seconds["answer", "A"] * 350 == pytest.approx(2 + 2 * 3 / 4 + 2)
    assert seconds["bench-aggregators", "A"] * 100 == pytest.approx(2 * 1 / 4 + 2)
    assert engine_facts(events)["generate_s"] == pytest.approx(8.0)


def test_each_attempt_has_its_own_clock() -> None:
    events = [
        event("generate", 5.0, 3.0),  # 2 to 5
        event("generate", 5.0, 4.0, attempt=2),  # 1 to 5, of another clock
        event("unload", 7.0, attempt=2),
    ]
    facts = engine_facts(events)
    assert facts["generate_s"] == 3.0 + 4.0
    assert facts["wall_s"] == 3.0 + 6.0


def test_the_order_of_events_does_not_matter() -> None:
    events = [event("load", 2.0, 2.0), event("generate", 6.0, 4.0), event("generate", 8.0, 4.0)]
    assert engine_facts(events) == engine_facts(events[::-1])


def test_events_are_read_in_order(tmp_path: Any) -> None:
    storage = Storage(str(tmp_path))
    assert read_events(storage) == []
    storage.append_text("events.jsonl", '{"t": 1}\n{"t": 2}\n')
    storage.append_text("events.jsonl", '{"t": 3}\n')
    assert [e["t"] for e in read_events(storage)] == [1, 2, 3]


def test_lines_that_were_cut_short_are_left_out(tmp_path: Any) -> None:
    storage = Storage(str(tmp_path))
    storage.append_text("events.jsonl", '{"t": 1}\n{"t": 2, "eve\n\n{"t": 3}\n{"t"')
    assert [e["t"] for e in read_events(storage)] == [1, 3]
    storage.append_text("events.jsonl", ": 4}\n")  # as its end arrives it counts
    assert [e["t"] for e in read_events(storage)] == [1, 3, 4]
