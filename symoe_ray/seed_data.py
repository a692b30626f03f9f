"""One seed's graded texts in columns: drafts by question, expert and sample, final answers by question and method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from symoe_ray.outcomes import Costs, Reading, Texts, sample_numbers
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, RECRUITS, SKILLS

TokenSeconds = Mapping[tuple[str, str], float]
BASELINES = "baselines"
_GRADED = (
    "question_id", "answer", "correct", "unparsed", "truncated", "reference_answer", "reference_correct",
    "prompt_tokens", "completion_tokens", "failure",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeedData:
    """One seed's texts, and which rows of them belong to what; row -1 stands for a text that is not there.

    Rows of `texts` begin with those of drafts/, file by file. `drafts` is questions x experts x samples, `layers` the
    drafts of each further layer of proposers as questions x experts, `finals` method -> questions; `seats` and
    `random_seats` are the drafts of the recruited and of the randomly drawn experts, questions x k. `annotation` holds
    what naming each question's skills cost.
    """

    seed: int
    questions: tuple[str, ...]
    experts: tuple[str, ...]
    texts: Texts
    drafts: np.ndarray
    layers: tuple[np.ndarray, ...]
    finals: Mapping[str, np.ndarray]
    seats: np.ndarray
    random_seats: np.ndarray
    annotation: Costs


@dataclass(frozen=True, slots=True)
class _Source:
    """Graded rows that one stage has had written, with the name of each row's writer."""

    stage: str
    table: pa.Table
    writers: pa.ChunkedArray


def read_seed_data(
    storage: Storage, folder: str, seed: int, experts: Sequence[str], *, grader: str, annotator: str,
    token_seconds: TokenSeconds,
) -> SeedData:  # fmt: skip
    """What a seed's `folder` ("" or "seed=<N>/") holds, without the words of the texts.

    `token_seconds` is that of `engine_facts.token_seconds`; a stage and expert it does not know make seconds NaN.
    """
    recruits = _read(storage, folder + "recruits", RECRUITS, ["question_id", "experts", "random_experts"])
    questions = recruits["question_id"].combine_chunks()
    made = {name.split("/")[-2] for name in storage.names(folder + BASELINES, ".parquet")} - {"answers"}
    layers = [
        _drafts(storage, f"{folder}{BASELINES}/{name}", f"{BASELINES}-{name}")
        for name in sorted(made, key=lambda name: (len(name), name))
    ]
    sources = [
        _drafts(storage, folder + "drafts", "answer"),
        _answers(storage, folder + "answers", "aggregate"),
        _answers(storage, f"{folder}{BASELINES}/answers", f"{BASELINES}-answers"),
        *layers,
    ]
    starts = np.cumsum([0, *(len(source.table) for source in sources)])
    at = [_indices(source.table["question_id"], questions) for source in sources]
    drafts = _cells(sources[0], at[0], starts[0], len(questions), experts)
    finals: dict[str, np.ndarray] = {}
    for source, rows, start in zip(sources[1:3], at[1:3], starts[1:3], strict=True):
        finals |= _finals(source.table["method"], rows, start, len(questions))
    return SeedData(
        seed=seed, questions=tuple(questions.to_pylist()), experts=tuple(experts),
        texts=_texts(sources, experts, grader, token_seconds),
        drafts=drafts, finals=finals, seats=_seats(recruits["experts"], drafts, experts),
        random_seats=_seats(recruits["random_experts"], drafts, experts),
        layers=tuple(
            _cells(source, rows, start, len(questions), experts)[:, :, 0]
            for source, rows, start in zip(layers, at[3:], starts[3:-1], strict=True)
        ),
        annotation=_annotation(storage, questions, token_seconds.get(("annotate", annotator), np.nan)),
    )  # fmt: skip


def _read(storage: Storage, folder: str, schema: pa.Schema, columns: list[str]) -> pa.Table:
    return storage.read_tables(storage.names(folder, ".parquet"), schema, columns)


def _drafts(storage: Storage, folder: str, stage: str) -> _Source:
    table = _read(storage, folder, DRAFTS, [*_GRADED, "expert", "sample"])
    return _Source(stage, table, table["expert"])


def _answers(storage: Storage, folder: str, stage: str) -> _Source:
    table = _read(storage, folder, ANSWERS, [*_GRADED, "method", "aggregator", "skipped"])
    return _Source(stage, table, table["aggregator"])


def _indices(values: pa.ChunkedArray, known: Iterable[str] | pa.Array) -> np.ndarray:
    """The place of each value among the known ones, -1 where it is none of them."""
    known = known if isinstance(known, pa.Array) else pa.array(list(known), pa.string())
    places: np.ndarray = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy()
    return places


