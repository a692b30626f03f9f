"""What a run has generated, as a replay looks it up: graded drafts by seat and final answers by request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.grading import graded
from pipelines.questions import read_questions
from symoe_ray.core import ExpertSpec, Question, Request
from symoe_ray.grading import Verify
from symoe_ray.ledger import Commits
from symoe_ray.requests import answer_request
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import DRAFTS, RESPONSES, SKILLS

Row = dict[str, Any]
Seat = tuple[str, int]
Wanted = dict[int, dict[str, dict[str, int]]]
"""Seed -> question -> expert -> samples that are wanted."""


class Cache:
    """All that a run has generated for its test questions, whichever settings or replays asked for it.

    `annotations` are calls, prompt tokens and written tokens of each question's annotation.
    """

    def __init__(self, storage: Storage, settings: Settings, verify: Verify | None) -> None:
        self.storage, self.settings, self.verify = storage, settings, verify
        self.questions: dict[str, Question] = {}
        self.shards: dict[str, int] = {}
        for question, shard in read_questions(storage, "test"):
            self.questions[question.id], self.shards[question.id] = question, shard
        self._drafts = {seed: self._graded(seed) for seed in settings.all_seeds}
        self.annotations = self._annotations()
        self._requests: dict[tuple[int, str, str], Request] = {}
        self._final: dict[str, Row] = {}
        self._held: dict[str, _Held] = defaultdict(_Held)

    def drafts(self, seed: int, question_id: str) -> Mapping[Seat, Row]:
        """The graded drafts of a question by (expert, sample)."""
        found: Mapping[Seat, Row] = self._drafts.get(seed, {}).get(question_id, {})
        return found

    def final(self, request: Request) -> Row | None:
        """The response to an aggregation request, ungraded; None where it was never generated."""
        return self._final.get(request.id)

    def request(self, seed: int, question_id: str, expert: str) -> Request:
        """What an expert is asked to answer a question."""
        key = (seed, question_id, expert)
        if key not in self._requests:
            self._requests[key] = answer_request(
                self.settings.pool.expert(expert), self.questions[question_id], run_seed=seed,
                max_tokens=self.settings.max_tokens,
            )  # fmt: skip
        return self._requests[key]

    def look_up_drafts(self, wanted: Wanted) -> Wanted:
        """Grade and keep what was generated for other settings; what is still missing then."""
        missing = self._missing(wanted)
        asked = {
            self.request(seed, question, expert).id: (seed, question, expert)
            for seed, by_question in missing.items()
            for question, experts in by_question.items()
            for expert in experts
        }
        for response in self._responses("answer", asked):
            seed, question, expert = asked[response["request_id"]]
            spec: ExpertSpec = self.settings.pool.expert(expert)
            row = graded(response, self.questions[question], spec.think_end_token, self.verify)
            own = self._drafts.setdefault(seed, {}).setdefault(question, {})
            own[expert, response["sample"]] = {"expert": expert, "sample": response["sample"], **row}
        return self._missing(wanted)

    def look_up_finals(self, requests: Iterable[Request]) -> None:
        """Keep the responses to aggregation requests."""
        asked = {request.id for request in requests if request.id not in self._final}
        self._final |= {response["request_id"]: response for response in self._responses("aggregate", asked)}

    def _annotations(self) -> dict[str, tuple[int, int, int]]:
        columns = ["question_id", "split", "samples", "prompt_tokens", "completion_tokens"]
        table = self.storage.read_tables(self.storage.names("skills", ".parquet"), SKILLS, columns)
        return {
            r["question_id"]: (len(r["samples"] or ()), r["prompt_tokens"] or 0, r["completion_tokens"] or 0)
            for r in table.to_pylist()
            if r["split"] == "test"
        }

    def _graded(self, seed: int) -> dict[str, dict[Seat, Row]]:
        folder = f"seed={seed}/drafts" if len(self.settings.all_seeds) > 1 else "drafts"
        found: dict[str, dict[Seat, Row]] = defaultdict(dict)
        for row in self.storage.read_tables(self.storage.names(folder, ".parquet"), DRAFTS).to_pylist():
            if row["question_id"] in self.questions:
                found[row["question_id"]][row["expert"], row["sample"]] = row
        return found

    def _missing(self, wanted: Wanted) -> Wanted:
        missing: Wanted = defaultdict(lambda: defaultdict(dict))
        for seed, by_question in wanted.items():
            for question, experts in by_question.items():
                there = self.drafts(seed, question)
                for expert, samples in experts.items():
                    if any((expert, sample) not in there for sample in range(samples)):
                        missing[seed][question][expert] = samples
        return missing

    def _responses(self, stage: str, asked: Iterable[str]) -> list[Row]:
        """The committed rows of some requests, those that failed first: a later row counts."""
        ids = list(asked)
        if not ids:
            return []
        held = self._held[stage]
        held.read_new(self.storage, stage)
        return sorted((row for key in ids for row in held.rows(key)), key=lambda row: row["failure"] is None)


class _Held:
    """The committed parts of a stage, each read once, and where in them each request's rows are."""

    def __init__(self) -> None:
        self._tables: dict[str, pa.Table] = {}
        self._places: dict[str, list[tuple[str, int]]] = defaultdict(list)

    def read_new(self, storage: Storage, stage: str) -> None:
        """Read what has been committed since the last time."""
        for part in Commits(storage).each_part(stage):
            if part.path not in self._tables:
                self._tables[part.path] = table = storage.read_table(part.path).cast(RESPONSES)
                for row, request_id in enumerate(table["request_id"].to_pylist()):
                    self._places[request_id].append((part.path, row))

    def rows(self, request_id: str) -> list[Row]:
        """The rows of a request, in the order of their commits."""
        places = self._places.get(request_id, [])
        return [row for path, place in places for row in self._tables[path].slice(place, 1).to_pylist()]
