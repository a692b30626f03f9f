"""The report in a browser: what is in the page's compressed blocks is found, shown as text, and never in the way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from symoe_ray.reporting import question_blocks
from symoe_ray.reporting.page import ReportData, render
from symoe_ray.reporting.question_blocks import pack
from symoe_ray.reporting.questions import DraftRow, FinalRow, Graded, QuestionRow, marks_of
from symoe_ray.timeline import PlannedSpan, PlannedStage

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
COUNT = 230
SKILLS = ("sums", "maps", "law")

Open = Callable[..., Any]


def graded(text: str, answer: str, gold: str, other: str | None = None, **changes: Any) -> Graded:
    """A text that both graders read alike, unless the released one reads `other`."""
    read = answer if other is None else other
    made = Graded(
        text=text, answer=answer, correct=answer == gold, reference_answer=read, reference_correct=read == gold,
        unparsed=not answer, truncated=False, prompt_tokens=10, completion_tokens=20, failure="",
    )  # fmt: skip
    return made | changes  # type: ignore[typeddict-item, return-value]


def question(number: int) -> QuestionRow:
    """Gold is B. Every third is wrong, of these every second had a right draft; on every tenth the graders differ."""
    answer = "A" if number % 3 == 0 else "B"
    drafts = ["B" if number % 2 else "A", "C"] if answer == "A" else ["B", "B"]
    final = graded(f"final words {number}", answer, "B", "C" if number % 10 == 0 else None)
    return QuestionRow(
        id=f"case {number}", question=f"Question number {number}? " + "filler " * 30, choices=("x", "y", "z"),
        gold=("B",), skills=(SKILLS[number % 3],), mapped=("numbers",), cosines=(0.75,), candidates=("Ann", "Bob"),
        weights=(0.75, 0.25), experts=("Ann", "Bob"), fallback="",
        drafts=[
            DraftRow(expert=expert, sample=0, **graded(f"draft of {expert} on {number}", read, "B"))
            for expert, read in zip(("Ann", "Bob"), drafts, strict=True)
        ],
        final=FinalRow(aggregator="Bob", skipped="", **final),
    )  # fmt: skip


QUESTIONS = [question(number) for number in range(COUNT)]
QUESTIONS[7]["question"] = ATTACK
QUESTIONS[7]["drafts"][0]["text"] = f'Quote "so to say", back\\slash\n\tand {ATTACK} Ωmega'
QUESTIONS[COUNT - 1]["final"]["text"] = "the NEEDLE lies here"


def results() -> dict[str, Any]:
    method = {"accuracy": 0.6, "ci95": [0.5, 0.7], "n": COUNT, "calls": 900, "prompt_tokens": 5, "completion_tokens": 6}
    pair = {
        "difference": 0.1,
        "ci95": [0.05, 0.15],
        "mcnemar_p": 0.01,
        "mcnemar_p_holm": 0.02,
        "smallest_detectable": 0.04,
    }
    ours = {**method, "accuracy_reference": 0.5, "seconds": 75.0}
    return {
        "results": {"demo": {}},
        "symoe": {
            "methods": {"symoe": ours, "best_single": {**ours, "accuracy": 0.5}},
            "paired": {"symoe_vs_best_single": pair},
            "grading": {"unparsed": 1, "truncated": 2, "failed": 3, "grader_disagreement": 4},
            "engine": {"loads": {}, "wall_s": 20.0, "predicted_wall_s": 12.0},
            "seeds": [0], "counts": {}, "versions": {"ray": "2"}, "notes": {"best_single": "Ann"},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def html() -> str:
    """A page whose questions lie in many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(question_blocks, "BLOCK_CHARACTERS", 10_000)
        packed = pack(iter(QUESTIONS), "default")
    assert len(packed.blocks) > 10
    experts = [f"Expert number {i}" for i in range(16)]
    event = {"stage": "answer", "slot": "slot-0", "attempt": 1}
    span = PlannedSpan(slot="slot-0", event="generate", expert="Ann", begin_s=0, end_s=12)
    return render(
        ReportData(
            run="night run", date=0.0, settings={"k": 3}, results=results(), seats={"Ann": 3, "Bob": 1},
            profiles={e: {f"a skill of some length {i}": float(i - 3) for i in range(30)} for e in experts},
            events=[
                {**event, "event": "load", "t": 5, "seconds": 5, "expert": "Ann", "tier": "fork"},
                {**event, "event": "generate", "t": 20, "seconds": 15, "expert": "Ann", "requests": 9},
            ],
            planned=[PlannedStage(stage="answer", seconds=12, spans=(span,))],
            questions=packed, questions_total=COUNT, warnings=["mind the gap"],
        )
    )  # fmt: skip


def shown(page: Any) -> list[str]:
    """The ids of the questions in the list."""
    page.wait_for_selector("#question-list li, #nothing:not([hidden])", state="attached")
    ids: list[str] = page.evaluate("[...document.querySelectorAll('.question')].map((row) => row.id.slice(2))")
    return ids


def search(page: Any, words: str) -> list[str]:
    """Type, and wait for the end of the search that this starts."""
    shown(page)
    page.evaluate("document.getElementById('shown').textContent = ''")
    page.fill("[name=words]", words)
    page.locator("#shown", has_text=re.compile(r"of \d+ questions$")).wait_for()
    return shown(page)


