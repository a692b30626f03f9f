"""Step 2: what each expert is good at, from its answers to the validation questions."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pipelines.grading import graded_drafts, is_right
from pipelines.questions import read_questions
from pipelines.run import Run, run_uri
from pipelines.sharding import Rows, Work, collect, generate
from symoe_ray.core import ExpertSpec, InputError, Profile
from symoe_ray.fingerprints import digest
from symoe_ray.grading import GRADER_VERSION
from symoe_ray.leaks import find_leaks, summary
from symoe_ray.length_guesses import LengthGuesses, length_guesses
from symoe_ray.profiles import Book, Evidence, differences, evidence_of, from_json, merged, profile_of, to_json
from symoe_ray.requests import answer_request
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import DRAFTS, SKILLS, question_of, request_row

STAGE = "profile"
PROFILES = "profiles/profiles.json"
LENGTHS = "profiles/lengths.json"


def run_stage(run: Run) -> None:
    """Write profiles/part-*.parquet (graded answers), profiles/profiles.json (skill scores per expert) and
    profiles/lengths.json (how long its answers are by skill).
    """
    if run.settings.profiles:
        _borrow(run)
    else:
        _profile(run)
        for warning in run.manifest["stages"][STAGE].get("warnings", ()):
            run.warn(warning)


def _profile(run: Run) -> None:
    settings, work = run.settings, _work(run)
    inputs = _inputs(run, work, run.output("annotate"))
    if not run.begin(STAGE, inputs):
        return
    commits = generate(run, work)
    specs, seed = {e.name: e for e in settings.pool.experts}, settings.all_seeds[0]
    collect(run, "profiles", work.splits, partial(graded_drafts, STAGE, specs, seed, run.verify), DRAFTS)
    book = book_of(run.storage, settings)
    write_book(run.storage, book)
    run.storage.write_json(LENGTHS, _lengths(run.storage))
    for profile in read_profiles(run.storage):
        run.say(f"profile: {profile.expert} {profile.correct} of {profile.graded} validation questions right")
    run.done(STAGE, inputs, commits, warnings=_leaks(run.storage, run.storage))


def due_work(run: Run) -> Work | None:
    """What the stage will have generated, also before the skills are known; None if it has run, or generates nothing.

    Skills decide what is made of the answers, not which are asked for.
    """
    if run.settings.profiles:
        return None
    work, annotated = _work(run), run.manifest["stages"].get("annotate")
    inputs = _inputs(run, work, annotated["output"] if annotated else "")
    return work if run.is_due(STAGE, inputs) else None


def _work(run: Run) -> Work:
    settings, seed = run.settings, run.settings.all_seeds[0]
    inputs = digest(run.output("questions"), sorted(e.name for e in settings.pool.experts), seed)
    build = partial(_requests, settings.pool.experts, settings.max_tokens, seed)
    return Work(stage=STAGE, splits=("validation",), build=build, inputs=inputs)


def _inputs(run: Run, work: Work, annotated: str) -> str:
    return digest(work.inputs, annotated, run.settings.grader, GRADER_VERSION)


def book_of(storage: Storage, settings: Settings) -> Book:
    """The evidence in a run's graded validation answers, by the settings' grader, for each expert of the pool.

    A failed row says nothing about a skill; it counts against the expert's accuracy.
    """
    columns = ["question_id", "expert", "correct", "reference_correct", "failure"]
    drafts = storage.read_tables(storage.names("profiles", ".parquet"), DRAFTS, columns).to_pylist()
    skills = _validation_skills(storage)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    book = {}
    for spec in settings.pool.experts:
        rows = [r for r in drafts if r["expert"] == spec.name]
        correct = {r["question_id"]: is_right(r, settings.grader) for r in rows if r["failure"] is None}
        evidence = evidence_of(
            spec, {q: skills.get(q, ()) for q in correct}, correct, task=settings.task.name, grader=settings.grader,
            seed=settings.all_seeds[0], made=today, failed=len(rows) - len(correct),
        )  # fmt: skip
        book[spec.name] = (evidence,)
    return book


def read_lengths(storage: Storage) -> LengthGuesses:
    """How long the answers of a run's experts are by skill; {} where it has not profiled them itself."""
    found: LengthGuesses = storage.read_json(LENGTHS, {})
    return found


