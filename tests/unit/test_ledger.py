"""What a stage still lacks: chunks, commits, and responses that count once."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symoe_ray.core import Failure, Message, Request, Sampling
from symoe_ray.ledger import Chunk, Commits, FencedError, Part, missing_chunks, pieces, responses, split, work_of
from symoe_ray.storage import Storage
from symoe_ray.tables import REQUESTS, RESPONSES, request_of, request_row, table_of

STAGE = "answer"
DIED = Failure(boundary="engine", kind="engine_died", message="it died", retryable=True)
Sample = tuple[str, int]  # request id, number


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def put_requests(
    storage: Storage, counts: Mapping[str, int], name: str = "part-0", shard: int = 0, temperature: float = 0.7,
    lengths: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    """A request file: request id -> samples wanted, in that order, and what their answers' lengths are guessed to be
    over others.
    """
    rows = [
        request_row(
            Request(
                id=request_id, question_id=f"q-{request_id}", expert="A", messages=(Message(role="user", content="?"),),
                sampling=Sampling(temperature=temperature), seed=7, n=n,
            ),
            shard, 0, (lengths or {}).get(request_id, 1.0),
        )
        for request_id, n in counts.items()
    ]  # fmt: skip
    path = f"requests/{STAGE}/expert=A/{name}.parquet"
    storage.write_table(path, table_of([{k: v for k, v in r.items() if k != "expert"} for r in rows], REQUESTS))
    return path


def response(sample: Sample, *, text: str = "fine", failure: Failure | None = None, shard: int = 0) -> dict[str, Any]:
    return {
        "request_id": sample[0], "question_id": f"q-{sample[0]}", "shard": shard, "run_seed": 0, "sample": sample[1],
        "text": text, "finish_reason": "" if failure else "stop", "prompt_tokens": 3, "completion_tokens": 2,
        "attempt": 1, "failure": {name: getattr(failure, name) for name in FIELDS} if failure else None,
    }  # fmt: skip


FIELDS = ("boundary", "kind", "message", "retryable")


def put_part(storage: Storage, name: str, rows: list[dict[str, Any]], expert: str = "A") -> Part:
    """A part as a slot writes it; it counts once it is committed."""
    path = f"responses/{STAGE}/expert={expert}/{name}.parquet"
    storage.write_table(path, table_of(rows, RESPONSES))
    return Part(
        path=path, stage=STAGE, expert=expert, chunk="c", slot="slot-0",
        shards=tuple(sorted({r["shard"] for r in rows})), requests=len(rows), samples=len(rows), failed=0,
        prompt_tokens=3, completion_tokens=2, seconds=0.5, done=(0, 4),
    )  # fmt: skip


def commit(storage: Storage, rows: list[dict[str, Any]], name: str = "part-0", expert: str = "A") -> None:
    Commits(storage, epoch=len(storage.names("commits"))).append([put_part(storage, name, rows, expert)])


def chunks(
    storage: Storage, *paths: str, chunk_rows: int = 100, tokens: int = 1, retry_failed: bool = False
) -> list[Chunk]:
    found = missing_chunks(
        storage, STAGE, {"A": paths}, chunk_rows=chunk_rows, estimate={"A": tokens}, retry_failed=retry_failed
    )
    return list(found)


def samples_of(storage: Storage, work: Iterable[Chunk]) -> list[Sample]:
    return [(str(row["request_id"]), i) for chunk in work for row, numbers in work_of(chunk, storage) for i in numbers]


def test_pieces_of_a_chunk_are_its_rows_in_order(storage: Storage) -> None:
    (chunk,) = chunks(storage, put_requests(storage, {f"r{i}": 1 for i in range(10)}))
    assert [(piece.start, piece.stop, piece.rows) for piece in pieces(chunk, 4)] == [(0, 4, 4), (4, 8, 4), (8, 10, 2)]
    assert list(pieces(chunk, 10)) == [chunk]


class TestMissingChunks:
    def test_nothing_committed_is_all_missing_in_chunks_of_rows(self, storage: Storage) -> None:
        path = put_requests(storage, {"a": 1, "b": 2, "c": 1, "d": 3, "e": 1})
        first, second, third = chunks(storage, path, chunk_rows=2, tokens=10)
        assert [(c.start, c.stop, c.rows, c.tokens) for c in (first, second, third)] == [
            (0, 2, 2, 30),
            (2, 4, 2, 40),
            (4, 5, 1, 10),
        ]
        assert {(c.stage, c.expert, c.path, c.done, c.partial) for c in (first, second, third)} == {
            (STAGE, "A", path, (), ())
        }
        assert len({c.id for c in (first, second, third)}) == 3

    def test_rows_of_unlike_lengths_come_in_smaller_chunks_that_expect_what_is_guessed_of_theirs(
        self, storage: Storage
    ) -> None:
        counts = {f"r{i:02}": 2 if i == 0 else 1 for i in range(40)}
        lengths = {name: 2.0 if name < "r16" else 0.5 for name in counts}
        found = chunks(storage, put_requests(storage, counts, lengths=lengths), tokens=10)
        assert [(c.rows, c.sequences, c.tokens) for c in found] == [(16, 17, 340), (16, 16, 80), (8, 8, 40)]
        commit(storage, [response(("r00", 0)), response(("r20", 0))])
        found = chunks(storage, f"requests/{STAGE}/expert=A/part-0.parquet", tokens=10)
        assert [(c.rows, c.sequences, c.tokens) for c in found] == [(16, 16, 320), (15, 15, 75), (8, 8, 40)]

    def test_files_have_chunks_of_their_own(self, storage: Storage) -> None:
        paths = [put_requests(storage, {"a": 1}, "part-0"), put_requests(storage, {"b": 1}, "part-1")]
        found = chunks(storage, *paths)
        assert [c.path for c in found] == paths
        assert found[0].id != found[1].id

    def test_rows_that_are_whole_are_done_and_full_chunks_are_left_out(self, storage: Storage) -> None:
        path = put_requests(storage, {"a": 1, "b": 1, "c": 2, "d": 1})
        commit(storage, [response(s) for s in (("a", 0), ("b", 0), ("d", 0))])
        (left,) = chunks(storage, path, chunk_rows=2, tokens=5)
        assert (left.start, left.stop, left.rows, left.tokens, left.done, left.partial) == (2, 4, 1, 10, (3,), ())

    def test_a_row_that_lacks_samples_comes_as_their_runs(self, storage: Storage) -> None:
        path = put_requests(storage, {"a": 1, "b": 6})
        commit(storage, [response(("b", i)) for i in (1, 4)])
        (chunk,) = chunks(storage, path)
        assert chunk.partial == ((1, 0, 1), (1, 2, 2), (1, 5, 1))
        assert (chunk.rows, chunk.tokens) == (2, 1 + 4)
        assert [(row["request_id"], row["row"], i) for row, i in work_of(chunk, storage)] == [
            ("a", 0, [0]),
            ("b", 1, [0]),
            ("b", 1, [2, 3]),
            ("b", 1, [5]),
        ]

    def test_more_samples_of_the_same_request_extend_it(self, storage: Storage) -> None:
        commit(storage, [response(("a", 0))])
        (chunk,) = chunks(storage, put_requests(storage, {"a": 3}))
        assert chunk.partial == ((0, 1, 2),)
        ((row, numbers),) = work_of(chunk, storage)
        request = request_of(row, "A", numbers)
        assert (request.id, request.first_sample, request.n, request.seed) == ("a", 1, 2, 7)

    def test_a_failure_counts_as_there_unless_it_is_to_be_retried(self, storage: Storage) -> None:
        path = put_requests(storage, {"a": 1, "b": 1})
        commit(storage, [response(("a", 0), failure=DIED), response(("b", 0))])
        assert chunks(storage, path) == []
        assert samples_of(storage, chunks(storage, path, retry_failed=True)) == [("a", 0)]

    def test_what_is_not_committed_does_not_count(self, storage: Storage) -> None:
        path = put_requests(storage, {"a": 1})
        put_part(storage, "part-0", [response(("a", 0))])
        assert samples_of(storage, chunks(storage, path)) == [("a", 0)]

    def test_another_experts_rows_do_not_count(self, storage: Storage) -> None:
        path = put_requests(storage, {"a": 1})
        commit(storage, [response(("a", 0))], expert="B")
        assert samples_of(storage, chunks(storage, path)) == [("a", 0)]

    def test_another_stages_rows_do_not_count(self, storage: Storage) -> None:
        path = put_requests(storage, {"a": 1})
        part = replace(put_part(storage, "part-0", [response(("a", 0))]), stage="profile")
        Commits(storage).append([part])
        assert samples_of(storage, chunks(storage, path)) == [("a", 0)]

    def test_one_question_in_two_shards_is_wanted_in_both(self, storage: Storage) -> None:
        paths = [put_requests(storage, {"a": 1}, f"part-{shard}", shard) for shard in (0, 1)]
        commit(storage, [response(("a", 0), shard=0)])
        assert [c.path for c in chunks(storage, *paths)] == paths[1:]
        commit(storage, [response(("a", 0), shard=1)], "part-1")
        assert chunks(storage, *paths) == []
        assert len(responses(storage, STAGE, {0, 1})) == 2

    def test_an_unknown_estimate_is_a_token_a_sample(self, storage: Storage) -> None:
        path = put_requests(storage, {"a": 4})
        (chunk,) = missing_chunks(storage, STAGE, {"A": [path]}, chunk_rows=9, estimate={})
        assert chunk.tokens == 4

    def test_no_files_need_nothing(self, storage: Storage) -> None:
        assert list(missing_chunks(storage, STAGE, {}, chunk_rows=1, estimate={})) == []


class TestProperties:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_work_over_missing_chunks_is_exactly_what_is_missing_once(self, data: st.DataObject) -> None:
        sizes = data.draw(st.lists(st.lists(st.integers(1, 5), max_size=6), min_size=1, max_size=3))
        files = [{f"{f}-{r}": n for r, n in enumerate(counts)} for f, counts in enumerate(sizes)]
        wanted = [(request, i) for counts in files for request, n in counts.items() for i in range(n)]
        state = data.draw(
            st.lists(st.sampled_from(["lacks", "has", "failed"]), min_size=len(wanted), max_size=len(wanted))
        )
        there = {sample: word for sample, word in zip(wanted, state, strict=True) if word != "lacks"}
        retry = data.draw(st.booleans())
        with tempfile.TemporaryDirectory() as folder:
            storage = Storage(folder)
            paths = [put_requests(storage, counts, f"part-{f}") for f, counts in enumerate(files)]
            rows = [response(s, failure=DIED if word == "failed" else None) for s, word in there.items()]
            cut = data.draw(st.integers(0, len(rows)))
            for number, part in enumerate((rows[:cut], rows[cut:])):
                if part:
                    commit(storage, part, f"part-{number}")
            found = chunks(storage, *paths, chunk_rows=data.draw(st.integers(1, 7)), tokens=3, retry_failed=retry)
            missing = [s for s in wanted if s not in there or (retry and there[s] == "failed")]
            assert Counter(samples_of(storage, found)) == Counter(missing)
            assert sum(c.tokens for c in found) == 3 * len(missing)
            assert sum(c.rows for c in found) == len({request for request, _ in missing})
            work = [item for c in found for item in work_of(c, storage)]
            assert all(numbers == list(range(numbers[0], numbers[-1] + 1)) for _, numbers in work)
            commit(storage, [response(s) for s in missing], "rest")
            assert chunks(storage, *paths, retry_failed=retry) == []
            counted = responses(storage, STAGE)
            keys = list(zip(counted["request_id"].to_pylist(), counted["sample"].to_pylist(), strict=True))
            assert Counter(keys) == Counter(wanted)

    def test_of_greedy_samples_one_is_generated(self, storage: Storage) -> None:
        sampled = put_requests(storage, {"a": 3, "b": 1}, "sampled")
        greedy = put_requests(storage, {"c": 3, "d": 1}, "greedy", temperature=0.0)
        assert [c.sequences for c in chunks(storage, sampled, greedy)] == [4, 2]

    def test_prompts_are_as_long_as_the_expert_has_been_asked_before(self, storage: Storage) -> None:
        path = put_requests(storage, {"a": 1})
        (chunk,) = missing_chunks(storage, STAGE, {"A": [path]}, chunk_rows=9, estimate={}, prompts={"A": 812.5})
        assert chunk.prompt == 812.5


class TestSplit:
    @settings(max_examples=200, deadline=None)
    @given(
        start=st.integers(0, 5),
        kinds=st.lists(st.sampled_from(["done", "partial", "open"]), min_size=1, max_size=12),
        rows=st.integers(1, 14),
    )
    def test_head_and_rest_are_the_chunk(self, start: int, kinds: list[str], rows: int) -> None:
        at = dict(enumerate(kinds, start))
        lacking = sum(kind != "done" for kind in kinds)
        chunk = Chunk(
            id=f"ab-{start}", stage=STAGE, expert="A", path="p", start=start, stop=start + len(kinds), rows=lacking,
            tokens=100 * lacking, sequences=2 * lacking,
            done=tuple(r for r, kind in at.items() if kind == "done"),
            partial=tuple((r, 1, 2) for r, kind in at.items() if kind == "partial"),
        )  # fmt: skip
        head, rest = split(chunk, rows)
        if rest is None:
            assert head == chunk
            assert lacking <= rows
            return
        assert (head.rows, rest.rows) == (rows, lacking - rows)
        assert (head.start, head.stop, rest.start, rest.stop) == (start, rest.start, head.stop, chunk.stop)
        assert head.done + rest.done == chunk.done
        assert head.partial + rest.partial == chunk.partial
        assert head.tokens + rest.tokens == chunk.tokens
        assert [c.sequences for c in (head, rest)] == [2 * c.rows for c in (head, rest)]
        assert (head.id, rest.id) == (chunk.id, f"ab-{rest.start}")
        for piece in (head, rest):
            assert piece.rows == piece.stop - piece.start - len(piece.done)


class TestCommits:
    def test_parts_come_back_as_they_were(self, storage: Storage) -> None:
        part = put_part(storage, "part-0", [response(("a", 0), shard=2), response(("b", 0), shard=1)])
        Commits(storage).append([part])
        assert Commits(storage).parts(STAGE) == [part]
        assert part.shards == (1, 2)

    def test_order_is_that_of_epochs_and_then_of_commits(self, storage: Storage) -> None:
        part = put_part(storage, "part-0", [response(("a", 0))])
        later, earlier = Commits(storage, epoch=10), Commits(storage, epoch=9)
        for number in range(12):
            later.append([replace(part, chunk=f"later-{number}")])
        earlier.append([replace(part, chunk="one"), replace(part, chunk="two")])
        order = [p.chunk for p in Commits(storage).parts(STAGE)]
        assert order == ["one", "two", *(f"later-{number}" for number in range(12))]

    def test_stages_are_apart(self, storage: Storage) -> None:
        part = put_part(storage, "part-0", [response(("a", 0))])
        Commits(storage).append([replace(part, stage="profile")])
        assert Commits(storage).parts(STAGE) == []
        assert [p.stage for p in Commits(storage).parts("profile")] == ["profile"]


class TestDamage:
    @pytest.mark.parametrize("damage", ["cut", "gone"])
    def test_a_part_that_is_cut_short_or_gone_is_missing_again(self, storage: Storage, damage: str) -> None:
        path = put_requests(storage, {"a": 1, "b": 1, "c": 1})
        parts = [put_part(storage, f"part-{name}", [response((name, 0))]) for name in "abc"]
        sized = [replace(p, bytes=storage.sizes("responses")[p.path]) for p in parts]
        commits = Commits(storage, epoch=1)
        commits.append(sized[:2])
        commits.append([sized[2]])
        assert commits.revoke_damaged(STAGE) == []
        for victim in (sized[1], sized[2]):
            if damage == "cut":
                storage.write_bytes(victim.path, storage.read_bytes(victim.path)[:-20])
            else:
                storage.delete(victim.path)
        assert [p.path for p in commits.revoke_damaged(STAGE)] == [sized[1].path, sized[2].path]
        assert samples_of(storage, chunks(storage, path)) == [("b", 0), ("c", 0)]
        assert responses(storage, STAGE)["request_id"].to_pylist() == ["a"]
        assert commits.revoke_damaged(STAGE) == []

    def test_a_part_of_unknown_size_is_let_be(self, storage: Storage) -> None:
        commit(storage, [response(("a", 0))])
        assert Commits(storage).revoke_damaged(STAGE) == []


class TestFences:
    def test_what_an_earlier_attempt_commits_after_the_fence_does_not_count(self, storage: Storage) -> None:
        part = put_part(storage, "part-0", [response(("a", 0))])
        first, second = Commits(storage, epoch=1), Commits(storage, epoch=2)
        first.append([replace(part, chunk="before")])
        second.fence()
        with pytest.raises(FencedError, match="attempt 1 at run"):
            first.append([replace(part, chunk="after")])
        late = storage.names("commits/answer")[0].replace("000001-000000", "000001-000001")
        storage.write_bytes(late, storage.read_bytes(storage.names("commits/answer")[0]))  # written all the same
        second.append([replace(part, chunk="second")])
        assert [p.chunk for p in Commits(storage).parts(STAGE)] == ["before", "second"]
        assert Commits(storage).names(STAGE) == [
            f"commits/{STAGE}/000001-000000.json",
            f"commits/{STAGE}/000002-000000.json",
        ]

    def test_a_fence_stops_an_attempt_that_had_committed_nothing(self, storage: Storage) -> None:
        part = put_part(storage, "part-0", [response(("a", 0))])
        Commits(storage, epoch=2).fence()
        storage.write_json(f"commits/{STAGE}/000001-000000.json", {"parts": [{"path": part.path}]})
        assert Commits(storage).parts(STAGE) == []

    def test_what_counted_before_one_fence_counts_after_the_next(self, storage: Storage) -> None:
        part = put_part(storage, "part-0", [response(("a", 0))])
        for epoch in (1, 2, 3):
            attempt = Commits(storage, epoch)
            attempt.fence()
            for stage in ("profile", STAGE):
                attempt.append([replace(part, stage=stage, chunk=f"{epoch}")])
        assert [p.chunk for p in Commits(storage).parts(STAGE)] == ["1", "2", "3"]
        assert [p.chunk for p in Commits(storage).parts("profile")] == ["1", "2", "3"]

    def test_two_drivers_of_one_number_do_not_write_over_each_other_and_one_of_them_counts(
        self, storage: Storage
    ) -> None:
        part = put_part(storage, "part-0", [response(("a", 0))])
        one, two = Commits(storage, epoch=3, token="aa"), Commits(storage, epoch=3, token="bb")
        for attempt in (two, one):
            attempt.fence()
        two.append([replace(part, chunk="two")])
        with pytest.raises(FencedError):
            one.append([replace(part, chunk="one")])
        assert [p.chunk for p in Commits(storage).parts(STAGE)] == ["two"]
        later = Commits(storage, epoch=4, token="00")
        later.fence()
        later.append([replace(part, chunk="later")])
        assert [p.chunk for p in Commits(storage).parts(STAGE)] == ["two", "later"]

    def test_an_attempts_own_fence_does_not_stop_it(self, storage: Storage) -> None:
        attempt = Commits(storage, epoch=1)
        attempt.fence()
        attempt.append([put_part(storage, "part-0", [response(("a", 0))])])
        assert len(Commits(storage).parts(STAGE)) == 1


def ask(storage: Storage, *names: str, **shards: int) -> None:
    """Request files of the stage, one a shard: these requests in shard 0, those of `shards` in their own."""
    of_shard: dict[int, dict[str, int]] = {}
    for name, shard in (*((name, 0) for name in names), *shards.items()):
        of_shard.setdefault(shard, {})[name] = 1
    for shard, counts in of_shard.items():
        put_requests(storage, counts, f"part-{shard}", shard)


class TestResponses:
    def test_nothing_is_an_empty_table_with_all_columns(self, storage: Storage) -> None:
        for shards in (None, {0}):
            table = responses(storage, STAGE, shards)
            assert table.num_rows == 0
            assert table.column_names == [*RESPONSES.names, "expert"]

    def test_only_committed_rows_are_read_with_their_expert(self, storage: Storage) -> None:
        ask(storage, "a", "b", "c")
        commit(storage, [response(("a", 0))], "part-0", "A")
        commit(storage, [response(("b", 0))], "part-0", "B")
        put_part(storage, "part-1", [response(("c", 0))])
        rows = responses(storage, STAGE).to_pylist()
        assert [(r["request_id"], r["expert"]) for r in rows] == [("a", "A"), ("b", "B")]

    def test_the_first_of_two_good_rows_counts(self, storage: Storage) -> None:
        ask(storage, "a")
        commit(storage, [response(("a", 0), text="first"), response(("a", 1), text="other sample")], "part-0")
        commit(storage, [response(("a", 0), text="second")], "part-1")
        assert responses(storage, STAGE)["text"].to_pylist() == ["first", "other sample"]

    def test_a_good_row_replaces_a_failed_one_whichever_comes_first(self, storage: Storage) -> None:
        ask(storage, "a", "b")
        commit(storage, [response(("a", 0), failure=DIED, text=""), response(("b", 0), text="good")], "part-0")
        commit(storage, [response(("a", 0), text="again"), response(("b", 0), failure=DIED, text="")], "part-1")
        rows = {r["request_id"]: r for r in responses(storage, STAGE).to_pylist()}
        assert {name: (r["text"], r["failure"]) for name, r in rows.items()} == {
            "a": ("again", None),
            "b": ("good", None),
        }

    def test_two_failures_are_one_row(self, storage: Storage) -> None:
        ask(storage, "a")
        for number in range(2):
            commit(storage, [response(("a", 0), failure=DIED)], f"part-{number}")
        (row,) = responses(storage, STAGE).to_pylist()
        assert row["failure"]["kind"] == "engine_died"

    def test_shards_are_picked_out_of_parts_that_mix_them(self, storage: Storage) -> None:
        ask(storage, a=0, b=1, c=2, d=3)
        commit(storage, [response((name, 0), shard=shard) for name, shard in (("a", 0), ("b", 1), ("c", 2))])
        commit(storage, [response(("d", 0), shard=3)], "part-1")
        assert responses(storage, STAGE, {0, 2})["request_id"].to_pylist() == ["a", "c"]
        assert responses(storage, STAGE, {9}).num_rows == 0

    def test_parts_of_other_shards_are_not_opened(self, storage: Storage) -> None:
        ask(storage, a=0, b=1)
        commit(storage, [response(("a", 0), shard=0)], "part-0")
        commit(storage, [response(("b", 0), shard=1)], "part-1")
        storage.delete(f"responses/{STAGE}/expert=A/part-1.parquet")
        assert responses(storage, STAGE, {0})["request_id"].to_pylist() == ["a"]

    @pytest.mark.parametrize("shards", [None, {0}])
    def test_only_what_the_stage_asks_for_now_counts(self, storage: Storage, shards: set[int] | None) -> None:
        def there() -> list[str]:
            found: list[str] = responses(storage, STAGE, shards)["request_id"].to_pylist()
            return found

        commit(storage, [response(("a", 0)), response(("b", 0))])
        assert there() == []
        ask(storage, "b", "c")
        assert there() == ["b"]
        storage.delete(f"requests/{STAGE}")
        ask(storage, "a")
        assert there() == ["a"]
        ask(storage, "a", "b")  # what was generated for an earlier request is there when it comes back
        assert there() == ["a", "b"]

    def test_what_another_stage_asks_for_does_not_count(self, storage: Storage) -> None:
        commit(storage, [response(("a", 0))])
        ask(storage, "a")
        table = storage.read_table(f"requests/{STAGE}/expert=A/part-0.parquet")
        storage.delete(f"requests/{STAGE}")
        storage.write_table("requests/profile/expert=A/part-0.parquet", table)
        assert responses(storage, STAGE).num_rows == 0


def test_work_starts_at_the_chunks_first_row(storage: Storage) -> None:
    path = put_requests(storage, {"a": 1, "b": 2, "c": 1})
    _, second = chunks(storage, path, chunk_rows=1)[:2]
    ((row, numbers),) = work_of(second, storage)
    assert (row["request_id"], row["row"], numbers) == ("b", 1, [0, 1])
    assert row["messages"] == [{"role": "user", "content": "?"}]
