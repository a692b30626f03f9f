"""Recruits, round-0 answers and final answers of the released code, as the run's own stages would have made them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pyarrow as pa

from pipelines import answer, recruit
from pipelines.imported_rows import Imported, commit
from pipelines.questions import read_questions
from pipelines.run import Run
from symoe_ray.reference_files import ReferenceFolder
from symoe_ray.requests import aggregate_request, answer_request, samples_wanted, seat_samples
from symoe_ray.tables import DRAFTS, RECRUITS


def recruits(run: Run, reference: ReferenceFolder) -> dict[str, int]:
    """Recruit files -> the stage `recruit`: our own rows with the stored seats; seed -> rows that we draw alike."""
    seeds = _stored_seeds(run, reference)
    if not seeds:
        return {}
    recruit.run_stage(run)
    column = RECRUITS.get_field_index("experts")
    same = {}
    for seed in seeds:
        folder = run.seed_folder(seed) + "recruits"
        table = run.storage.read_tables(run.storage.names(folder, ".parquet"), RECRUITS)
        stored = [list(row.experts) for row in reference.seats[seed]]
        same[str(seed)] = sum(a == b for a, b in zip(table["experts"].to_pylist(), stored, strict=True))
        table = table.set_column(column, RECRUITS.field(column), pa.array(stored, RECRUITS.field(column).type))
        run.storage.delete(folder)
        run.storage.delete(run.seed_folder(seed) + "seats")
        run.storage.write_table(f"{folder}/part-imported.parquet", table.cast(RECRUITS))
        if same[str(seed)] < len(stored):
            run.warn(
                f"seed {seed}: {len(stored) - same[str(seed)]} of {len(stored)} stored recruits are not those that "
                "these profiles in file-name order give; the stored ones are used"
            )
    return same


def _stored_seeds(run: Run, reference: ReferenceFolder) -> list[int]:
    """The run's seeds, where all of them have a file; a seed without one is left to the run's own stages."""
    seeds = run.settings.all_seeds
    missing = [seed for seed in seeds if seed not in reference.seats]
    if missing and reference.seats:
        run.warn(f"no recruit file of seed {', '.join(map(str, missing))}: recruits are left to `symoe recruit`")
    return [] if missing else list(seeds)


def answers(run: Run, reference: ReferenceFolder) -> int:
    """Round-0 files -> the stage `answer`."""
    if not _complete(run, reference):
        return 0
    count = commit(run, answer.STAGE, _answers(run, reference))
    answer.run_stage(run)
    return count


def _complete(run: Run, reference: ReferenceFolder) -> bool:
    """Whether every seat of every seed has a stored answer."""
    found = [reference.seats.get(seed) for seed in run.settings.all_seeds]
    return all(rows is not None and all(row.answers is not None for row in rows) for rows in found)


def _answers(run: Run, reference: ReferenceFolder) -> Iterator[Imported]:
    specs = {e.name: e for e in run.settings.pool.experts}
    questions = read_questions(run.storage, "test")
    for seed in run.settings.all_seeds:
        for (question, shard), row in zip(questions, reference.seats[seed], strict=True):
            assert row.answers is not None
            texts = dict(zip(seat_samples(row.experts), row.answers, strict=True))
            for expert, n in samples_wanted([row.experts]).items():
                request = answer_request(
                    specs[expert], question, run_seed=seed, max_tokens=run.settings.max_tokens, n=n
                )
                yield Imported(
                    request=request, shard=shard, run_seed=seed, texts=tuple(texts[expert, i] for i in range(n))
                )


def finals(run: Run, reference: ReferenceFolder) -> int:
    """Final answers -> the stage `aggregate`, as far as a question has a draft to aggregate."""
    if not reference.finals or not _complete(run, reference):
        return 0
    rows: list[Imported] = []
    for seed in run.settings.all_seeds:
        if seed in reference.finals:
            rows += _finals(run, reference, seed)
    return commit(run, "aggregate", rows)


def _finals(run: Run, reference: ReferenceFolder, seed: int) -> Iterator[Imported]:
    settings, (aggregator, texts) = run.settings, reference.finals[seed]
    drafts: dict[str, dict[tuple[str, int], str]] = defaultdict(dict)
    names = run.storage.names(run.seed_folder(seed) + "drafts", ".parquet")
    columns = ["question_id", "expert", "sample", "text"]
    for row in run.storage.read_tables(names, DRAFTS, columns).to_pylist():
        drafts[row["question_id"]][row["expert"], row["sample"]] = row["text"]
    questions = read_questions(run.storage, "test")
    for (question, shard), seats, text in zip(questions, reference.seats[seed], texts, strict=True):
        shown = [drafts[question.id][seat] for seat in seat_samples(seats.experts)]
        usable = [draft for draft in shown if draft.strip()]
        if usable:
            request, _ = aggregate_request(
                settings.pool.expert(aggregator), question, usable, run_seed=seed, max_tokens=settings.max_tokens,
                limit=settings.aggregate.max_draft_characters,
            )  # fmt: skip
            yield Imported(request=request, shard=shard, run_seed=seed, texts=(text,))
