"""`symoe replay RUN key=value ...`: a run recruited and scored under other settings, from what it has generated."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipelines.bench_aggregators import RESULT
from pipelines.opening import embedder_of, opened, verifier
from pipelines.panels import Layer, Panel
from pipelines.profile import book_of, read_book, read_profiles, sources_of
from pipelines.progress import Display
from pipelines.recruit import Asked, read_asked, skill_map
from pipelines.replay_cache import Cache, Row, Wanted
from pipelines.replay_scores import Variant, aggregations, own_result, score
from pipelines.run import CONFIG, Run, generation_facts, run_uri, settings_of
from pipelines.signals import DONE, Signals
from symoe_ray.config import load
from symoe_ray.core import InputError, Profile
from symoe_ray.fingerprints import digest
from symoe_ray.ledger import missing_chunks
from symoe_ray.length_estimates import most_tokens, unseen_tokens
from symoe_ray.ports import Embedder
from symoe_ray.profiles import merged, profile_of
from symoe_ray.replaying import adjust, grid_of, replay_table
from symoe_ray.requests import samples_wanted
from symoe_ray.routing import Router, RoutingRules, SkillMap
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import REQUESTS, request_row, table_of

KEPT = (CONFIG, "status.json")


def add_command(commands: Any) -> None:
    """Add `replay` to the parser's commands."""
    parser = commands.add_parser(
        "replay",
        help="recruit and score a run again under other settings, from its cached answers",
        description="Settings are key=value; several values between commas make a grid: k=1,3,5 router=reference,paper."
        " Only what is missing is generated, and it stays in the run's cache; with --offline nothing is, and each "
        "setting says how much of it is covered. The run's own results stay as they are; a setting's scores go to "
        "replays/<hash>.json in the run's folder. An expert's j-th seat takes its sample j; another seed draws other "
        "experts and takes other samples.",
    )
    parser.add_argument("run", metavar="RUN", help="name or path of the run")
    parser.add_argument("--offline", action="store_true", help="generate nothing")
    parser.add_argument("--json", action="store_true", help="the scores as JSON on standard output")
    parser.set_defaults(function=_replay)


