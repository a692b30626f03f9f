"""Every method's answer to every question, from one seed's graded drafts and final answers. Generates nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.grading import is_right
from symoe_ray.aggregators import majority
from symoe_ray.requests import seat_samples
from symoe_ray.results import MethodRow
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, RECRUITS, SKILLS

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SeedTables:
    """One seed's tables by question: recruitment, drafts by (expert, sample), final answers by method, annotation."""

    recruits: dict[str, Row]
    drafts: dict[str, dict[tuple[str, int], Row]]
    answers: dict[str, dict[str, Row]]
    skills: dict[str, Row]


def read_seed(storage: Storage, folder: str) -> SeedTables:
    """The tables of a seed; `folder` is "" or "seed=<N>/"."""

    def rows(name: str, schema: Any) -> list[Row]:
        found: list[Row] = storage.read_tables(storage.names(name, ".parquet"), schema).to_pylist()
        return found

    drafts: dict[str, dict[tuple[str, int], Row]] = defaultdict(dict)
    for row in rows(folder + "drafts", DRAFTS):
        drafts[row["question_id"]][row["expert"], row["sample"]] = row
    answers: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows(folder + "answers", ANSWERS):
        answers[row["question_id"]][row["method"]] = row
    return SeedTables(
        recruits={r["question_id"]: r for r in rows(folder + "recruits", RECRUITS)},
        drafts=drafts,
        answers=answers,
        skills={r["question_id"]: r for r in rows("skills", SKILLS) if r["split"] == "test"},
    )


def method_rows(
    tables: SeedTables, seed: int, *, grader: str, experts: Sequence[str], best: str, best_samples: int
) -> Iterator[MethodRow]:
    """The rows of all methods that the tables hold completely: a method is compared on every question or not at all.

    `best` is the best single expert by validation, `best_samples` how many of its samples self-consistency votes over
    (as many as the recruited have seats).
    """
    questions = list(tables.recruits)
    complete = [e for e in experts if all((e, 0) in tables.drafts[q] for q in questions)]
    voted = [(best, i) for i in range(best_samples)]
    has_votes = all(seat in tables.drafts[q] for q in questions for seat in voted)
    has_random = all("random_experts" in tables.answers[q] for q in questions)
    rightest = max(complete, key=lambda e: (_accuracy(tables, e, grader), e), default="")
    for question in questions:
        drafts = tables.drafts[question]
        seats = [drafts[seat] for seat in seat_samples(tables.recruits[question]["experts"])]
        make = _Maker(tables, question, seed, grader)
        yield make.final("symoe", seats)
        yield make.vote("majority", seats, annotated=True)
        yield make.best_of("oracle", seats, annotated=True)
        if has_random:
            random_seats = seat_samples(tables.recruits[question]["random_experts"])
            yield make.final("random_experts", [drafts[s] for s in random_seats], annotated=False)
        if best in complete:
            yield make.single("best_single", drafts[best, 0])
        if has_votes:
            yield make.vote("self_consistency", [drafts[s] for s in voted], annotated=False)
        for expert in complete:
            yield make.single(f"expert:{expert}", drafts[expert, 0])
        if len(complete) == len(experts):
            yield make.single("best_single_test", drafts[rightest, 0])
            yield make.best_of("oracle_pool", [drafts[e, 0] for e in complete], annotated=False)


def _accuracy(tables: SeedTables, expert: str, grader: str) -> float:
    return sum(is_right(drafts[expert, 0], grader) for drafts in tables.drafts.values() if (expert, 0) in drafts)


@dataclass(frozen=True, slots=True)
class _Maker:
    tables: SeedTables
    question: str
    seed: int
    grader: str

    def single(self, method: str, draft: Row) -> MethodRow:
        """An expert's own first answer."""
        return self._row(method, draft, [draft], annotated=False)

    def final(self, method: str, seats: list[Row], *, annotated: bool = True) -> MethodRow:
        """The aggregator's answer; a skipped aggregator costs nothing."""
        answer = self.tables.answers[self.question][method]
        return self._row(method, answer, seats, annotated=annotated, extra=answer)

    def vote(self, method: str, seats: list[Row], *, annotated: bool) -> MethodRow:
        """The answer that most drafts give; ties go to the first seat."""
        by = "reference_answer" if self.grader == "reference" else "answer"
        winner = majority([d[by] for d in seats])
        chosen = next((d for d in seats if winner and d[by] == winner), seats[0])
        return self._row(method, chosen, seats, annotated=annotated, unparsed=not winner)

    def best_of(self, method: str, seats: list[Row], *, annotated: bool) -> MethodRow:
        """Right if any draft is: what a perfect judge of these drafts would reach."""
        chosen = next((d for d in seats if is_right(d, self.grader)), seats[0])
        return self._row(method, chosen, seats, annotated=annotated)

    def _row(
        self, method: str, row: Row, seats: list[Row], *, annotated: bool, extra: Row | None = None,
        unparsed: bool | None = None,
    ) -> MethodRow:  # fmt: skip
        """`row` is graded, `seats` are what it cost, with the annotation (`annotated`) and the aggregator (`extra`)."""
        once: dict[str, int] = {}  # samples of one request share its prompt; a failed one counts none
        for draft in seats:
            once[draft["expert"]] = max(once.get(draft["expert"], 0), draft["prompt_tokens"])
        prompts, written = sum(once.values()), sum(d["completion_tokens"] for d in seats)
        calls = len(seats)
        if annotated:
            skills = self.tables.skills.get(self.question)
            calls += len(skills["samples"]) if skills else 0
            prompts += skills["prompt_tokens"] if skills else 0
            written += skills["completion_tokens"] if skills else 0
        if extra is not None:
            calls += not extra["skipped"] and extra["failure"] is None
            prompts, written = prompts + extra["prompt_tokens"], written + extra["completion_tokens"]
        return MethodRow(
            method=method, question_id=self.question, seed=self.seed, correct=is_right(row, self.grader),
            correct_reference=row["reference_correct"],
            graders_disagree=row["correct"] != row["reference_correct"],
            answer=row["reference_answer" if self.grader == "reference" else "answer"],
            calls=int(calls), prompt_tokens=prompts, completion_tokens=written,
            unparsed=row["unparsed"] if unparsed is None else unparsed,
            truncated=row["truncated"], failed=row["failure"] is not None,
        )  # fmt: skip
