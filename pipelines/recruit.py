"""Step 4: k experts for every test question, by skill."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.profile import read_profiles
from pipelines.run import Run
from symoe_ray.core import Profile
from symoe_ray.fingerprints import digest
from symoe_ray.ports import Embedder
from symoe_ray.recruit_tables import recruits_table
from symoe_ray.routing import COUNTED, Recruits, Router, RoutingRules, SkillMap, random_seats
from symoe_ray.shard_files import shard_file
from symoe_ray.skills import map_skills
from symoe_ray.storage import Storage
from symoe_ray.tables import QUESTIONS, RECRUITS, SKILLED_SEATS, SKILLS

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
        {str(seed): [getattr(r, name) for name in r.__slots__] for seed, r in rules.items()}, SKILLED_SEATS.names,
    )  # fmt: skip
    if run.begin(STAGE, inputs):
        _recruit(run, rules, inputs)
    for name, facts in run.manifest["stages"][STAGE]["seeds"].items():
        _warn(run, name, facts["counts"])


def _recruit(run: Run, rules: Mapping[int, RoutingRules], inputs: str) -> None:
    profiles, asked = read_profiles(run.storage), asked_table(run.storage)
    mapping = skill_map(run.storage, pc.unique(pc.list_flatten(asked["skills"])).to_pylist(), profiles, run.embed)
    facts = {}
    for seed, rule in rules.items():
        facts[str(seed)] = _recruit_seed(run, seed, Router(profiles, rule), rule, asked, mapping)
        _tell(run, seed, facts[str(seed)])
    run.done(STAGE, inputs, seeds=facts)


def _recruit_seed(
    run: Run, seed: int, router: Router, rule: RoutingRules, asked: pa.Table, mapping: SkillMap
) -> dict[str, Any]:
    """Write a seed's recruits and seats a batch at a time; what the manifest keeps of them.

    The reference sampler has one generator for all questions, so they are one batch to it.
    """
    batch_rows = PART_ROWS if rule.sampler == "hash" else max(1, len(asked))
    batches = range(0, len(asked), batch_rows)
    kept, trimming_off = None, 0
    if rule.sampler == "hash":
        kept, trimming_off = router.staying((_asked(asked.slice(i, batch_rows)) for i in batches), mapping)
    for name in ("recruits", "seats"):
        run.storage.delete(run.seed_folder(seed) + name)
    counts, seats, trimmed = Counter({"trimming_off": trimming_off}), Counter[str](), tuple[str, ...]()
    for start in batches:
        made = router.recruit(_asked(asked.slice(start, batch_rows)), mapping, kept=kept)
        counts.update(made.counts)
        numbers = np.bincount(made.seats.ravel(), minlength=len(made.experts)).tolist()
        seats.update(dict(zip(made.experts, numbers, strict=True)))
        trimmed, kept = made.trimmed, made.kept
        _write(run, seed, made, start, asked["shard"].slice(start, batch_rows).to_pylist(), rule)
    _write_seats(run, seed)
    return {
        "counts": {name: count for name, count in counts.items() if count}, "trimmed": trimmed,
        "kept": kept if kept is not None else router.experts, "seats": dict(seats),
    }  # fmt: skip


def asked_table(storage: Storage) -> pa.Table:
    """`question_id`, `shard` and `skills` of the test questions, in file order."""
    files = storage.names("questions/test", ".parquet")
    questions = storage.read_tables(files, QUESTIONS, ["question_id", "shard", "position"]).sort_by("position")
    table = storage.read_tables(storage.names("skills", ".parquet"), SKILLS, ["question_id", "split", "skills"])
    table = table.filter(pc.equal(table["split"], "test"))
    places = pc.index_in(questions["question_id"], value_set=table["question_id"].combine_chunks())
    return questions.drop_columns("position").append_column("skills", table["skills"].take(places))


def read_asked(storage: Storage) -> tuple[Asked, list[int]]:
    """The test questions as (id, skills) in file order, and their shards."""
    table = asked_table(storage)
    return _asked(table), table["shard"].to_pylist()


def _asked(table: pa.Table) -> Asked:
    pairs = zip(table["question_id"].to_pylist(), table["skills"].to_pylist(), strict=True)
    return [(question_id, skills or ()) for question_id, skills in pairs]


def skill_map(storage: Storage, skills: Iterable[str], profiles: Sequence[Profile], embed: Embedder) -> SkillMap:
    """Each test skill's nearest profile skill; those of an imported run's mapping as they stand there."""
    given: dict[str, str] = storage.read_json(GIVEN, {})
    known = sorted({skill for profile in profiles for skill in profile.scores})
    mapping: dict[str, tuple[str, float | None]] = {}
    mapping |= map_skills((s for s in skills if s not in given), known, embed)
    mapping |= {skill: (to, 1.0 if skill == to else None) for skill, to in given.items()}
    return mapping


def _write(run: Run, seed: int, made: Recruits, start: int, shards: list[int], rules: RoutingRules) -> None:
    """Write a batch's recruits, which begin with row `start` of the file."""
    folder = run.seed_folder(seed) + "recruits"
    for first in range(0, len(shards), PART_ROWS):
        rows = range(first, min(first + PART_ROWS, len(shards)))
        ids = [question_id for question_id, _ in made.questions[first : rows.stop]]
        others = random_seats(ids, len(made.experts), rules.k, seed, replacement=rules.replacement)
        table = recruits_table(made, rows, shards[first : rows.stop], others)
        run.storage.write_table(f"{folder}/part-{(start + first) // PART_ROWS:05d}.parquet", table)


def _write_seats(run: Run, seed: int) -> None:
    """Write who sits where once more, by shard: recruits/ is in file order, and who needs a shard would read it all."""
    folder = run.seed_folder(seed)
    table = run.storage.read_tables(run.storage.names(f"{folder}recruits", ".parquet"), RECRUITS, SKILLED_SEATS.names)
    order = pc.sort_indices(table["shard"].combine_chunks())
    sorted_ = table.take(order)
    shards = sorted_["shard"].to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    for first, stop in itertools.pairwise(cuts):
        if stop > first:
            name = f"{folder}seats/{shard_file(int(shards[first]), 0)}"
            run.storage.write_table(name, sorted_.slice(first, stop - first))


def _tell(run: Run, seed: int, facts: Mapping[str, Any]) -> None:
    seats = Counter(facts["seats"]).most_common()
    run.say(f"recruit (seed {seed}): seats {', '.join(f'{name} {count}' for name, count in seats if count)}")
    if facts["trimmed"]:
        run.say(f"recruit (seed {seed}): trimmed {', '.join(facts['trimmed'])}")


def _warn(run: Run, seed: str, counts: Mapping[str, int]) -> None:
    """Also of a stage that ran in an earlier attempt: results.json and the report repeat the warnings."""
    for name in ("no_skills", "all_zero", "trimming_off", "negative_competence_and_suitability"):
        if counts.get(name):
            run.warn(f"recruit (seed {seed}): {COUNTED[name]}: {counts[name]}")
