"""The table of every method's answer to every question: `methods/` of a run, which `symoe compare` reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from symoe_ray.core import InputError
from symoe_ray.outcomes import COSTS, VERDICTS, MethodOutcomes
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage

FOLDER = "methods"
METHODS = pa.schema(
    [
        ("method", pa.dictionary(pa.int32(), pa.string())),
        ("question_id", pa.string()),
        ("seed", pa.int64()),
        ("answer", pa.dictionary(pa.int32(), pa.string())),
        *((name, pa.bool_()) for name in VERDICTS),
        ("calls", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("seconds", pa.float32()),
    ]
)
"""`correct` is by the run's grader; costs are of all that the answer needed; `seconds` is null where unknown."""


def write_methods(storage: Storage, folder: str, questions: Sequence[str], methods: Sequence[MethodOutcomes]) -> None:
    """Write a seed's methods/part-*.parquet below `folder`, a file for each method."""
    storage.delete(folder + FOLDER)
    for number, made in enumerate(methods):
        storage.write_table(f"{folder}{FOLDER}/part-{number:05d}.parquet", _table(questions, made))


def _table(questions: Sequence[str], made: MethodOutcomes) -> pa.Table:
    columns = {name: getattr(made, name) for name in (*VERDICTS, *COSTS)}
    arrays = {name: pa.array(values, METHODS.field(name).type) for name, values in columns.items()}
    arrays["seconds"] = pa.array(made.seconds, pa.float32(), mask=np.isnan(made.seconds))
    arrays["answer"] = pa.array(made.answer, pa.string()).dictionary_encode()
    arrays["method"] = pa.array([made.method] * len(questions), pa.string()).dictionary_encode()
    arrays["question_id"] = pa.array(questions, pa.string())
    arrays["seed"] = pa.array(np.full(len(questions), made.seed), pa.int64())
    return pa.table([arrays[name] for name in METHODS.names], schema=METHODS)


def read_method(storage: Storage, settings: Settings, method: str) -> list[pa.Table]:
    """A method's `question_id` and `correct`, one table for each seed of the run; InputError if it is not there."""
    known, found = set(), []
    for seed in settings.all_seeds:
        folder = f"seed={seed}/" if len(settings.all_seeds) > 1 else ""
        for name in storage.names(folder + FOLDER, ".parquet"):
            table = storage.read_table(name, ["method", "question_id", "correct"])
            own = table["method"][0].as_py() if len(table) else ""
            known.add(own)
            if own == method:
                found.append(table.drop_columns("method"))
    if not known:
        raise InputError(f"run {storage.uri} has no methods/: make it with `symoe evaluate --run {storage.uri}`")
    if len(found) < len(settings.all_seeds):
        raise InputError(f"run {storage.uri} has no method {method!r}; it has {', '.join(sorted(known))}")
    return found
