"""Keyword, profile and CoT files and aggregators of the released code, as the run's own stages would have made them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa

from pipelines.bench_aggregators import RESULT
from pipelines.bench_aggregators import STAGE as BENCHMARK
from pipelines.grading import graded_drafts
from pipelines.imported_rows import Imported, commit, write_requests
from pipelines.profile import write_book
from pipelines.questions import read_questions
from pipelines.recruit import GIVEN
from pipelines.run import Run
from symoe_ray.aggregators import best_aggregator
from symoe_ray.core import Question
from symoe_ray.fingerprints import digest
from symoe_ray.profiles import Evidence, to_json
from symoe_ray.reference_files import ReferenceFolder
from symoe_ray.requests import answer_request
from symoe_ray.tables import DRAFTS, SKILLS, question_row, table_of

GRADES = "imported/grades.parquet"
_GRADES = pa.schema(
    [
        ("question_id", pa.string()),
        ("expert", pa.string()),
        ("released_answer", pa.string()),
        ("released_correct", pa.bool_()),
        ("reference_answer", pa.string()),
        ("reference_correct", pa.bool_()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
    ]
)


def skills(run: Run, reference: ReferenceFolder) -> dict[str, int]:
    """Keyword files -> the stage `annotate`, and the stored mapping of test keywords for the stage `recruit`."""
    rows: list[dict[str, Any]] = []
    for split, own in (("validation", reference.validation), ("test", reference.test)):
        rows += [
            {"question_id": question.id, "split": split, "skills": row.keywords, "samples": [],
             "prompt_tokens": 0, "completion_tokens": 0, "failure": None}
            for (question, _), row in zip(read_questions(run.storage, split), own, strict=True)
        ]  # fmt: skip
    run.storage.write_table("skills/part-imported.parquet", table_of(rows, SKILLS))
    if reference.mapping:
        run.storage.write_json(GIVEN, dict(sorted(reference.mapping.items())))
    empty = sum(not row["skills"] for row in rows)
    inputs = digest([[row["question_id"], row["skills"]] for row in rows], dict(reference.mapping))
    run.done("annotate", inputs, questions=len(rows), without_skills=empty, imported=True)
    return {"questions": len(rows), "without_skills": empty, "mapped": len(reference.mapping)}


def profiles(run: Run, reference: ReferenceFolder) -> dict[str, int]:
    """Profile files -> the stage `profile`, in file-name order; CoT files -> its answers, graded by our graders too."""
    book = {expert: (_evidence(run, reference, expert),) for expert in reference.profiles}
    write_book(run.storage, book)
    texts = _chains(run, reference) if reference.chains else 0
    run.done("profile", digest(to_json(book), texts), imported=True)
    return {"experts": len(book), "chains_of_thought": texts}


def _evidence(run: Run, reference: ReferenceFolder, expert: str) -> Evidence:
    """A profile file's scores; how often each skill was asked follows from the keyword file, if the two agree."""
    scores, count = reference.profiles[expert], len(reference.validation)
    asked = Counter(keyword for row in reference.validation for keyword in row.keywords)
    possible = all(abs(score) <= asked[s] and (score - asked[s]) % 2 == 0 for s, score in scores.items())
    if not possible or asked.keys() != scores.keys():
        run.warn(f"{expert}'s profile file does not follow from {reference.validation_file.name}")
        asked = Counter()
    return Evidence(
        task=reference.task, scores=scores, graded=count, correct=round(reference.accuracies[expert] * count / 100),
        asked=dict(asked), grader="released",
    )  # fmt: skip


def _chains(run: Run, reference: ReferenceFolder) -> int:
    settings = run.settings
    seed, specs = settings.all_seeds[0], {e.name: e for e in settings.pool.experts}
    questions = read_questions(run.storage, "validation")
    rows = [
        Imported(
            request=answer_request(specs[expert], question, run_seed=seed, max_tokens=settings.max_tokens),
            shard=shard, run_seed=seed, texts=(chain.text,),
        )
        for expert, chains in reference.chains.items()
        for (question, shard), chain in zip(questions, chains, strict=True)
    ]  # fmt: skip
    write_requests(run, "profile", digest("imported", sorted(reference.chains)), rows)
    count = commit(run, "profile", rows)
    asked = [question_row(q, "validation", shard, place) for place, (q, shard) in enumerate(questions)]
    drafts = list(graded_drafts("profile", specs, seed, run.verify, run.storage, asked))
    run.storage.write_table("profiles/part-imported.parquet", table_of(drafts, DRAFTS))
    _keep_grades(run, reference, questions, drafts)
    _compare_profiles(run, reference)
    return count


def _keep_grades(
    run: Run, reference: ReferenceFolder, questions: list[tuple[Question, int]], drafts: list[dict[str, Any]]
) -> None:
    """The released grades beside ours, and how often they differ."""
    places = {question.id: place for place, (question, _) in enumerate(questions)}
    rows = []
    for draft in drafts:
        chain = reference.chains[draft["expert"]][places[draft["question_id"]]]
        rows.append(draft | {"released_answer": chain.answer, "released_correct": chain.correct})
    run.storage.write_table(GRADES, table_of([{n: r[n] for n in _GRADES.names} for r in rows], _GRADES))
    by_reference = sum(row["released_correct"] != row["reference_correct"] for row in rows)
    by_ours = sum(row["released_correct"] != row["correct"] for row in rows)
    run.say(
        f"import-reference: of {len(rows)} stored grades {by_reference} differ from grader=reference, "
        f"{by_ours} from grader=default ({GRADES})"
    )


def _compare_profiles(run: Run, reference: ReferenceFolder) -> None:
    """A profile follows from its CoT file: one that does not was made from another."""
    for expert, chains in reference.chains.items():
        scores: dict[str, int] = defaultdict(int)
        for row, chain in zip(reference.validation, chains, strict=True):
            for keyword in row.keywords:
                scores[keyword] += 1 if chain.correct else -1
        stored = reference.profiles[expert]
        differ = sum(scores.get(skill) != stored.get(skill) for skill in scores.keys() | stored.keys())
        if differ:
            run.warn(f"{differ} skills of {expert}'s profile file do not follow from {expert}_CoT.json")


def aggregators(run: Run, reference: ReferenceFolder) -> dict[str, float]:
    """The aggregator that final answers name, else the best of the measured ones -> the stage `bench-aggregators`."""
    scores = {name: (round(share * n / 100), n) for name, (share, n) in reference.aggregators.items()}
    named = {name for name, _ in reference.finals.values()}
    if not named and not scores:
        return {}
    chosen, reason = best_aggregator(scores, {})
    if named:
        chosen, reason = named.pop(), "imported: the stored final answers are its"
    run.storage.write_json(
        RESULT,
        {
            "chosen": chosen,
            "reason": reason,
            "scores": {name: {"correct": c, "graded": n} for name, (c, n) in sorted(scores.items())},
            "cases": max((n for _, n in scores.values()), default=0),
            "validation_questions": len(reference.validation),
        },
    )
    run.done(BENCHMARK, digest(chosen, scores), chosen, imported=True)
    return {name: share for name, (share, _) in sorted(reference.aggregators.items())}
