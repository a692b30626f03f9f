"""Grading again what a run has stored: each row's generated text is looked up, and its grades alone are replaced.

The texts stay as the aggregator has read them, so every row finds the request that it came from. A file is replaced at
once, so a run that is cut off in between holds valid rows, some graded by the old rules; grading again mends that.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import aggregate, answer, bench_aggregators, moa, profile
from pipelines.grading import graded
from pipelines.panels import Layer, Panel, case_of
from pipelines.run import Run
from pipelines.sharding import question_files, rows_of_shards
from symoe_ray.core import InputError, Question
from symoe_ray.grading import Verify
from symoe_ray.ledger import Commits, responses
from symoe_ray.requests import seat_samples
from symoe_ray.seed_data import BASELINES
from symoe_ray.settings import PoolSettings
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, question_of

GRADES = ("answer", "correct", "unparsed", "truncated", "reference_answer", "reference_correct")
SHARDS_AT_ONCE = 16
FEW_SHARDS = 2

Row = dict[str, Any]
Find = Callable[[Row, Question], Row]
"""A stored row and its question -> its response, or a row with the same grades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedTable:
    """A folder of graded rows of one stage and seed. Those that read drafts have their `layer`, to find requests by."""

    folder: str
    stage: str
    splits: tuple[str, ...]
    seed: int
    seed_folder: str = ""
    layer: Layer | None = None
    finals: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Of the table's files."""
        return ANSWERS if self.finals else DRAFTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Regraded:
    """What came of it, by folder: rows, and how many of them have other grades now."""

    rows: Mapping[str, int]
    changed: Mapping[str, int]


def regrade(run: Run) -> Regraded:
    """Grade all stored answers of a run again, on all cores where they are many; drafts before what reads them."""
    tables = [table for table in graded_tables(run) if Commits(run.storage).names(table.stage)]
    groups = {splits: _groups(run.storage, splits) for splits in {table.splits for table in tables}}
    rows: dict[str, int] = {}
    changed: dict[str, int] = {}
    with _workers(sum(map(len, groups.values()))) as in_order:
        for finals in (False, True):
            own = [table for table in tables if table.finals == finals]
            tasks = [(table, shards) for table in own for shards in groups[table.splits]]
            made: dict[str, list[pa.Table]] = defaultdict(list)
            work = partial(_regrade_shards, run.storage.uri, run.settings.pool, run.verify)
            for (table, _), grades in zip(tasks, in_order(work, tasks), strict=True):
                made[table.folder].append(grades)
            for table in own:
                rows[table.folder], changed[table.folder] = _replace(run.storage, table, made[table.folder])
    return Regraded(rows=rows, changed=changed)


def graded_tables(run: Run) -> list[GradedTable]:
    """All tables of a run that hold grades."""
    first = run.settings.all_seeds[0]
    found = [
        GradedTable(folder=folder, stage=stage, splits=("validation",), seed=first)
        for folder, stage in (("profiles", profile.STAGE), ("aggregators", bench_aggregators.STAGE))
    ]
    layer, layers = aggregate.layer_of(run), moa.layers_of(run)
    for seed in run.settings.all_seeds:
        at = run.seed_folder(seed)
        drafts = GradedTable(folder=f"{at}drafts", stage=answer.STAGE, splits=("test",), seed=seed, seed_folder=at)
        found += [drafts, replace(drafts, folder=f"{at}answers", stage=aggregate.STAGE, layer=layer, finals=True)]
        for name, own in layers.items():
            folder = f"{at}{BASELINES}/{name}"
            found.append(replace(drafts, folder=folder, stage=own.stage, layer=own, finals=name == moa.FINALS))
    return found


