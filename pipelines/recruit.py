"""Step 4: k experts for every test question, by skill."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from pipelines.profile import read_profiles
from pipelines.questions import read_questions
from pipelines.run import Run
from symoe_ray.fingerprints import digest
from symoe_ray.routing import COUNTED, Recruits, RoutingRules, random_experts, recruit
from symoe_ray.skills import map_skills
from symoe_ray.tables import RECRUITS, SKILLS, recruitment_row, table_of

STAGE = "recruit"
PART_ROWS = 10_000


def run_stage(run: Run) -> None:
    """Write recruits/part-*.parquet (of several seeds in their seed=<N> folders), in the order of the question file."""
    settings = run.settings
    rules = {seed: RoutingRules.from_settings(settings, seed) for seed in settings.all_seeds}
    inputs = digest(
        run.output("annotate"), run.output("profile"), settings.embedding_model,
        {str(seed): [getattr(r, name) for name in r.__slots__] for seed, r in rules.items()},
    )  # fmt: skip
    if run.begin(STAGE, inputs):
        _recruit(run, rules, inputs)
    for name, facts in run.manifest["stages"][STAGE]["seeds"].items():
        _warn(run, name, facts["counts"])


def _recruit(run: Run, rules: Mapping[int, RoutingRules], inputs: str) -> None:
    profiles = read_profiles(run.storage)
    known = sorted({skill for profile in profiles for skill in profile.scores})
    skills = _test_skills(run)
    mapping = map_skills((s for own in skills.values() for s in own), known, run.embed)
    questions = read_questions(run.storage, "test")
    asked = [(q.id, skills.get(q.id, ())) for q, _ in questions]
    facts = {}
    for seed, rule in rules.items():
        made = recruit(asked, mapping, profiles, rule)
        _write(run, seed, made, [shard for _, shard in questions], rule)
        facts[str(seed)] = {"counts": made.counts, "trimmed": made.trimmed, "kept": made.kept}
        _tell(run, seed, made)
    run.done(STAGE, inputs, seeds=facts, mapped={s: [to, round(c, 4)] for s, (to, c) in sorted(mapping.items())})


def _test_skills(run: Run) -> dict[str, tuple[str, ...]]:
    table = run.storage.read_tables(run.storage.names("skills", ".parquet"), SKILLS, ["question_id", "split", "skills"])
    return {r["question_id"]: tuple(r["skills"]) for r in table.to_pylist() if r["split"] == "test"}


def _write(run: Run, seed: int, made: Recruits, shards: list[int], rules: RoutingRules) -> None:
    folder = run.seed_folder(seed) + "recruits"
    run.storage.delete(folder)
    experts = [e.name for e in run.settings.pool.experts]
    rows = [
        recruitment_row(r, shard, random_experts(r.question_id, experts, rules.k, seed, replacement=rules.replacement))
        for r, shard in zip(made.recruitments, shards, strict=True)
    ]
    for number, start in enumerate(range(0, len(rows), PART_ROWS)):
        table = table_of(rows[start : start + PART_ROWS], RECRUITS)
        run.storage.write_table(f"{folder}/part-{number:05d}.parquet", table)


def _tell(run: Run, seed: int, made: Recruits) -> None:
    seats: dict[str, int] = defaultdict(int)
    for recruitment in made.recruitments:
        for expert in recruitment.experts:
            seats[expert] += 1
    told = ", ".join(f"{name} {count}" for name, count in sorted(seats.items(), key=lambda item: -item[1]))
    run.say(f"recruit (seed {seed}): seats {told}")
    if made.trimmed:
        run.say(f"recruit (seed {seed}): trimmed {', '.join(made.trimmed)}")


def _warn(run: Run, seed: str, counts: Mapping[str, int]) -> None:
    """Also of a stage that ran in an earlier attempt: results.json and the report repeat the warnings."""
    for name in ("no_skills", "all_zero", "trimming_off", "negative_competence_and_suitability"):
        if counts.get(name):
            run.warn(f"recruit (seed {seed}): {COUNTED[name]}: {counts[name]}")
