"""What a run has generated, and what is still missing: chunks, parts and commits.

Slots write parts under unique names; only the pool appends commits; only committed parts are ever read. Work is leased
in chunks of a request file, so that all rows of a part belong to the same group of questions (its shard).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from symoe_ray.commit_index import INDEX, index_file, read_index, rows_of, write_index
from symoe_ray.fingerprints import digest
from symoe_ray.length_guesses import ordered_rows
from symoe_ray.shard_files import in_shards, of_shards
from symoe_ray.storage import Storage
from symoe_ray.tables import REQUESTS, RESPONSES

FENCES = "commits/fences"
MANY = 32

_Id = tuple[str, int]  # a request's id and its shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The unit of lease and commit: rows `start` to `stop` of a request file, less the rows in `done`.

    `partial` holds the rows that lack only some samples, as (row, first sample, count). `sequences` are the samples
    that it lacks, less the copies of greedy ones (0: one a row). `tokens` is their estimated output, `most` that of one
    at most (0: as the expert's sampling says), after prompts of `prompt` tokens on average (0: not known). `deaths`
    counts the slot actors that have died with it.
    """

    id: str
    stage: str
    expert: str
    path: str
    start: int
    stop: int
    rows: int
    tokens: int
    sequences: int = 0
    most: int = 0
    prompt: float = 0.0
    done: tuple[int, ...] = ()
    partial: tuple[tuple[int, int, int], ...] = ()
    deaths: int = 0


