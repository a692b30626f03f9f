"""The report page: complete, escaped, self-contained; and the timeline's geometry worked out by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import pytest

from symoe_ray.reporting.page import AggregatorRow, ReportData, render
from symoe_ray.reporting.paper_table import paper_table
from symoe_ray.reporting.question_blocks import PackedQuestions, pack
from symoe_ray.reporting.questions import DraftRow, FinalRow, Graded, QuestionRow

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


def method(accuracy: float, **changes: Any) -> dict[str, Any]:
    made = {
        "accuracy": accuracy, "ci95": [accuracy - 0.1, accuracy + 0.1], "n": 7, "calls": 21, "prompt_tokens": 7000,
        "completion_tokens": 1638, "seconds": 75.0, "accuracy_reference": accuracy,
    }  # fmt: skip
    return made | changes


def pair(difference: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    made = {
        "difference": difference,
        "ci95": [low, high],
        "mcnemar_p": 0.25,
        "mcnemar_p_holm": 0.5,
        "smallest_detectable": 0.3,
    }
    return made | changes


def results(names: dict[str, dict[str, Any]] | None = None, **block: Any) -> dict[str, Any]:
    """results.json as far as a page shows it: our method, the best single one, and `names`."""
    methods = {"symoe": method(0.857), "best_single": method(0.714)} | (names or {})
    made = {
        "methods": methods,
        "paired": {"symoe_vs_best_single": pair(0.143, -0.1, 0.4)},
        "grading": {"unparsed": 1, "truncated": 2, "failed": 3, "grader_disagreement": 4},
        "engine": {"loads": {}, "wall_s": 75.0, "predicted_wall_s": 60.0},
        "seeds": [0],
        "counts": {},
        "versions": {"vllm": "1.2"},
        "notes": {"best_single": "Bob", "warnings": []},
    }
    return {"results": {"demo": {}}, "symoe": made | block}


def graded(text: str, answer: str, correct: bool | None, **changes: Any) -> Graded:
    made: dict[str, Any] = {
        "text": text, "answer": answer, "correct": correct, "reference_answer": answer, "reference_correct": correct,
        "unparsed": False, "truncated": False, "prompt_tokens": 9, "completion_tokens": 5, "failure": "",
    }  # fmt: skip
    return Graded(**(made | changes))  # type: ignore[typeddict-item]


def question(identity: str, **changes: Any) -> QuestionRow:
    made: dict[str, Any] = {
        "id": identity, "question": "How many?", "choices": ("one", "two"), "gold": ("B",), "skills": ("counting",),
        "mapped": ("sums",), "cosines": (0.5,), "candidates": ("Ann", "Bob"), "weights": (0.75, 0.25),
        "experts": ("Ann", "Ann"), "fallback": "",
        "drafts": [DraftRow(expert="Ann", sample=i, **graded("so B", "B", True)) for i in range(2)],
        "final": FinalRow(aggregator="Bob", skipped="", **graded("It is B", "B", True)),
    }  # fmt: skip
    return QuestionRow(**(made | changes))  # type: ignore[typeddict-item]


def event(kind: str, t: float, seconds: float, expert: str = "Ann", **more: object) -> dict[str, Any]:
    made = {"event": kind, "t": t, "seconds": seconds, "slot": 0, "expert": expert, "stage": "answer", "attempt": 1}
    return made | more


def full(**changes: Any) -> ReportData:
    given: dict[str, Any] = {
        "run": "night run", "date": 1_700_000_000.0, "settings": {"k": 3, "router": "reference"}, "results": results(),
        "seats": {"Ann": 30, "Bob": 10}, "seats_by_skill": {"sums": {"Ann": 4, "Bob": 2}},
        "profiles": {"Ann": {"sums": 3.0}, "Bob": {"sums": -2.0}},
        "aggregators": [AggregatorRow(expert="Bob", correct=3, graded=4, chosen=True)],
        "annotation": {"without skills": 2}, "events": [event("load", 2, 2, tier="fork"), event("generate", 10, 8)],
        "questions": pack([question("a"), question("b")], "default"), "questions_total": 7,
        "warnings": ["mind the gap"], "notes": ["a note"],
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
        "2 of 7 questions are in this page",
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
    assert "<strong>(chosen)" not in text
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
    (script,) = [source for attrs, source in page.scripts if "type" not in attrs]
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
    text = graded(ATTACK, ATTACK, False, reference_answer=ATTACK, failure=ATTACK)
    hostile = question(
        ATTACK, question=ATTACK, choices=(ATTACK, ATTACK), gold=(ATTACK,), skills=(ATTACK,), mapped=("m" + ATTACK,),
        candidates=(ATTACK,), weights=(1.0,), experts=(ATTACK,), fallback=ATTACK,
        drafts=[DraftRow(expert=ATTACK, sample=0, **text)], final=FinalRow(aggregator=ATTACK, skipped=ATTACK, **text),
    )  # fmt: skip
    example = {"question_id": ATTACK, "gold": [ATTACK], "text_end": ATTACK, "answer": ATTACK, "correct": True}
    grading = results()["symoe"]["grading"] | {
        "examples": [example | {"reference_answer": ATTACK, "reference_correct": False}]
    }
    data = full(
        run=ATTACK, settings={ATTACK: ATTACK}, seats={ATTACK: 1}, seats_by_skill={ATTACK: {ATTACK: 1}},
        profiles={ATTACK: {ATTACK: 1.0}}, aggregators=[AggregatorRow(expert=ATTACK, correct=1, graded=1)],
        annotation={ATTACK: 1}, questions=pack([hostile], "default"), questions_total=3,
        events=[event("load", 1, 1, expert=ATTACK, tier=ATTACK), event("generate", 9, 8) | {"stage": ATTACK}],
        warnings=[ATTACK], notes=[ATTACK],
        results=results({ATTACK: method(0.5)}, notes={"best_single": ATTACK}, grading=grading),
    )  # fmt: skip
    page = Page(render(data))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    kinds = [attrs.get("type", "") for tag, attrs in page.tags if tag == "script"]
    assert kinds == ["application/json", "application/json", "text/plain", "", "text/plain"]


def test_results_can_be_taken_back_out_of_the_page() -> None:
    given = results({ATTACK: method(0.5)})
    sources = [source for attrs, source in Page(render(full(results=given))).scripts if attrs.get("id") == "results"]
    assert [json.loads(source) for source in sources] == [given]


def test_questions_can_be_taken_back_out_of_the_page() -> None:
    given = [question("a", question=ATTACK), question("b", question="Ω\u2028")]
    page = Page(render(full(questions=pack(given, "default"))))
    (block,) = [source for attrs, source in page.scripts if attrs.get("class") == "question-block"]
    lines = zlib.decompress(base64.b64decode(block)).decode().split("\n")
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(given))


def test_filters_without_questions_are_not_offered() -> None:
    wrong = question("c", final=FinalRow(aggregator="Bob", skipped="", **graded("A", "A", False)))
    page = Page(render(full(questions=pack([question("a"), wrong], "default"))))
    offered = [attrs["value"] for tag, attrs in page.tags if tag == "input" and attrs.get("type") == "radio"]
    assert offered == ["all", "right", "wrong", "missed"]


def test_a_run_without_anything_yet_still_has_a_page() -> None:
    empty = results(methods={}, paired={}, engine={})
    text = render(ReportData(run="fresh", date=0.0, settings={}, results=empty))
    Page(text)
    assert "No question has been evaluated yet." in text
    assert 'id="engines"' not in text
    assert 'id="filters"' not in text


@pytest.mark.parametrize(
    ("against", "says"),
    [
        (pair(0.2, 0.1, 0.3, mcnemar_p=0.01), "Ahead of the best single expert."),
        (pair(-0.2, -0.3, -0.1, mcnemar_p=0.01), "Behind the best single expert."),
        (pair(0.0, -0.1, 0.1), "which can show differences of 30.0 points or more"),
        (pair(0.0, -0.1, 0.1, smallest_detectable=None), "too few questions to tell any difference"),
    ],
)
def test_verdict_is_no_stronger_than_the_interval(against: dict[str, Any], says: str) -> None:
    given = results(paired={"symoe_vs_best_single": against})
    assert says in render(full(results=given))
    assert says in paper_table(given, run="r", settings={})


def test_an_aggregator_that_is_no_better_than_a_vote_is_said_to_be_so() -> None:
    paired = {
        "symoe_vs_best_single": pair(0.2, 0.1, 0.3, mcnemar_p=0.01),
        "symoe_vs_majority": pair(-0.05, -0.08, -0.02, mcnemar_p=0.01),
    }
    says = "Ahead of the best single expert. Behind a majority vote of the same drafts."
    assert says in render(full(results=results(paired=paired)))
    assert says in paper_table(results(paired=paired), run="r", settings={})


def test_graders_disagreements_are_shown_with_what_each_read() -> None:
    example = {
        "question_id": "case 1", "gold": ["B"], "text_end": "so it is B. I am sure", "answer": "B", "correct": True,
        "reference_answer": "I", "reference_correct": False,
    }  # fmt: skip
    grading = results()["symoe"]["grading"] | {"readings_differ": 12, "examples": [example]}
    text = render(full(results=results(grading=grading)))
    Page(text)
    for part in ("Examples of disagreement", 'href="#q-case%201"', "so it is B. I am sure", "<dd>12</dd>"):
        assert part in text


def test_skills_beyond_the_first_twenty_are_counted_not_hidden() -> None:
    profiles = {"Ann": {f"skill {i:02}": float(i) for i in range(1, 26)}}
    text = render(full(profiles=profiles))
    assert "skill 25" in text
    assert "skill 05" not in text
    assert "5 further skills are left out" in text


def test_paper_table_holds_every_method_and_stays_a_table() -> None:
    given = results(
        {"self_consistency@3": method(0.5, seconds=None), "expert:a|b*": method(0.4)},
        paired={"symoe_vs_best_single": pair(0.143, -0.1, 0.4, mcnemar_p=0.0004)},
    )
    lines = paper_table(given, run="night_run", settings={"k": 3}).splitlines()
    assert lines[0] == "## night\\_run"
    assert lines[2] == "k 3"
    rows = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {11}
    assert rows[2:] == [
        "| **Symbolic-MoE** | **85.7 (75.7–95.7)** |  |  |  "
        "| **7** | **21** | **7,000** | **1,638** | **1 min 15 s** |",
        "| Best single expert (Bob) | 71.4 (61.4–81.4) | +14.3 (−10.0 to +40.0) | \\<\N{NO-BREAK SPACE}0.001 "
        "| 0.500 | 7 | 21 | 7,000 | 1,638 | 1 min 15 s |".replace("\N{NO-BREAK SPACE}", " "),
        "| Self-consistency@3 | 50.0 (40.0–60.0) |  |  |  | 7 | 21 | 7,000 | 1,638 |  |",
        "| a\\|b\\* | 40.0 (30.0–50.0) |  |  |  | 7 | 21 | 7,000 | 1,638 | 1 min 15 s |",
    ]


def test_paper_table_without_times_has_no_column_for_them() -> None:
    untimed = {name: method(0.5, seconds=None) for name in ("symoe", "best_single")}
    assert "Time" not in paper_table(results(untimed), run="r", settings={})


def test_a_page_without_questions_has_no_list() -> None:
    assert 'id="question-list"' not in render(full(questions=PackedQuestions()))
