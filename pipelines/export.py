"""`symoe export`: a run in the released code's formats, or in lm-eval's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.bench_aggregators import RESULT
from pipelines.grading import is_right
from pipelines.profile import read_profiles
from pipelines.questions import read_questions
from pipelines.run import CONFIG, run_uri, settings_of
from pipelines.signals import DONE, Signals
from symoe_ray.config import load
from symoe_ray.core import InputError, Question
from symoe_ray.ledger import responses
from symoe_ray.lm_eval_export import lm_eval_files
from symoe_ray.reference_export import (
    ANNOTATOR,
    answer_columns,
    chain_entry,
    csv_text,
    json_text,
    percent,
    profile_name,
    profile_scores,
    question_entry,
    recruit_row,
)
from symoe_ray.requests import seat_samples
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, RECRUITS, SKILLS

FORMATS = ("reference", "lm-eval")
Texts = Mapping[tuple[str, str, int], str]  # (question id, expert, sample) -> the whole generated text


def add_command(commands: Any) -> None:
    """Add `export` to the parser's commands."""
    parser = commands.add_parser(
        "export",
        help="a run in the released code's or in lm-eval's formats",
        description="reference: test_data/ and skills/<TASK>/ as the released code has them, as far as the run has "
        "come. lm-eval: results_<date>.json and samples_<task>_<date>.jsonl of a finished run.",
    )
    parser.add_argument("run", metavar="RUN", help="name or path of the run")
    parser.add_argument("--format", choices=FORMATS, required=True, help="whose formats")
    parser.add_argument("--to", metavar="DIR", help="a local folder (default: export/<RUN>-<FORMAT>)")
    parser.add_argument("--json", action="store_true", help="the files as JSON on standard output")
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, overrides: list[str], _: Signals) -> int:
    storage = Storage(run_uri(load(overrides), options.run))
    settings = settings_of(storage)
    if settings is None:
        raise InputError(f"there is no run at {storage.uri} (no {CONFIG})")
    name = storage.uri.rstrip("/").rsplit("/", 1)[-1]
    target = Path(options.to or f"export/{name}-{options.format}").expanduser()
    made = _lm_eval(storage, settings) if options.format == "lm-eval" else _reference(storage, settings)
    files = [_write(target / file, content) for file, content in made]
    print(json.dumps({"files": files}) if options.json else "\n".join(files))
    return DONE


def _write(path: Path, content: bytes) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    return str(path)


def _lm_eval(storage: Storage, settings: Settings) -> Iterator[tuple[str, bytes]]:
    if not storage.exists("results.json"):
        raise InputError(f"run {storage.uri} has no results.json: finish it with `symoe run` first")
    samples = storage.read_bytes(f"samples_{settings.task.name}.jsonl")
    yield from lm_eval_files(storage.read_json("results.json"), samples).items()


def _reference(storage: Storage, settings: Settings) -> Iterator[tuple[str, bytes]]:
    task = settings.task.name
    found = {split: [question for question, _ in read_questions(storage, split)] for split in ("validation", "test")}
    skills = {
        (row["split"], row["question_id"]): row["skills"]
        for row in storage.read_tables(storage.names("skills", ".parquet"), SKILLS).to_pylist()
    }
    if not found["test"] or not skills:
        raise InputError(f"run {storage.uri} has no annotated questions yet: run `symoe annotate` first")
    entries: dict[str, list[dict[str, Any]]] = {}
    for split, word in (("validation", "train"), ("test", "test")):
        plain = [question_entry(question) for question in found[split]]
        entries[split] = [
            entry | {"keywords": skills.get((split, question.id), [])}
            for entry, question in zip(plain, found[split], strict=True)
        ]
        if plain:
            yield f"test_data/{task}_{word}.json", json_text(plain).encode()
            keywords = f"skills/{task}/{word}_samples_with_keywords_{ANNOTATOR}.json"
            yield keywords, json_text(entries[split]).encode()
    made = [
        *_profiles(storage, settings, found["validation"], entries["validation"]),
        *_aggregators(storage, settings, found["validation"]),
        *_seeds(storage, settings, found["test"], entries["test"]),
    ]
    for name, text in made:
        yield f"skills/{task}/{name}", text.encode()


