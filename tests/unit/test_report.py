"""The report page: complete, escaped, self-contained; and the timeline's geometry worked out by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from symoe_ray.report import AggregatorRow, DraftRow, QuestionRow, ReportData, render
from symoe_ray.results import MethodRow, build_results
from symoe_ray.timeline import build_timeline, duration, engine_rows

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, scripts by type, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> does not close {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append((self.tags[-1][1], data))

    def values(self, tag: str, name: str) -> list[str | None]:
        return [attrs[name] for found, attrs in self.tags if found == tag and name in attrs]


def row(method: str, question: int, correct: bool, seed: int = 0) -> MethodRow:
    return MethodRow(
        method=method, question_id=f"q{question}", seed=seed, correct=correct, correct_reference=correct, answer="A",
        calls=1, prompt_tokens=1000, completion_tokens=234,
    )  # fmt: skip


def results(ours: str = "1111110", best: str = "1000000", **notes: object) -> dict[str, Any]:
    rows = [row("symoe", i, mark == "1") for i, mark in enumerate(ours)]
    rows += [row("best_single", i, mark == "1") for i, mark in enumerate(best)]
    return build_results(
        task="demo", rows=rows, engine={"loads": {}, "wall_s": 75.0, "predicted_wall_s": 60.0}, config={},
        versions={"vllm": "1.2"}, counts={}, notes=notes, date=0.0,
    )  # fmt: skip


def question(identity: str, correct: bool | None, marks: str, failure: str = "", **changes: Any) -> QuestionRow:
    made: dict[str, Any] = {
        "id": identity, "question": "How many?", "choices": ("one", "two"), "gold": ("B",), "skills": ("counting",),
        "mapped": ("sums",), "candidates": ("Ann", "Bob"), "weights": (0.75, 0.25), "experts": ("Ann",) * len(marks),
        "drafts": [
            DraftRow(expert="Ann", answer="B", correct=mark == "1", text="so B", truncated=False, failure="")
            for mark in marks
        ],
        "text": "It is B", "value": "B", "correct": correct, "method": "aggregated by Bob", "failure": failure,
    }  # fmt: skip
    return QuestionRow(**(made | changes))


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


def full(**changes: Any) -> ReportData:
    given: dict[str, Any] = {
        "run": "night run", "date": 1_700_000_000.0, "settings": {"k": 3, "router": "reference"}, "results": results(),
        "seats": {"Ann": 30, "Bob": 10}, "seats_by_skill": {"sums": {"Ann": 4, "Bob": 2}},
        "profiles": {"Ann": {"sums": 3.0}, "Bob": {"sums": -2.0}},
        "aggregators": [AggregatorRow(expert="Bob", correct=3, graded=4, chosen=True)],
        "annotation": {"without skills": 2}, "events": [event("load", 2, 2, tier="fork"), event("generate", 10, 8)],
        "questions": [question("a", True, "11"), question("b", False, "10"), question("c", False, "00")],
        "questions_total": 7, "warnings": ["mind the gap"], "notes": ["a note"],
    }  # fmt: skip
    return ReportData(**(given | changes))


def test_page_says_what_it_was_given() -> None:
    text = render(full())
    Page(text)
    for part in (
        "night run",
        "2023-11-14 22:13 UTC",
        "mind the gap",
        "a note",
        "85.7<small>%",
        "1 min 15 s",
        "1 min predicted",
        "3 / 4</td>",
    ):
        assert part in text
    assert "30</td>" in text
    assert "75.0%" in text
    assert "\N{MINUS SIGN}2" in text
    assert "(chosen)" in text


def test_an_aggregator_that_was_not_measured_has_no_accuracy() -> None:
    rows = [AggregatorRow(expert="Bob", correct=0, graded=0, chosen=True)]
    text = render(full(aggregators=rows, aggregator_reason="Bob: no case could be made"))
    Page(text)
    assert "Bob: no case could be made" in text
    assert "(chosen)" not in text
    assert "0 / 0" not in text


def test_page_is_the_same_for_equal_data() -> None:
    assert render(full()) == render(full())


def test_page_loads_nothing() -> None:
    text = render(full())
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in {"link", "img", "iframe", "object"}]
    assert not [attrs for tag, attrs in page.tags if tag == "script" and "src" in attrs]
    assert all(str(target).startswith("#") for target in page.values("a", "href"))
    assert not re.search(r"https?://|@import|fetch\(|XMLHttpRequest", text)
    assert all("#" in found for found in re.findall(r"url\([^)]*\)", text))


def test_policy_allows_exactly_the_pages_own_script() -> None:
    page = Page(render(full()))
    (policy,) = [str(value) for value in page.values("meta", "content") if "default-src" in str(value)]
    (script,) = [source for attrs, source in page.scripts if attrs.get("type") != "application/json"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy


def test_anchors_and_labels_point_to_something_that_is_there_once() -> None:
    page = Page(render(full()))
    identities = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(identities) == len(set(identities))
    targets = {str(value)[1:] for value in page.values("a", "href")}
    targets |= {
        attrs[name] for _, attrs in page.tags for name in ("aria-labelledby", "aria-describedby") if name in attrs
    }
    assert targets <= set(identities)


def test_nothing_given_can_become_markup() -> None:
    hostile = question(
        ATTACK, False, "1", ATTACK, question=ATTACK, choices=(ATTACK, ATTACK), skills=(ATTACK,), mapped=("m" + ATTACK,),
        text=ATTACK, value=ATTACK, method=ATTACK, gold=(ATTACK,), candidates=(ATTACK,), weights=(1.0,),
        experts=(ATTACK,),
        drafts=[DraftRow(expert=ATTACK, answer=ATTACK, correct=True, text=ATTACK, truncated=True, failure=ATTACK)],
    )  # fmt: skip
    data = full(
        run=ATTACK, settings={ATTACK: ATTACK}, seats={ATTACK: 1}, seats_by_skill={ATTACK: {ATTACK: 1}},
        profiles={ATTACK: {ATTACK: 1.0}}, aggregators=[AggregatorRow(expert=ATTACK, correct=1, graded=1)],
        annotation={ATTACK: 1}, questions_total=3,
        events=[event("load", 1, 1, expert=ATTACK, tier=ATTACK), event("generate", 9, 8) | {"stage": ATTACK}],
        questions=[hostile], warnings=[ATTACK], notes=[ATTACK], results=results(best_single=ATTACK, other=ATTACK),
    )  # fmt: skip
    page = Page(render(data))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert len(page.scripts) == len([tag for tag, _ in page.tags if tag == "script"]) == 2


def test_results_can_be_taken_back_out_of_the_page() -> None:
    given = results(best_single=ATTACK)
    (source,) = [source for attrs, source in Page(render(full(results=given))).scripts if attrs.get("type")]
    assert json.loads(source) == given


def test_filters_count_failed_as_wrong_and_find_missed_drafts() -> None:
    questions = [
        question("a", True, "11"),
        question("b", False, "10"),
        question("c", False, "00"),
        question("d", False, "01", "engine died"),
        question("e", None, "00", gold=()),
    ]
    page = Page(render(full(questions=questions)))
    assert page.values("li", "data-marks") == ["right", "wrong missed", "wrong", "wrong missed failed", ""]
    text = re.sub(r"<[^>]+>", "", render(full(questions=questions)))
    for label in (
        "All questions: 5",
        "Right questions: 1",
        "Wrong questions: 3",
        "right questions: 2",
        "Failed questions: 1",
    ):
        assert label in text


def test_a_run_without_anything_yet_still_has_a_page() -> None:
    empty = build_results(task="t", rows=[], engine={}, config={}, versions={}, counts={}, notes={}, date=0.0)
    text = render(ReportData(run="fresh", date=0.0, settings={}, results=empty))
    Page(text)
    assert "No question has been evaluated yet." in text
    assert 'id="engines"' not in text


@pytest.mark.parametrize(
    ("ours", "best", "says"),
    [
        ("1111111111", "0000000000", "Ahead of the best single expert."),
        ("0000000000", "1111111111", "Behind the best single expert."),
        ("1010101010", "0101010101", "Not distinguishable"),
        ("10", "01", "too few questions to tell any difference"),
    ],
)
def test_verdict_is_no_stronger_than_the_interval(ours: str, best: str, says: str) -> None:
    assert says in render(full(results=results(ours, best)))


def test_skills_beyond_the_first_twenty_are_counted_not_hidden() -> None:
    profiles = {"Ann": {f"skill {i:02}": float(i) for i in range(1, 26)}}
    text = render(full(profiles=profiles))
    assert "skill 25" in text
    assert "skill 05" not in text
    assert "5 further skills are left out" in text


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
    assert (lane.generating, lane.loading) == (pytest.approx(0.8), pytest.approx(0.2))
    assert [label for _, label in timeline.ticks] == ["0 s", "30 s", "1 min", "1 min 30 s"]


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