def split(chunk: Chunk, rows: int) -> tuple[Chunk, Chunk | None]:
    """The first `rows` rows that a chunk still lacks, and the rest of it (None: there is none)."""
    if rows >= chunk.rows:
        return chunk, None
    done, lacking, cut = set(chunk.done), 0, chunk.start
    while lacking < rows:
        lacking += cut not in done
        cut += 1
    tokens, sequences = (n * rows // chunk.rows for n in (chunk.tokens, chunk.sequences))
    return (
        replace(chunk, stop=cut, rows=rows, tokens=tokens, sequences=sequences, **_within(chunk, chunk.start, cut)),
        replace(
            chunk, id=f"{chunk.id.rsplit('-', 1)[0]}-{cut}", start=cut, rows=chunk.rows - rows,
            tokens=chunk.tokens - tokens, sequences=chunk.sequences - sequences, **_within(chunk, cut, chunk.stop),
        ),
    )  # fmt: skip


def pieces(chunk: Chunk, rows: int) -> Iterator[Chunk]:
    """A chunk cut into several, of so many rows at most."""
    rest: Chunk | None = chunk
    while rest is not None:
        piece, rest = split(rest, rows)
        yield piece


def _within(chunk: Chunk, start: int, stop: int) -> dict[str, Any]:
    return {
        "done": tuple(row for row in chunk.done if start <= row < stop),
        "partial": tuple(p for p in chunk.partial if start <= p[0] < stop),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file of response rows that a slot has written; it counts once it is committed. `bytes` 0: size unknown.

    `copies` of its samples are those of a greedy one, which cost nothing.
    """

    path: str
    stage: str
    expert: str
    chunk: str
    slot: str
    shards: tuple[int, ...]
    requests: int
    samples: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    done: tuple[int, ...] = field(default=())
    bytes: int = 0
    copies: int = 0

    @property
    def generated(self) -> int:
        """Sequences that were written to their end."""
        return self.samples - self.failed - self.copies


class FencedError(RuntimeError):
    """A later attempt at the run has begun: what this pool still writes does not count."""


class Commits:
    """The commit log of a run: one small file per commit, written by the pool alone, one after the other.

    A pool writes under its attempt's number (`epoch`) and token, and counts its commits. The driver of an attempt first
    puts up a fence, which says how far each earlier attempt had come: a commit that an old pool still writes after that
    is ignored. Should two drivers ever have the same number, their tokens put them in an order.
    """

    def __init__(self, storage: Storage, epoch: int = 0, token: str = "") -> None:
        self._storage, self._epoch, self._count = storage, epoch, 0
        self._attempt = f"{epoch:06d}{token}"

    def fence(self) -> None:
        """Begin this attempt: nothing that earlier attempts commit from now on counts."""
        reached: dict[str, int] = {}
        for name in self._accepted(""):
            attempt, count = _numbers(name)
            reached[attempt] = max(count, reached.get(attempt, -1))
        self._storage.write_json(f"{FENCES}/{self._attempt}.json", reached)

    def append(self, parts: Iterable[Part]) -> None:
        """Make parts of one stage count, all of them at once; FencedError where a later attempt has begun."""
        if any(_stem(name) > self._attempt for name in self._storage.names(FENCES, ".json")):
            raise FencedError(f"attempt {self._epoch} at run {self._storage.uri} has been taken over by a later one")
        rows = [asdict(p) for p in parts]
        name = f"commits/{rows[0]['stage']}/{self._attempt}-{self._count:06d}.json"
        self._storage.write_json(name, {"parts": rows})
        self._count += 1

    def stages(self) -> list[str]:
        """The stages that have commits."""
        return sorted({name.split("/")[1] for name in self._accepted("")})

    def revoke_damaged(self, stage: str) -> list[Part]:
        """Take back the parts whose file is gone or is not as long as it was; for a driver without a pool.

        What was in them is missing again.
        """
        sizes, damaged = self._storage.sizes(f"responses/{stage}"), list[Part]()
        table = self._table(stage, "path", "bytes")
        columns = (table[name].to_pylist() for name in ("commit", "path", "bytes"))
        names = {c for c, path, size in zip(*columns, strict=True) if size and sizes.get(path) != size}
        if names:
            self._storage.delete(index_file(stage))  # first: it would keep what the commits lack
        for name in sorted(names):
            parts = [_part(row) for row in self._storage.read_json(name)["parts"]]
            good = [p for p in parts if not p.bytes or sizes.get(p.path) == p.bytes]
            self._storage.write_json(name, {"parts": [asdict(p) for p in good]})
            damaged += [p for p in parts if p not in good]
        return damaged

    def names(self, stage: str) -> list[str]:
        """The files of all commits of a stage that count, in their order."""
        return self._accepted(stage)

    def parts(self, stage: str) -> list[Part]:
        """All committed parts of a stage, in the order of their commits; `done` only where they are not indexed yet."""
        return list(self.each_part(stage))

    def each_part(self, stage: str) -> Iterator[Part]:
        """`parts`, few of them in memory at a time."""
        for piece in self._pieces(stage, "part"):
            yield from (_part(json.loads(row)) for row in piece["part"].to_pylist())

    def files(self, stage: str, shards: Collection[int] | None = None) -> list[tuple[str, str, list[int]]]:
        """Path, expert and shards of the committed parts with rows of these shards (None: of any), in their order."""
        table = self._table(stage, "path", "expert", "shards")
        if shards is not None:
            each = table["shards"].combine_chunks()
            of_these = pc.is_in(pc.list_flatten(each), value_set=pa.array(sorted(shards), pa.int32()))
            table = table.take(pc.unique(pc.list_parent_indices(each).filter(of_these)))
        return list(zip(*(table[name].to_pylist() for name in ("path", "expert", "shards")), strict=True))

    def compact(self, stage: str) -> None:
        """Index the commits of a stage, if there are many new ones; for a driver whose pool is idle."""
        if len(self._unindexed(stage, self._accepted(stage))) >= MANY:
            write_index(self._storage, stage, self._pieces(stage, *INDEX.names[1:]))

    def _table(self, stage: str, *columns: str) -> pa.Table:
        """All committed parts of a stage as `INDEX` rows in the order of their commits: `commit` and these columns."""
        wanted = pa.schema([INDEX.field(name) for name in ("commit", *columns)])
        return pa.concat_tables([wanted.empty_table(), *self._pieces(stage, *columns)])

    def _pieces(self, stage: str, *columns: str) -> Iterator[pa.Table]:
        """`_table`, some rows at a time."""
        names = self._accepted(stage)
        new = self._unindexed(stage, names)
        known = read_index(self._storage, stage, names, columns)
        rows = (
            piece.select(["commit", *columns])
            for piece in rows_of(zip(new, map(json.loads, self._storage.read_many(new)), strict=True))
        )
        if new and new != names[len(names) - len(new) :]:  # commits of an earlier attempt, seen late
            yield pa.concat_tables([*known, *rows]).sort_by("commit")
        else:
            yield from known
            yield from rows

    def _unindexed(self, stage: str, names: Iterable[str]) -> list[str]:
        """Those of these commits that the stage's index lacks."""
        indexed: set[str] = set()
        for piece in read_index(self._storage, stage, names, ()):
            indexed.update(pc.unique(piece["commit"]).to_pylist())
        return [name for name in names if name not in indexed]

    def _accepted(self, stage: str) -> list[str]:
        fences = {}
        for name in self._storage.names(FENCES, ".json"):
            fences[_stem(name)] = self._storage.read_json(name)
        names = self._storage.names(f"commits/{stage}" if stage else "commits", ".json")
        return [n for n in names if not n.startswith(FENCES) and _counts(n, fences)]


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[1].removesuffix(".json")


def _numbers(name: str) -> tuple[str, int]:
    """The attempt that a commit belongs to, and which of its commits it is."""
    attempt, count = _stem(name).rsplit("-", 1)
    return attempt, int(count)


def _counts(name: str, fences: Mapping[str, Mapping[str, int]]) -> bool:
    attempt, count = _numbers(name)
    return all(count <= reached.get(attempt, -1) for fence, reached in fences.items() if fence > attempt)


def _part(row: dict[str, Any]) -> Part:
    return Part(**(row | {"shards": tuple(row["shards"]), "done": tuple(row["done"])}))


def responses(storage: Storage, stage: str, shards: set[int] | None = None) -> pa.Table:
    """The committed `RESPONSES` rows of a stage (of these shards) with their `expert`, each sample of a request once.

    Only requests that the stage makes now count: what was generated for earlier ones stays on disk for the day they
    come back. A row that was generated again after a failure replaces the failed one. A question of both splits has a
    request with one id in a shard of each: these are two, as each shard is read for itself.
    """
    schema = RESPONSES.append(pa.field("expert", pa.string()))
    rows = None if shards is None else in_shards(shards)
    tables = []
    for path, expert, _ in Commits(storage).files(stage, shards):
        table = storage.read_table(path, filters=rows).cast(RESPONSES)
        tables.append(table.append_column("expert", pa.array([expert] * len(table), pa.string())))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    files = of_shards(storage.names(f"requests/{stage}", ".parquet"), shards)
    requests = [storage.read_table(name, ["request_id"], rows)["request_id"] for name in files]
    current = pa.array([i for ids in requests for i in ids.to_pylist()], pa.string())
    return _each_once(table.filter(pc.is_in(table["request_id"], value_set=current)))


def _each_once(table: pa.Table) -> pa.Table:
    keys = zip(*(table[name].to_pylist() for name in ("request_id", "shard", "sample")), strict=True)
    failed = table["failure"].is_valid().to_pylist()
    place: dict[tuple[str, int, int], int] = {}
    for index, key in enumerate(keys):
        if key not in place or failed[place[key]]:
            place[key] = index
    return table if len(place) == len(table) else table.take(sorted(place.values()))


def missing_chunks(
    storage: Storage,
    stage: str,
    request_files: Mapping[str, Iterable[str]],
    *,
    chunk_rows: int,
    estimate: Mapping[str, int],
    most: Mapping[str, int] | None = None,
    prompts: Mapping[str, float] | None = None,
    retry_failed: bool = False,
) -> Iterator[Chunk]:
    """The work that a stage still needs: expert -> request files, cut into chunks, less what is committed.

    `estimate` is the expected output in tokens of one sample, per expert, `most` its limit, and `prompts` the tokens of
    a prompt. Chunks have at most `chunk_rows` rows, fewer where a file's rows are guessed to differ in length. With
    `retry_failed` a committed failure counts as missing. Only one file's keys are in memory at a time.
    """
    parts: dict[tuple[str, int], list[str]] = defaultdict(list)
    for path, expert, shards in Commits(storage).files(stage):
        for shard in shards:
            parts[expert, shard].append(path)
    for expert, files in request_files.items():
        names = list(files)
        for path in names:
            columns = ["request_id", "shard", "n", "relative_length", "sampling.temperature"]
            requests = storage.read_table(path, columns)
            ids = list(zip(requests["request_id"].to_pylist(), requests["shard"].to_pylist(), strict=True))
            counts, greedy = requests["n"].to_pylist(), [t == 0 for t in requests["temperature"].to_pylist()]
            lengths = requests["relative_length"].to_pylist()
            own = {shard for _, shard in ids}
            paths = dict.fromkeys(part for shard in sorted(own) for part in parts[expert, shard])
            have = _committed_samples(storage, paths, own, retry_failed)
            alike = min(lengths, default=1.0) == max(lengths, default=1.0)
            rows = chunk_rows if alike else min(chunk_rows, ordered_rows(len(ids), len(names)))
            for start in range(0, len(ids), rows):
                stop = min(start + rows, len(ids))
                limit = (most or {}).get(expert, 0) or math.inf
                tokens = [min(limit, estimate.get(expert, 1) * length) for length in lengths[start:stop]]
                chunk = _chunk(stage, expert, path, start, stop, ids, counts, greedy, have, tokens)
                if chunk is not None:
                    yield replace(chunk, most=(most or {}).get(expert, 0), prompt=(prompts or {}).get(expert, 0.0))


def _committed_samples(
    storage: Storage, paths: Iterable[str], shards: Collection[int], retry_failed: bool
) -> dict[_Id, set[int]]:
    have: dict[_Id, set[int]] = defaultdict(set)
    for path in paths:
        table = storage.read_table(path, ["request_id", "shard", "sample", "failure"], in_shards(shards))
        if retry_failed:
            table = table.filter(pc.is_null(table["failure"]))
        columns = (table[name].to_pylist() for name in ("request_id", "shard", "sample"))
        for request_id, shard, sample in zip(*columns, strict=True):
            have[request_id, shard].add(sample)
    return have


def _chunk(
    stage: str, expert: str, path: str, start: int, stop: int, ids: list[_Id], counts: list[int],
    greedy: list[bool], have: Mapping[_Id, set[int]], tokens: list[float],
) -> Chunk | None:  # fmt: skip
    done, partial, sequences, wanted = [], [], 0, 0.0
    for row in range(start, stop):
        lacking = [i for i in range(counts[row]) if i not in have.get(ids[row], ())]
        generated = min(1, len(lacking)) if greedy[row] else len(lacking)
        sequences, wanted = sequences + generated, wanted + generated * tokens[row - start]
        if not lacking:
            done.append(row)
        elif len(lacking) < counts[row]:
            partial += [(row, first, count) for first, count in _runs(lacking)]
    if not sequences:
        return None
    name = f"{digest(path, size=4)}-{start}"
    return Chunk(
        id=name, stage=stage, expert=expert, path=path, start=start, stop=stop, rows=stop - start - len(done),
        tokens=round(wanted), sequences=sequences, done=tuple(done), partial=tuple(partial),
    )  # fmt: skip


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, count) of their consecutive runs."""
    first = previous = numbers[0]
    for number in numbers[1:]:
        if number != previous + 1:
            yield first, previous - first + 1
            first = number
        previous = number
    yield first, previous - first + 1


def work_of(chunk: Chunk, storage: Storage) -> list[tuple[dict[str, object], list[int]]]:
    """The `REQUESTS` rows of a chunk that still want samples, each with the numbers of those samples.

    A row that lacks samples which are not consecutive comes once per run of them.
    """
    table = storage.read_table(chunk.path, REQUESTS.names).slice(chunk.start, chunk.stop - chunk.start)
    lacking = defaultdict(list)
    for row, first, count in chunk.partial:
        lacking[row].append(list(range(first, first + count)))
    done, work = set(chunk.done), []
    for offset, row in enumerate(table.to_pylist()):
        index = chunk.start + offset
        if index not in done:
            work += [({**row, "row": index}, samples) for samples in lacking.get(index) or [list(range(row["n"]))]]
    return work