def _groups(storage: Storage, splits: tuple[str, ...]) -> list[list[int]]:
    """The shards of some splits, in as many even groups as keep all cores busy."""
    tables = [storage.read_table(name, ["shard"]) for name in question_files(storage, splits)]
    shards = sorted({shard for table in tables for shard in pc.unique(table["shard"]).to_pylist()})
    cores = len(os.sched_getaffinity(0))
    count = min(len(shards), cores * -(-len(shards) // (cores * SHARDS_AT_ONCE)))
    return [shards[number::count] for number in range(count)]


@contextmanager
def _workers(groups: int) -> Iterator[Callable[..., Iterator[pa.Table]]]:
    """What maps a function over tasks, in order: in processes of their own where the groups of shards are many."""
    if groups <= FEW_SHARDS:
        yield map
        return
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        yield pool.map


def _regrade_shards(
    uri: str, pool: PoolSettings, verify: Verify | None, task: tuple[GradedTable, Sequence[int]]
) -> pa.Table:
    """The grades of a table's rows of some shards, with their `file` and `place` in it."""
    table, shards = task
    storage = Storage(uri)
    questions = _questions(storage, table.splits, shards)
    find = _by_request(storage, table, shards) if table.layer else _by_seat(storage, table, shards)
    made = [_NO_GRADES]
    for number, name in enumerate(storage.names(table.folder, ".parquet")):
        part = storage.read_table(name).cast(table.schema)
        places = np.flatnonzero(np.isin(part["shard"].to_numpy(), shards))
        old = part.take(pa.array(places)).to_pylist()
        new = [_grades(row, questions[row["question_id"], row["shard"]], find, pool, verify) for row in old]
        columns = {name: [row[name] for row in new] for name in GRADES}
        made.append(pa.table(columns | {"file": [number] * len(new), "place": places}, schema=_NO_GRADES.schema))
    return pa.concat_tables(made)


def _replace(storage: Storage, table: GradedTable, made: Sequence[pa.Table]) -> tuple[int, int]:
    """Write the files whose grades have changed; rows of the table, and how many of them have changed."""
    grades = pa.concat_tables([_NO_GRADES, *made]).sort_by("place")
    changed = 0
    for number, name in enumerate(storage.names(table.folder, ".parquet")):
        part, own = storage.read_table(name).cast(table.schema), grades.filter(pc.field("file") == number)
        differing = np.zeros(len(part), dtype=bool)
        for column in GRADES:
            differing |= pc.not_equal(part[column], own[column]).to_numpy()
            part = part.set_column(part.schema.get_field_index(column), part.schema.field(column), own[column])
        if differing.any():
            storage.write_table(name, part)
        changed += int(differing.sum())
    return len(grades), changed


_NO_GRADES = pa.schema(
    [*(DRAFTS.field(name) for name in GRADES), ("file", pa.int32()), ("place", pa.int64())]
).empty_table()


def _questions(storage: Storage, splits: tuple[str, ...], shards: Sequence[int]) -> dict[tuple[str, int], Question]:
    wanted = pc.field("shard").isin(pa.array(shards, pa.int32()))
    rows = [r for n in question_files(storage, splits) for r in storage.read_table(n, filters=wanted).to_pylist()]
    return {(row["question_id"], row["shard"]): question_of(row) for row in rows}


def _grades(row: Row, question: Question, find: Find, pool: PoolSettings, verify: Verify | None) -> Row:
    """The grades of a row now; one that has failed keeps its own."""
    if row["failure"] is not None:
        return row
    found = find(row, question)
    if "finish_reason" not in found:
        return found
    writer = pool.expert(row["aggregator"] if "aggregator" in row else row["expert"])
    return graded(found, question, writer.think_end_token, verify)


def _by_seat(storage: Storage, table: GradedTable, shards: Sequence[int]) -> Find:
    """Drafts are found by question, expert and sample."""
    held = {
        (r["question_id"], r["shard"], r["expert"], r["sample"]): r
        for r in responses(storage, table.stage, set(shards)).to_pylist()
        if r["run_seed"] == table.seed
    }

    def find(row: Row, _: Question) -> Row:
        return _found(held, (row["question_id"], row["shard"], row["expert"], row["sample"]), table)

    return find


def _by_request(storage: Storage, table: GradedTable, shards: Sequence[int]) -> Find:
    """What was written from drafts is found by the request that these make; a skipped one takes its first seat's."""
    layer = table.layer
    assert layer is not None
    as_asked = replace(layer, rules=replace(layer.rules, skip_on_consensus="off"))
    panels = {(panel.method if table.finals else panel.writer.name): panel for panel in layer.panels}
    held = {
        (r["request_id"],): r
        for stage in (*layer.shared, layer.stage)
        for r in responses(storage, stage, set(shards)).to_pylist()
    }
    asked = [{"shard": shard} for shard in shards]
    drafts = {
        (source, d["question_id"], d["expert"], d["sample"]): d
        for source in {panel.source for panel in layer.panels}
        for d in rows_of_shards(storage, table.seed_folder + source, DRAFTS, asked)
    }

    def find(row: Row, question: Question) -> Row:
        panel = panels[row["method"] if table.finals else row["expert"]]
        seats = [drafts[panel.source, question.id, *seat] for seat in _seats(row, panel)]
        if row.get("skipped"):
            return seats[0]
        case = case_of(as_asked, table.seed, question, row["shard"], panel, seats)
        return _found(held, (case.request.id if case.request else "",), table)

    return find


def _seats(row: Row, panel: Panel) -> Sequence[tuple[str, int]]:
    return panel.seats if not isinstance(panel.seats, str) else seat_samples(row["experts"])


def _found(held: Mapping[tuple[Any, ...], Row], key: tuple[Any, ...], table: GradedTable) -> Row:
    if key not in held:
        raise InputError(
            f"{table.folder}/: a row's generated text is not in responses/{table.stage} ({key}); "
            "`symoe run` makes this table anew"
        )
    return held[key]
