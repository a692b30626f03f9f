"""Step 5: the recruited experts answer, with what the baselines need: each expert loaded once for all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from pipelines.bench_aggregators import aggregator_of
from pipelines.grading import graded_drafts
from pipelines.profile import read_lengths, read_profiles
from pipelines.run import Run
from pipelines.sharding import Rows, Work, collect, generate, seats_of
from symoe_ray.baselines import baseline_samples, baselines_of
from symoe_ray.core import ExpertSpec
from symoe_ray.fingerprints import digest
from symoe_ray.length_guesses import relative_length
from symoe_ray.requests import answer_request, samples_wanted
from symoe_ray.results import ranked
from symoe_ray.storage import Storage
from symoe_ray.tables import DRAFTS, SKILLED_SEATS, question_of, request_row

STAGE = "answer"


def run_stage(run: Run) -> None:
    """Write drafts/part-*.parquet (in seed=<N> folders for several seeds): the graded answers of all experts asked."""
    settings, work = run.settings, _work(run)
    if not run.begin(STAGE, work.inputs):
        return
    commits = generate(run, work)
    specs = {e.name: e for e in settings.pool.experts}
    for seed, folder in _folders(run).items():
        collect(run, folder + "drafts", work.splits, partial(graded_drafts, STAGE, specs, seed, run.verify), DRAFTS)
    run.done(STAGE, work.inputs, commits)


def due_work(run: Run) -> Work | None:
    """What the stage will have generated, None if it has run."""
    work = _work(run)
    return work if run.is_due(STAGE, work.inputs) else None


def _work(run: Run) -> Work:
    settings, ranking = run.settings, ranking_of(run)
    everyone = baseline_samples(settings, ranking)
    random_seats = "random_experts" in baselines_of(settings)
    specs = {e.name: e for e in settings.pool.experts}
    build = partial(_requests, specs, _folders(run), everyone, random_seats, settings.max_tokens)
    inputs = digest(run.output("questions"), run.output("recruit"), everyone, random_seats)
    aggregator = aggregator_of(run) or next(iter(ranking), "")  # likely, while the benchmark is generated with this
    then = (aggregator,) if aggregator else ()
    return Work(stage=STAGE, splits=("test",), build=build, inputs=inputs, then=then)


def _folders(run: Run) -> dict[int, str]:
    return {seed: run.seed_folder(seed) for seed in run.settings.all_seeds}


def ranking_of(run: Run) -> list[str]:
    """The pool's experts that have a profile, from the highest validation accuracy on."""
    pool = {e.name for e in run.settings.pool.experts}
    return ranked({p.expert: (p.correct, p.graded + p.failed) for p in read_profiles(run.storage) if p.expert in pool})


def _requests(
    specs: Mapping[str, ExpertSpec], folders: Mapping[int, str], everyone: Mapping[str, int], random_seats: bool,
    max_tokens: int, storage: Storage, rows: Rows,
) -> Iterable[dict[str, Any]]:  # fmt: skip
    """Those that are guessed to have the longest answers first."""
    made = _in_file_order(specs, folders, everyone, random_seats, max_tokens, storage, rows)
    return sorted(made, key=lambda row: -row["relative_length"])


def _in_file_order(
    specs: Mapping[str, ExpertSpec], folders: Mapping[int, str], everyone: Mapping[str, int], random_seats: bool,
    max_tokens: int, storage: Storage, rows: Rows,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    guesses = read_lengths(storage)
    for seed, folder in folders.items():
        recruits = seats_of(storage, folder, rows, SKILLED_SEATS)
        for row in rows:
            question = question_of(row)
            recruit = recruits[question.id]
            seats = [recruit["experts"], recruit["random_experts"]] if random_seats else [recruit["experts"]]
            for expert, n in samples_wanted(seats, everyone).items():
                request = answer_request(specs[expert], question, run_seed=seed, max_tokens=max_tokens, n=n)
                length = relative_length(guesses.get(expert, {}), recruit["mapped"] or ())
                yield request_row(request, row["shard"], seed, length)
