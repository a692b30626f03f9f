"""What a replayed setting comes to: each question's aggregation, looked up and graded, and the scores of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.grading import is_right
from pipelines.methods import read_method
from pipelines.panels import Case, Layer, answer_row, case_of
from pipelines.replay_cache import Cache, Row, Seat
from symoe_ray.aggregators import majority
from symoe_ray.core import InputError
from symoe_ray.fingerprints import digest
from symoe_ray.replaying import Replayed, scores_of
from symoe_ray.requests import seat_samples
from symoe_ray.routing import Recruits
from symoe_ray.settings import Settings

FOLDER = "replays"
_NOTHING = dict.fromkeys(Replayed.__slots__, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One setting of the grid, with the recruitments that it makes for each of its seeds."""

    changes: Mapping[str, str]
    settings: Settings
    recruits: Mapping[int, Recruits]
    layer: Layer

    @property
    def file(self) -> str:
        """Where its scores go, named by a digest of what was changed."""
        return f"{FOLDER}/{digest(dict(self.changes), size=6)}.json"


def aggregations(cache: Cache, variant: Variant, seed: int) -> Iterator[Case | None]:
    """The aggregation of each question in the order of the recruits; None where a draft of it is missing."""
    panel = variant.layer.panels[0]
    for question_id, experts in _seats(variant.recruits[seed]):
        drafts = _seated(cache.drafts(seed, question_id), experts)
        question, shard = cache.questions[question_id], cache.shards[question_id]
        yield case_of(variant.layer, seed, question, shard, panel, drafts) if drafts else None


def score(cache: Cache, variant: Variant, own: np.ndarray | None) -> dict[str, Any]:
    """All that replays/<hash>.json says of a setting; `own` is `own_result`."""
    columns = [_outcomes(cache, variant, seed) for seed in variant.recruits]
    made = Replayed(**{name: np.column_stack([c[name] for c in columns]) for name in Replayed.__slots__})
    recruited = {
        str(seed): {"counts": r.counts, "kept": r.kept, "trimmed": r.trimmed} for seed, r in variant.recruits.items()
    }
    return {
        "changes": dict(variant.changes), "file": variant.file, "seeds": list(variant.recruits),
        "aggregator": variant.layer.panels[0].writer.name, **scores_of(made, own), "recruit": recruited,
    }  # fmt: skip


def own_result(cache: Cache) -> np.ndarray | None:
    """What the run itself got right, questions in the order of the file x its seeds; None where that is not stored."""
    try:
        tables = read_method(cache.storage, cache.settings, "symoe")
    except InputError:
        return None
    columns = [dict(zip(t["question_id"].to_pylist(), t["correct"].to_pylist(), strict=True)) for t in tables]
    return np.array([[float(column[question]) for column in columns] for question in cache.questions])


def _outcomes(cache: Cache, variant: Variant, seed: int) -> dict[str, np.ndarray]:
    """One seed's columns of `Replayed`."""
    cases = list(aggregations(cache, variant, seed))
    cache.look_up_finals(case.request for case in cases if case is not None and case.request is not None)
    rows = []
    for (question_id, experts), case in zip(_seats(variant.recruits[seed]), cases, strict=True):
        there = cache.drafts(seed, question_id)
        drafts = _seated(there, experts)
        row = _NOTHING | {"best_possible": _best_possible(there, drafts, variant.settings)}
        if case is not None:
            row |= _drafted(drafts, variant.settings.grader) | _answered(cache, variant, case, drafts)
        rows.append(row)
    return {name: np.array([row[name] for row in rows], dtype=float) for name in Replayed.__slots__}


def _seats(made: Recruits) -> Iterator[tuple[str, list[str]]]:
    for (question_id, _), seats in zip(made.questions, made.seats.tolist(), strict=True):
        yield question_id, [made.experts[expert] for expert in seats]


def _seated(drafts: Mapping[Seat, Row], experts: Sequence[str]) -> list[Row]:
    """The drafts of the seats; none of them where one is missing."""
    seats = seat_samples(experts)
    return [drafts[seat] for seat in seats] if all(seat in drafts for seat in seats) else []


def _best_possible(drafts: Mapping[Seat, Row], seated: Sequence[Row], settings: Settings) -> float:
    """Whether any expert's first answer, or one of the seats, is right; NaN where an expert has not answered."""
    first = [drafts[expert.name, 0] for expert in settings.pool.experts if (expert.name, 0) in drafts]
    right = any(is_right(draft, settings.grader) for draft in (*first, *seated))
    return float(right) if len(first) == len(settings.pool.experts) else float("nan")


def _drafted(drafts: Sequence[Row], grader: str) -> dict[str, float]:
    """Majority and oracle of the seats; a vote is right if the first seat that gave the winning answer is."""
    answers = [_answer(draft, grader) for draft in drafts]
    winner = majority(answers)
    voted = bool(winner) and is_right(drafts[answers.index(winner)], grader)
    return {"drafted": 1.0, "majority": float(voted), "oracle": float(any(is_right(d, grader) for d in drafts))}


def _answered(cache: Cache, variant: Variant, case: Case, drafts: Sequence[Row]) -> dict[str, float]:
    """The final answer and what it cost, with its drafts and its annotation; nothing where it was not generated."""
    calls, prompts, written = cache.annotations.get(case.question.id, (0, 0, 0))
    once: dict[str, int] = {}  # samples of one request share its prompt
    for draft in drafts:
        once[draft["expert"]] = max(once.get(draft["expert"], 0), draft["prompt_tokens"])
    calls, prompts = calls + len(drafts), prompts + sum(once.values())
    written += sum(draft["completion_tokens"] for draft in drafts)
    response = cache.final(case.request) if case.request is not None else None
    if case.request is not None and response is None:
        return {}
    final = answer_row(case, response, cache.verify)
    right = is_right(final, variant.settings.grader)
    calls += response is not None and response["failure"] is None
    prompts, written = prompts + final["prompt_tokens"], written + final["completion_tokens"]
    return {
        "answered": 1.0, "correct": float(right), "calls": calls, "prompt_tokens": prompts,
        "completion_tokens": written,
    }  # fmt: skip


def _answer(draft: Row, grader: str) -> str:
    return str(draft["reference_answer" if grader == "reference" else "answer"])