def test_a_page_of_the_list_holds_fifty_rows_whatever_the_run_holds(open_page: Open, html: str) -> None:
    page = open_page(html)
    assert shown(page) == [f"case {i}" for i in range(50)]
    assert page.inner_text("#shown") == "230 of 230 questions"
    for _ in range(4):
        page.click("#next")
    assert shown(page) == [f"case {i}" for i in range(200, 230)]
    assert page.inner_text("#place") == "201 to 230 of 230"
    assert page.is_disabled("#next")
    page.click("#previous")
    assert shown(page)[0] == "case 150"
    assert page.evaluate("document.activeElement.closest('.question').id") == "q-case 150"


def test_a_filter_shows_its_questions(open_page: Open, html: str) -> None:
    page = open_page(html)
    for mark in ("right", "wrong", "missed", "all_wrong", "disagree"):
        page.locator(f"[name=mark][value={mark}]").check()
        expected = [q["id"] for q in QUESTIONS if mark in marks_of(q, "default")]
        assert page.inner_text("#shown") == f"{len(expected)} of 230 questions"
        assert shown(page) == expected[:50]


def test_filter_skill_and_search_narrow_together(open_page: Open, html: str) -> None:
    page = open_page(html)
    page.locator("[name=mark][value=disagree]").check()
    page.select_option("[name=skill]", "maps")
    expected = [i for i in range(COUNT) if i % 10 == 0 and SKILLS[i % 3] == "maps"]
    assert shown(page) == [f"case {i}" for i in expected]
    assert search(page, "words 100") == ["case 100"]
    assert search(page, "words 101") == []
    assert page.is_visible("#nothing")


def test_search_finds_texts_in_any_block(open_page: Open, html: str) -> None:
    page = open_page(html)
    for words, found in {
        "needle": ["case 229"],
        "LIES needle": ["case 229"],
        '"needle lies"': ["case 229"],
        '"lies needle"': [],
        "quote back\\slash": ["case 7"],
        "slash\\n": [],
        "ωMEGA": ["case 7"],
        "<img onerror=alert(2)>": ["case 7"],
        "reference_answer": [],  # the name of a field is no text of a question
        "draft 141?": ["case 141"],
    }.items():
        assert search(page, words) == found, words


def test_a_search_can_be_stopped_and_keeps_what_it_found(open_page: Open, html: str) -> None:
    gate = """
      const text = Response.prototype.text; let unpacked = 0;
      Response.prototype.text = async function () {
        if (++unpacked > 3) await new Promise((resolve) => { window.go = resolve; });
        return text.call(this);
      };"""
    page = open_page(html, script=gate)
    shown(page)
    page.fill("[name=words]", "final")
    page.locator("#question-list li").first.wait_for()
    page.click("#cancel")
    assert "found before the search was stopped" in page.inner_text("#shown")
    assert 0 < len(shown(page)) < 50
    assert page.is_hidden("#search-progress")


def test_a_question_opens_with_everything_and_as_text(open_page: Open, html: str) -> None:
    page = open_page(html)
    row = page.locator("[id='q-case 7']")
    row.locator("summary").first.click()
    row.locator(".choices").wait_for()
    body = row.locator(".body").inner_text()
    for part in (ATTACK, "maps → numbers (0.75)", "Ann 75.0% 1 seat", "✓ gold", "aggregated by Bob", "final words 7"):
        assert part in body
    row.locator(".draft summary").first.click()
    assert row.locator(".draft .prose").first.inner_text() == QUESTIONS[7]["drafts"][0]["text"]
    assert page.locator("img").count() == 0


def test_both_graders_are_shown_where_they_differ(open_page: Open, html: str) -> None:
    page = open_page(html, hash="#q-case%2010")
    body = page.locator("[id='q-case 10'] .body")
    body.locator("h3", has_text="Final answer").wait_for()
    assert re.search(r"B ✓ right ours, C ✗ wrong released grader ≠ they disagree", body.inner_text())
    assert "B ✓ right by both graders" in body.inner_text()


def test_a_link_turns_to_the_page_of_its_question_and_opens_it(open_page: Open, html: str) -> None:
    page = open_page(html, hash="#q-case%20222")
    page.locator("[id='q-case 222'] .choices").wait_for()
    assert page.inner_text("#place") == "201 to 230 of 230"


def test_the_keyboard_opens_questions_and_walks_the_timeline(open_page: Open, html: str) -> None:
    page = open_page(html)
    shown(page)
    page.locator("#question-list summary").first.focus()
    page.keyboard.press("Enter")
    page.locator("[id='q-case 0'] .choices").wait_for()
    page.focus("#plot")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "predicted: answer: 12 s" in page.inner_text("#bar-detail")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#bar-detail") == "Ann: load (fork), 5 s, from 0 s, stage answer"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_scrolls_only_its_tables(open_page: Open, html: str, scheme: str) -> None:
    page = open_page(html, viewport={"width": 375, "height": 700}, color_scheme=scheme)
    page.locator("#question-list summary").first.click()
    page.locator(".choices").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    channel = int(re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
    assert (channel < 60) == (scheme == "dark")


def test_print_leaves_out_what_cannot_be_used_on_paper(open_page: Open, html: str) -> None:
    page = open_page(html, color_scheme="dark")
    shown(page)
    page.emulate_media(media="print")
    assert page.is_hidden("#filters")
    assert page.is_hidden("nav >> nth=0")
    assert page.is_visible("table.methods")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_results_can_be_downloaded(open_page: Open, html: str) -> None:
    page = open_page(html)
    with page.expect_download() as download:
        page.click("#download")
    assert json.loads(download.value.path().read_text()) == results()


def test_without_scripts_all_but_the_questions_is_there(open_page: Open, html: str) -> None:
    page = open_page(html, java_script_enabled=False)
    assert page.is_visible("table.methods")
    assert page.is_visible("#unavailable")
    assert page.is_hidden("#filters")