def _cells(source: _Source, at: np.ndarray, start: int, questions: int, experts: Sequence[str]) -> np.ndarray:
    """Rows of drafts by question, expert and sample."""
    writer, sample = _indices(source.writers, experts), source.table["sample"].to_numpy()
    known = (at >= 0) & (writer >= 0)
    cells = np.full((questions, len(experts), int(sample.max(initial=0)) + 1), -1, dtype=np.int64)
    cells[at[known], writer[known], sample[known]] = start + np.flatnonzero(known)
    return cells


def _finals(methods: pa.ChunkedArray, at: np.ndarray, start: int, questions: int) -> dict[str, np.ndarray]:
    """Rows of final answers by method."""
    found = {}
    for method in pc.unique(methods).to_pylist():
        rows = np.flatnonzero((at >= 0) & pc.equal(methods, method).to_numpy())
        found[method] = np.full(questions, -1, dtype=np.int64)
        found[method][at[rows]] = start + rows
    return found


def _seats(drawn: pa.ChunkedArray, drafts: np.ndarray, experts: Sequence[str]) -> np.ndarray:
    """The rows of the drafts of experts that were drawn, as many for every question."""
    writers = _indices(pc.list_flatten(drawn), experts).reshape(len(drawn), -1)
    samples = sample_numbers(writers)
    there = (writers >= 0) & (samples < drafts.shape[2])
    rows = drafts[np.arange(len(drawn))[:, None], writers, np.minimum(samples, drafts.shape[2] - 1)]
    found: np.ndarray = np.where(there, rows, -1)
    return found


def _texts(sources: Sequence[_Source], experts: Sequence[str], grader: str, token_seconds: TokenSeconds) -> Texts:
    tables = [source.table for source in sources]
    graded = pa.concat_tables([table.select(_GRADED) for table in tables])
    written = graded["completion_tokens"].to_numpy()
    codes = [_indices(source.writers, experts) for source in sources]
    rates = [
        np.array([token_seconds.get((source.stage, name), np.nan) for name in experts] + [np.nan])[code]
        for source, code in zip(sources, codes, strict=True)
    ]
    return Texts(
        default=_reading(graded["answer"], graded["correct"]),
        reference=_reading(graded["reference_answer"], graded["reference_correct"]),
        grader=grader,
        writer=np.concatenate([code + place * (len(experts) + 1) for place, code in enumerate(codes)]),
        unparsed=graded["unparsed"].to_numpy(),
        truncated=graded["truncated"].to_numpy(),
        failed=graded["failure"].is_valid().to_numpy(),
        calls=np.concatenate([_calls(table) for table in tables]),
        prompt_tokens=graded["prompt_tokens"].to_numpy(),
        completion_tokens=written,
        seconds=np.where(written > 0, np.concatenate(rates) * written, 0.0),
    )


def _calls(table: pa.Table) -> np.ndarray:
    """One for each row; none for an aggregator that was skipped, or had nothing to aggregate."""
    if "skipped" not in table.column_names:
        return np.ones(len(table), dtype=np.int64)
    made = pc.and_(pc.equal(table["skipped"], ""), table["failure"].is_null())
    calls: np.ndarray = made.to_numpy().astype(np.int64)
    return calls


def _reading(answers: pa.ChunkedArray, correct: pa.ChunkedArray) -> Reading:
    """The distinct answers with "" as the last, and each answer's place among them."""
    distinct = sorted(answer for answer in pc.unique(answers).to_pylist() if answer)
    vocabulary = np.array([*distinct, ""], dtype=object)
    places = _indices(answers, distinct)
    answer = np.where(places < 0, len(distinct), places)
    return Reading(vocabulary=vocabulary, answer=answer, correct=correct.to_numpy())


def _annotation(storage: Storage, questions: pa.Array, token_seconds: float) -> Costs:
    columns = ["question_id", "split", "samples", "prompt_tokens", "completion_tokens"]
    table = _read(storage, "skills", SKILLS, columns)
    table = table.filter(pc.equal(table["split"], "test"))
    at = _indices(table["question_id"], questions)
    lists = pc.fill_null(pc.list_value_length(table["samples"]), 0)
    costs = {"calls": lists, "prompt_tokens": table["prompt_tokens"], "completion_tokens": table["completion_tokens"]}
    found: Costs = {}
    for name, values in costs.items():
        found[name] = np.zeros(len(questions), dtype=np.int64)
        found[name][at[at >= 0]] = pc.fill_null(values, 0).to_numpy()[at >= 0]
    written = found["completion_tokens"]
    return found | {"seconds": np.where(written > 0, written * token_seconds, 0.0)}
