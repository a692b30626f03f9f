"""Step 2: what each expert is good at, from its answers to the validation questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pipelines.grading import graded_drafts, is_right
from pipelines.run import Run
from pipelines.sharding import Rows, collect, generate
from symoe_ray.core import ExpertSpec, InputError, Profile
from symoe_ray.fingerprints import digest
from symoe_ray.requests import answer_request
from symoe_ray.skills import skill_scores
from symoe_ray.storage import Storage
from symoe_ray.tables import DRAFTS, SKILLS, question_of, request_row

STAGE = "profile"
PROFILES = "profiles/profiles.json"


def run_stage(run: Run) -> None:
    """Write profiles/part-*.parquet (graded answers) and profiles/profiles.json (skill scores per expert)."""
    settings = run.settings
    if settings.profiles:
        _borrow(run)
        return
    seed = settings.all_seeds[0]
    specs = {e.name: e for e in settings.pool.experts}
    asked = digest(run.output("questions"), sorted(specs), seed)
    inputs = digest(asked, run.output("annotate"), settings.grader)
    if not run.begin(STAGE, inputs):
        return
    splits = ("validation",)
    build = partial(_requests, settings.pool.experts, settings.max_tokens, seed)
    commits = generate(run, STAGE, splits, build, asked)
    collect(run, "profiles", splits, partial(graded_drafts, STAGE, specs, seed, run.verify), DRAFTS)
    profiles = _profiles(run)
    write_profiles(run.storage, profiles)
    for profile in profiles:
        run.say(f"profile: {profile.expert} {profile.correct} of {profile.graded} validation questions right")
    run.done(STAGE, inputs, commits)


def write_profiles(storage: Storage, profiles: Sequence[Profile]) -> None:
    """Write profiles.json."""
    rows = {
        p.expert: {"task": p.task, "graded": p.graded, "correct": p.correct, "scores": dict(sorted(p.scores.items()))}
        for p in profiles
    }
    storage.write_json(PROFILES, rows)


def read_profiles(storage: Storage) -> list[Profile]:
    """The profiles of a run, in the pool's order; InputError where it has none."""
    if not storage.exists(PROFILES):
        raise InputError(f"run {storage.uri} has no {PROFILES}: run `symoe profile` there first")
    return [Profile(expert=name, **row) for name, row in storage.read_json(PROFILES).items()]


def _requests(
    experts: Sequence[ExpertSpec], max_tokens: int, seed: int, _: Storage, rows: Rows
) -> Iterator[dict[str, Any]]:
    for row in rows:
        question = question_of(row)
        for spec in experts:
            request = answer_request(spec, question, run_seed=seed, max_tokens=max_tokens)
            yield request_row(request, row["shard"], seed)


def _profiles(run: Run) -> list[Profile]:
    """Every expert's scores: +1 for each skill of a question that it got right, -1 of one that it got wrong.

    A failed row says nothing about the expert, so it is left out.
    """
    columns = ["question_id", "expert", "correct", "reference_correct", "failure"]
    drafts = run.storage.read_tables(run.storage.names("profiles", ".parquet"), DRAFTS, columns).to_pylist()
    table = run.storage.read_tables(run.storage.names("skills", ".parquet"), SKILLS, ["question_id", "split", "skills"])
    skills = {r["question_id"]: r["skills"] for r in table.to_pylist() if r["split"] == "validation"}
    profiles = []
    for spec in run.settings.pool.experts:
        rows = [r for r in drafts if r["expert"] == spec.name and r["failure"] is None]
        correct = {r["question_id"]: is_right(r, run.settings.grader) for r in rows}
        scores = skill_scores({q: skills.get(q, ()) for q in correct}, correct)
        right = sum(correct.values())
        profiles.append(
            Profile(expert=spec.name, task=run.settings.task.name, scores=scores, graded=len(correct), correct=right)
        )
    return profiles


def _borrow(run: Run) -> None:
    """Use the profiles of other runs: their scores and counts added up, per expert of this pool."""
    found: dict[str, Profile] = {}
    sources = [Storage(_uri(run, name)) for name in run.settings.profiles]
    for storage in sources:
        for profile in read_profiles(storage):
            found[profile.expert] = _sum(found[profile.expert], profile) if profile.expert in found else profile
    missing = [e.name for e in run.settings.pool.experts if e.name not in found]
    if missing:
        raise InputError(f"profiles={','.join(run.settings.profiles)}: no profile of {', '.join(missing)}")
    profiles = [found[e.name] for e in run.settings.pool.experts]
    inputs = digest([[p.expert, dict(p.scores), p.graded, p.correct] for p in profiles])
    if run.begin(STAGE, inputs):
        write_profiles(run.storage, profiles)
        run.done(STAGE, inputs)


def _uri(run: Run, name: str) -> str:
    return name if "/" in name else f"{run.settings.output_dir.rstrip('/')}/{name}"


def _sum(one: Profile, other: Profile) -> Profile:
    skills = one.scores.keys() | other.scores.keys()
    return Profile(
        expert=one.expert, task=f"{one.task}+{other.task}",
        scores={s: one.scores.get(s, 0) + other.scores.get(s, 0) for s in skills},
        graded=one.graded + other.graded, correct=one.correct + other.correct,
    )  # fmt: skip