def _replay(options: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
    grid, machine = grid_of(overrides)
    storage = Storage(run_uri(load([o for o in machine if "output_dir" in o]), options.run))
    settings = settings_of(storage, machine)
    if settings is None or "answer" not in storage.read_json("manifest.json", {"stages": {}})["stages"]:
        raise InputError(f"there is no run with answers at {storage.uri}: finish it with `symoe run` first")
    display = Display(sys.stderr if options.json else sys.stdout)
    variants = _variants(storage, settings, grid, embedder_of(settings))
    cache = Cache(storage, settings, verifier())
    if options.offline:
        cache.look_up_drafts(_wanted(variants))
    else:
        with _undisturbed(storage), opened(settings, storage.uri, display, signals) as run:
            _generate(run, cache, variants)
    own = own_result(cache)
    rows = [score(cache, variant, own) for variant in variants]
    adjust(rows)
    for row in rows:
        row |= {"run": storage.uri, "offline": options.offline, "time": time.time()}
        storage.write_json(row["file"], row)
    print(json.dumps({"run": storage.uri, "replays": rows}) if options.json else replay_table(rows))
    return DONE


def _variants(
    storage: Storage, settings: Settings, grid: Sequence[Mapping[str, str]], embed: Embedder
) -> list[Variant]:
    asked, _ = read_asked(storage)
    found = []
    maps: dict[str, SkillMap] = {}
    for changes in grid:
        words = [f"{key}={value}" for key, value in changes.items()]
        own = settings_of(storage, [*words, *(["seeds=[]"] if "seed" in changes and "seeds" not in changes else [])])
        assert own is not None
        if generation_facts(own) != generation_facts(settings):
            raise InputError(f"{' '.join(words)}: changes what is generated, so it takes a run of its own")
        profiles = _profiles(storage, own, settings)
        known = digest(own.embedding_model, sorted({skill for profile in profiles for skill in profile.scores}))
        if known not in maps:
            maps[known] = skill_map(storage, (s for _, skills in asked for s in skills), profiles, embed)
        found.append(_variant(storage, changes, own, asked, profiles, maps[known]))
    return found


def _variant(
    storage: Storage,
    changes: Mapping[str, str],
    own: Settings,
    asked: Asked,
    profiles: Sequence[Profile],
    mapping: SkillMap,
) -> Variant:
    recruits = {
        seed: Router(profiles, RoutingRules.from_settings(own, seed)).recruit(asked, mapping) for seed in own.all_seeds
    }
    writer = own.aggregator if own.aggregator != "auto" else str(storage.read_json(RESULT)["chosen"])
    panel = Panel(method="symoe", writer=own.pool.expert(writer), seats="experts")
    layer = Layer(stage="aggregate", panels=(panel,), rules=own.aggregate, grader=own.grader, max_tokens=own.max_tokens)
    return Variant(changes=dict(changes), settings=own, recruits=recruits, layer=layer)


def _profiles(storage: Storage, own: Settings, settings: Settings) -> list[Profile]:
    """The run's profiles; where the grader is another one, made anew from its graded validation answers."""
    if own.profiles != settings.profiles:
        book = merged(map(read_book, sources_of(own)))
        missing = [e.name for e in own.pool.experts if e.name not in book]
        if missing:
            raise InputError(f"profiles={','.join(own.profiles)}: no profile of {', '.join(missing)}")
        return [profile_of(e.name, book[e.name]) for e in own.pool.experts]
    if own.grader != settings.grader and not own.profiles and storage.names("profiles", ".parquet"):
        return [profile_of(expert, evidence) for expert, evidence in book_of(storage, own).items()]
    return read_profiles(storage)


def _wanted(variants: Sequence[Variant]) -> Wanted:
    """The samples that the seats of all variants take together."""
    seats: dict[int, dict[str, list[list[str]]]] = defaultdict(lambda: defaultdict(list))
    for variant in variants:
        for seed, made in variant.recruits.items():
            for (question_id, _), row in zip(made.questions, made.seats.tolist(), strict=True):
                seats[seed][question_id].append([made.experts[i] for i in row])
    return {s: {q: samples_wanted(drawn) for q, drawn in by_question.items()} for s, by_question in seats.items()}


@contextmanager
def _undisturbed(storage: Storage) -> Iterator[None]:
    """What opening a run writes about its settings and its end is put back: a replay is no attempt at the run."""
    before = {name: storage.read_bytes(name) for name in KEPT if storage.exists(name)}
    try:
        yield
    finally:
        for name, data in before.items():
            storage.write_bytes(name, data)


def _generate(run: Run, cache: Cache, variants: Sequence[Variant]) -> None:
    """Have the missing drafts of all variants generated, then the missing final answers."""
    missing = cache.look_up_drafts(_wanted(variants))
    drafts = [
        request_row(cache.request(seed, question, expert), cache.shards[question], seed) | {"n": samples}
        for seed, by_question in missing.items()
        for question, experts in by_question.items()
        for expert, samples in experts.items()
    ]
    _have(run, "answer", drafts)
    cache.look_up_drafts(_wanted(variants))
    asked = {
        case.request.id: request_row(case.request, case.shard, seed)
        for variant in variants
        for seed in variant.recruits
        for case in aggregations(cache, variant, seed)
        if case is not None and case.request is not None
    }
    _have(run, "aggregate", [row for _, row in sorted(asked.items())])


def _have(run: Run, stage: str, rows: Sequence[Row]) -> None:
    """Generate what these requests lack and commit it to the stage, whose own requests stay as they are."""
    by_expert: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_expert[row["expert"]].append({name: row[name] for name in REQUESTS.names})
    folder = f"requests/replays/{stage}"
    run.storage.delete(folder)
    files = {}
    for expert, own in by_expert.items():
        files[expert] = [f"{folder}/expert={expert}/part-0.parquet"]
        table = table_of(sorted(own, key=lambda row: row["shard"]), REQUESTS)
        run.storage.write_table(files[expert][0], table)
    most = {e.name: most_tokens(run.settings, stage, e) for e in run.settings.pool.experts}
    estimate = {name: unseen_tokens(limit) for name, limit in most.items()}
    rows_at_once = run.settings.engine.chunk_rows
    chunks = list(missing_chunks(run.storage, stage, files, chunk_rows=rows_at_once, estimate=estimate, most=most))
    if chunks:
        run.say(f"replay: {sum(c.rows for c in chunks)} requests for stage {stage}")
        run.pool().generate("replay", chunks, run.on_progress)
    run.storage.delete(folder)
