"""Step 4: k experts for every test question, by skill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pipelines.profile import read_profiles
from pipelines.run import Run
from symoe_ray.core import Profile
from symoe_ray.fingerprints import digest
from symoe_ray.ports import Embedder
from symoe_ray.recruit_tables import recruits_table
from symoe_ray.routing import COUNTED, Recruits, Router, RoutingRules, SkillMap, random_seats
from symoe_ray.skills import map_skills
from symoe_ray.storage import Storage
from symoe_ray.tables import QUESTIONS, SKILLS

STAGE = "recruit"
GIVEN = "skills/mapping.json"
PART_ROWS = 10_000

Asked = list[tuple[str, Sequence[str]]]


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
    asked, shards = read_asked(run.storage)
    mapping = skill_map(run.storage, asked, profiles, run.embed)
    facts = {}
    for seed, rule in rules.items():
        made = Router(profiles, rule).recruit(asked, mapping)
        _write(run, seed, made, shards, rule)
        facts[str(seed)] = {"counts": made.counts, "trimmed": made.trimmed, "kept": made.kept}
        _tell(run, seed, made)
    run.done(STAGE, inputs, seeds=facts)


def read_asked(storage: Storage) -> tuple[Asked, list[int]]:
    """The test questions as (id, skills) in file order, and their shards."""
    table = storage.read_tables(storage.names("skills", ".parquet"), SKILLS, ["question_id", "split", "skills"])
    columns = (table[name].to_pylist() for name in ("question_id", "split", "skills"))
    skills = {question_id: own for question_id, split, own in zip(*columns, strict=True) if split == "test"}
    files = storage.names("questions/test", ".parquet")
    questions = storage.read_tables(files, QUESTIONS, ["question_id", "shard", "position"]).sort_by("position")
    asked = [(question_id, skills.get(question_id, ())) for question_id in questions["question_id"].to_pylist()]
    return asked, questions["shard"].to_pylist()


def skill_map(storage: Storage, asked: Asked, profiles: Sequence[Profile], embed: Embedder) -> SkillMap:
    """Each test skill's nearest profile skill; those of an imported run's mapping as they stand there."""
    given: dict[str, str] = storage.read_json(GIVEN, {})
    known = sorted({skill for profile in profiles for skill in profile.scores})
    mapping: dict[str, tuple[str, float | None]] = {}
    mapping |= map_skills((s for _, skills in asked for s in skills if s not in given), known, embed)
    mapping |= {skill: (to, 1.0 if skill == to else None) for skill, to in given.items()}
    return mapping


def _write(run: Run, seed: int, made: Recruits, shards: list[int], rules: RoutingRules) -> None:
    folder = run.seed_folder(seed) + "recruits"
    run.storage.delete(folder)
    for number, start in enumerate(range(0, len(shards), PART_ROWS)):
        rows = range(start, min(start + PART_ROWS, len(shards)))
        ids = [question_id for question_id, _ in made.questions[start : rows.stop]]
        others = random_seats(ids, len(made.experts), rules.k, seed, replacement=rules.replacement)
        table = recruits_table(made, rows, shards[start : rows.stop], others)
        run.storage.write_table(f"{folder}/part-{number:05d}.parquet", table)


def _tell(run: Run, seed: int, made: Recruits) -> None:
    seats = Counter(made.experts[expert] for expert in made.seats.ravel().tolist())
    run.say(f"recruit (seed {seed}): seats {', '.join(f'{name} {count}' for name, count in seats.most_common())}")
    if made.trimmed:
        run.say(f"recruit (seed {seed}): trimmed {', '.join(made.trimmed)}")


def _warn(run: Run, seed: str, counts: Mapping[str, int]) -> None:
    """Also of a stage that ran in an earlier attempt: results.json and the report repeat the warnings."""
    for name in ("no_skills", "all_zero", "trimming_off", "negative_competence_and_suitability"):
        if counts.get(name):
            run.warn(f"recruit (seed {seed}): {COUNTED[name]}: {counts[name]}")
