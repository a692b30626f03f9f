"""The index of commits says what the commits say, whatever was committed, fenced off or taken back meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from symoe_ray import ledger
from symoe_ray.commit_index import index_file
from symoe_ray.ledger import Commits, Part
from symoe_ray.storage import Storage

STAGE = "answer"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(ledger, "MANY", 2)
    return Storage(str(tmp_path))


def part(number: int, *shards: int) -> Part:
    return Part(
        path=f"responses/{STAGE}/expert=A/part-{number}.parquet", stage=STAGE, expert="A", chunk=f"c{number}",
        slot="slot-0", shards=shards or (number,), requests=1, samples=2, failed=0, prompt_tokens=3,
        completion_tokens=4, seconds=0.5, bytes=6,
    )  # fmt: skip


def commit(commits: Commits, *numbers: int) -> None:
    for number in numbers:
        commits.append([part(number)])


def test_indexed_or_not_the_parts_are_the_same_and_in_order(storage: Storage) -> None:
    commits = Commits(storage, 1)
    commit(commits, 0, 1, 2)
    commits.append([replace(part(3), done=(5, 6))])
    before = Commits(storage).parts(STAGE)
    Commits(storage).compact(STAGE)
    assert storage.exists(index_file(STAGE))
    assert Commits(storage).parts(STAGE) == [replace(p, done=()) for p in before]
    commit(commits, 4)
    assert [p.chunk for p in Commits(storage).parts(STAGE)] == ["c0", "c1", "c2", "c3", "c4"]


def test_few_new_commits_leave_the_index_as_it_is(storage: Storage) -> None:
    commits = Commits(storage, 1)
    commit(commits, 0)
    Commits(storage).compact(STAGE)
    assert not storage.exists(index_file(STAGE))


def test_with_an_index_no_commit_is_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(Commits(storage, 1), 0, 1, 2)
    Commits(storage).compact(STAGE)
    read, fresh = [], Storage(storage.uri)
    monkeypatch.setattr(fresh, "read_bytes", lambda name: read.append(name) or b"{}")
    assert len(Commits(fresh).files(STAGE)) == 3
    assert read == []


def test_the_files_of_some_shards(storage: Storage) -> None:
    commits = Commits(storage, 1)
    commits.append([part(0, 0, 1), part(1, 2)])
    commits.append([part(2, 1)])
    assert [path[-9:] for path, _, _ in Commits(storage).files(STAGE, {1})] == ["0.parquet", "2.parquet"]
    assert len(Commits(storage).files(STAGE)) == 3


def test_what_a_fence_rules_out_does_not_count_though_it_is_indexed(storage: Storage) -> None:
    """A driver that is dead but does not know it indexes a commit that was written after its successor's fence."""
    first = Commits(storage, 1)
    commit(first, 0, 1)
    late = storage.names(f"commits/{STAGE}", ".json")[-1].replace("000001.json", "000002.json")
    content = storage.read_bytes(storage.names(f"commits/{STAGE}", ".json")[-1])
    fence = f"{ledger.FENCES}/000002.json"
    Commits(storage, 2).fence()
    fenced = storage.read_bytes(fence)
    storage.delete(fence)
    storage.write_bytes(late, content)
    Commits(storage).compact(STAGE)
    storage.write_bytes(fence, fenced)
    assert [p.chunk for p in Commits(storage).parts(STAGE)] == ["c0", "c1"]


def test_a_part_that_is_taken_back_leaves_the_index_too(storage: Storage) -> None:
    commit(Commits(storage, 1), 0, 1, 2)
    for number in (0, 2):
        storage.write_bytes(part(number).path, b"123456")
    Commits(storage).compact(STAGE)
    assert [p.chunk for p in Commits(storage, 2).revoke_damaged(STAGE)] == ["c1"]
    assert [p.chunk for p in Commits(storage).parts(STAGE)] == ["c0", "c2"]
