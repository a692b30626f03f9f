"""`symoe compare A B`: two runs, or two methods, on the questions that both have answered. Generates nothing."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.methods import read_method
from pipelines.run import run_uri, settings_of
from pipelines.signals import DONE
from symoe_ray.comparing import Comparison, adjusted, compare, comparison_table
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import QUESTIONS

DEFAULT = "symoe"
_SIDE = re.compile(r"(?P<run>.*?)(?::(?P<method>expert:[^:/]+|[a-z][a-z_]*(?:@\d+)?))?")
_HELP = (
    "RUN or RUN:METHOD, a run being a name or a path and METHOD one of its results' methods (default: symoe); several "
    "tasks are several runs with commas between them"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison: a method of a run."""

    run: str
    method: str
    storage: Storage
    settings: Settings

    @property
    def name(self) -> str:
        """As it is given on the command line."""
        return f"{self.run}:{self.method}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A comparison of two sides on one task; `only_in_*` are questions that just one of them has."""

    task: str
    a: str
    b: str
    seeds_a: int
    seeds_b: int
    only_in_a: int
    only_in_b: int
    result: Comparison


def add_command(commands: Any) -> None:
    """Add `compare` to the parser's commands."""
    parser = commands.add_parser("compare", help="whether two runs or methods differ, on shared questions")
    parser.add_argument("a", metavar="A", help=_HELP)
    parser.add_argument("b", metavar="B", help="the same; :METHOD means the runs of A")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="compare each of these methods of A and of B")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(function=run_compare)


def run_compare(options: argparse.Namespace, overrides: list[str], signals: Any) -> int:
    """Print the comparisons of every task and method; InputError where nothing can be compared."""
    entries = compare_sides(options.a, options.b, options.methods or (), load(overrides))
    rows = [_row(entry) for entry in entries]
    print(json.dumps({"comparisons": rows}) if options.json else comparison_table(rows))
    return DONE


def compare_sides(a: str, b: str, methods: Sequence[str], settings: Settings) -> list[Entry]:
    """The comparisons that a command line asks for, their p-values adjusted for all of them together (Holm).

    `settings` say where runs lie that are given by name.
    """
    if b.startswith(":"):
        b = ",".join(_split(side)[0] + b for side in a.split(","))
    pairs = _pairs(_sides(a, settings), _sides(b, settings))
    if methods:
        if any(_split(side)[1] for side in f"{a},{b}".split(",")):
            raise InputError("--methods: A and B are runs then, without a method of their own")
        pairs = [(replace(x, method=m), replace(y, method=m)) for x, y in pairs for m in methods]
    entries = [_compare(x, y) for x, y in pairs]
    results = adjusted([entry.result for entry in entries])
    return [replace(entry, result=result) for entry, result in zip(entries, results, strict=True)]


def _split(side: str) -> tuple[str, str]:
    match = _SIDE.fullmatch(side)
    assert match is not None
    return match["run"], match["method"] or ""


def _sides(given: str, settings: Settings) -> list[Side]:
    sides = []
    for text in given.split(","):
        run, method = _split(text)
        storage = Storage(run_uri(settings, run))
        own = settings_of(storage) if run else None
        if own is None:
            raise InputError(f"{text!r}: there is no run at {storage.uri}")
        sides.append(Side(run=run, method=method or DEFAULT, storage=storage, settings=own))
    return sides


def _pairs(ours: Sequence[Side], theirs: Sequence[Side]) -> list[tuple[Side, Side]]:
    """One run against one, whatever their tasks are called; of several, those of the same task."""
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    by_task = []
    for sides in (ours, theirs):
        found = {side.settings.task.name: side for side in sides}
        if len(found) < len(sides):
            names = ", ".join(f"{side.run} ({side.settings.task.name})" for side in sides)
            raise InputError(f"of several runs each must have a task of its own: {names}")
        by_task.append(found)
    a, b = by_task
    if a.keys() != b.keys():
        raise InputError(f"A has the tasks {', '.join(sorted(a))}, B has {', '.join(sorted(b))}: they must be the same")
    return [(side, b[task]) for task, side in a.items()]


def _compare(a: Side, b: Side) -> Entry:
    if a.settings.grader != b.settings.grader:
        graders = f"{a.name} was graded with grader={a.settings.grader} and {b.name} with grader={b.settings.grader}"
        raise InputError(f"{graders}: `symoe rescore {b.run} grader={a.settings.grader}` makes them comparable")
    tables_a, tables_b = (read_method(side.storage, side.settings, side.method) for side in (a, b))
    ids_a, ids_b = tables_a[0]["question_id"], tables_b[0]["question_id"]
    shared = ids_a.filter(pc.is_in(ids_a, value_set=ids_b.combine_chunks())).combine_chunks()
    if not len(shared):
        raise InputError(f"{a.name} and {b.name} have no question in common, of {len(ids_a)} and {len(ids_b)}")
    if a.storage.uri != b.storage.uri:
        _same_questions(a, b, shared)
    return Entry(
        task=a.settings.task.name, a=a.name, b=b.name, seeds_a=len(tables_a), seeds_b=len(tables_b),
        only_in_a=len(ids_a) - len(shared), only_in_b=len(ids_b) - len(shared),
        result=compare(_matrix(tables_a, shared), _matrix(tables_b, shared)),
    )  # fmt: skip


def _matrix(tables: Sequence[pa.Table], shared: pa.Array) -> np.ndarray:
    """Right and wrong as shared questions x seeds."""
    places = [pc.index_in(shared, value_set=table["question_id"].combine_chunks()) for table in tables]
    return np.column_stack([t["correct"].to_numpy()[at.to_numpy()] for t, at in zip(tables, places, strict=True)])


def _same_questions(a: Side, b: Side, shared: pa.Array) -> None:
    """InputError where an id stands for two texts, or has two golds."""
    contents = []
    for side in (a, b):
        names = side.storage.names("questions/test", ".parquet")
        table = side.storage.read_tables(names, QUESTIONS, ["question_id", "text", "choices", "gold"])
        rows = table.filter(pc.is_in(table["question_id"], value_set=shared)).to_pylist()
        contents.append({row["question_id"]: row for row in rows})
    for question, ours in contents[0].items():
        theirs = contents[1][question]
        if set(ours["gold"]) != set(theirs["gold"]):
            golds = f"{ours['gold']} in {a.run} and {theirs['gold']} in {b.run}"
            raise InputError(f"question {question!r} has the gold {golds}: these are not the same questions")
        if (ours["text"], ours["choices"]) != (theirs["text"], theirs["choices"]):
            raise InputError(f"question {question!r} has another text in {a.run} than in {b.run}")


def _row(entry: Entry) -> dict[str, Any]:
    """The entry as it is printed: flat, intervals as lists."""
    row = asdict(entry)
    result = row.pop("result")
    return row | {name: list(value) if isinstance(value, tuple) else value for name, value in result.items()}