def _profiles(
    storage: Storage, settings: Settings, questions: Sequence[Question], entries: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    if not storage.exists("profiles/profiles.json"):
        return
    rows = storage.read_tables(storage.names("profiles", ".parquet"), DRAFTS).to_pylist()
    drafts = {(row["question_id"], row["expert"]): row for row in rows if row["failure"] is None}
    texts = _texts(storage, "profile", settings.all_seeds[0])
    for profile in read_profiles(storage):
        yield profile_name(profile), json_text(profile_scores(profile))
        asked = [drafts.get((question.id, profile.expert)) for question in questions]
        if any(asked):
            chains = [
                chain_entry(
                    entry, profile.expert, texts.get((question.id, profile.expert, 0), ""),
                    draft["reference_answer"] if draft else "", draft is not None and is_right(draft, settings.grader),
                )
                for question, entry, draft in zip(questions, entries, asked, strict=True)
            ]  # fmt: skip
            yield f"{profile.expert}_CoT.json", json_text(chains)


def _texts(storage: Storage, stage: str, seed: int) -> Texts:
    return {
        (row["question_id"], row["expert"], row["sample"]): row["text"]
        for row in responses(storage, stage).to_pylist()
        if row["run_seed"] == seed and row["failure"] is None
    }


def _aggregators(storage: Storage, settings: Settings, questions: Sequence[Question]) -> Iterator[tuple[str, str]]:
    """The benchmark's outputs, on the cases that it had; the prompts of these are ours and stay out."""
    entries = {question.id: question_entry(question) for question in questions}
    rows = storage.read_tables(storage.names("aggregators", ".parquet"), DRAFTS).to_pylist()
    scores = storage.read_json(RESULT)["scores"] if storage.exists(RESULT) else {}
    for expert, score in scores.items():
        own = [entries[r["question_id"]] | {"aggr_output": r["text"]} for r in rows if r["expert"] == expert]
        if own:
            yield f"{expert}_as_aggr_{percent(score['correct'], score['graded'])}.json", json_text(own)


def _seeds(
    storage: Storage, settings: Settings, questions: Sequence[Question], entries: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    for seed in settings.all_seeds:
        folder = f"seed={seed}/" if len(settings.all_seeds) > 1 else ""
        recruits = {r["question_id"]: r for r in _rows(storage, folder + "recruits", RECRUITS)}
        if not recruits:
            continue
        mapped = [entry | {"keywords": recruits[q.id]["mapped"]} for q, entry in zip(questions, entries, strict=True)]
        if seed == settings.all_seeds[0]:
            yield f"test_samples_with_keywords_{ANNOTATOR}_mapped.json", json_text(mapped)
        drawn = [tuple(recruits[question.id]["experts"]) for question in questions]
        rows = [recruit_row(entry, experts) for entry, experts in zip(mapped, drawn, strict=True)]
        yield f"test_samples_with_keywords_and_solvers_seed{seed}.csv", csv_text(rows)
        if storage.names(folder + "drafts", ".parquet"):
            yield f"round0_seed{seed}.csv", csv_text(list(_answered(storage, seed, questions, drawn, rows)))
        yield from _finals(storage, settings, seed, folder, questions)


def _answered(
    storage: Storage, seed: int, questions: Sequence[Question], drawn: Sequence[tuple[str, ...]],
    rows: Sequence[Mapping[str, str]],
) -> Iterator[dict[str, str]]:  # fmt: skip
    texts = _texts(storage, "answer", seed)
    for question, experts, row in zip(questions, drawn, rows, strict=True):
        said = [texts.get((question.id, expert, sample), "") for expert, sample in seat_samples(experts)]
        yield {**row, **answer_columns(experts, said)}


def _finals(
    storage: Storage, settings: Settings, seed: int, folder: str, questions: Sequence[Question]
) -> Iterator[tuple[str, str]]:
    rows = [row for row in _rows(storage, folder + "answers", ANSWERS) if row["method"] == "symoe"]
    if rows:
        by_question = {row["question_id"]: row for row in rows}
        right = sum(is_right(row, settings.grader) for row in rows)
        name = f"fixed_{rows[0]['aggregator']}_round1_seed{seed}_{percent(right, len(rows))}.json"
        yield name, json_text([by_question[question.id]["text"] for question in questions])


def _rows(storage: Storage, folder: str, schema: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = storage.read_tables(storage.names(folder, ".parquet"), schema).to_pylist()
    return rows