def _lengths(storage: Storage) -> LengthGuesses:
    columns = ["question_id", "expert", "completion_tokens", "failure"]
    drafts = storage.read_tables(storage.names("profiles", ".parquet"), DRAFTS, columns).to_pylist()
    answers = ((r["expert"], r["question_id"], r["completion_tokens"]) for r in drafts if r["failure"] is None)
    return length_guesses(answers, _validation_skills(storage))


def _validation_skills(storage: Storage) -> dict[str, Sequence[str]]:
    table = storage.read_tables(storage.names("skills", ".parquet"), SKILLS, ["question_id", "split", "skills"])
    return {r["question_id"]: r["skills"] or () for r in table.to_pylist() if r["split"] == "validation"}


def write_book(storage: Storage, book: Book) -> None:
    """Write profiles.json."""
    storage.write_json(PROFILES, to_json(book))


def read_book(storage: Storage) -> Book:
    """The evidence of a run's profiles; InputError where it has none."""
    if not storage.exists(PROFILES):
        raise InputError(f"run {storage.uri} has no {PROFILES}: run `symoe profile` there first")
    return from_json(storage.read_json(PROFILES), storage.path(PROFILES))


def sources_of(settings: Settings) -> list[Storage]:
    """The runs whose profiles are used: `profiles=RUN,...`."""
    return [Storage(run_uri(settings, name)) for name in settings.profiles]


def write_profiles(storage: Storage, profiles: Sequence[Profile]) -> None:
    """Write a profiles.json of scores whose answers are not known one by one."""
    write_book(
        storage,
        {
            p.expert: (Evidence(task=p.task, scores=p.scores, graded=p.graded, correct=p.correct, failed=p.failed),)
            for p in profiles
        },
    )


def read_profiles(storage: Storage) -> list[Profile]:
    """The profiles of a run, in the order of the file; InputError where it has none."""
    return [profile_of(expert, evidence) for expert, evidence in read_book(storage).items()]


def _requests(
    experts: Sequence[ExpertSpec], max_tokens: int, seed: int, _: Storage, rows: Rows
) -> Iterator[dict[str, Any]]:
    for row in rows:
        question = question_of(row)
        for spec in experts:
            request = answer_request(spec, question, run_seed=seed, max_tokens=max_tokens)
            yield request_row(request, row["shard"], seed)


def _leaks(profiled: Storage, tested: Storage) -> list[str]:
    """A warning where questions that a run was profiled with are in the test set of one."""
    validation = [question for question, _ in read_questions(profiled, "validation")]
    leaks = find_leaks(validation, [question for question, _ in read_questions(tested, "test")])
    if not leaks:
        return []
    if profiled is tested:
        return [f"{summary(leaks, len(validation))}; exclude_leaks=true leaves them out"]
    return [f"profiles of {profiled.uri}: {summary(leaks, len(validation))}, of which these profiles know the answers"]


def _borrow(run: Run) -> None:
    """Use the profiles of other runs: their evidence united, per expert of this pool."""
    names, experts = run.settings.profiles, run.settings.pool.experts
    sources = sources_of(run.settings)
    found = merged(map(read_book, sources))
    missing = [e.name for e in experts if e.name not in found]
    if missing:
        raise InputError(f"profiles={','.join(names)}: no profile of {', '.join(missing)}")
    for spec in experts:
        now = evidence_of(spec, {}, {}, task="", grader=run.settings.grader, seed=0, made="")
        for what, (then, here) in differences(found[spec.name], [now]).items():
            run.warn(f"profiles of {spec.name} were made with another {what}: {', '.join(then)}, here {here[0]}")
    for source in sources:
        for warning in _leaks(source, run.storage):
            run.warn(warning)
    inputs = digest([[e.name, [piece.id for piece in found[e.name]]] for e in experts])
    if run.begin(STAGE, inputs):
        write_book(run.storage, {e.name: found[e.name] for e in experts})
        run.done(STAGE, inputs)
