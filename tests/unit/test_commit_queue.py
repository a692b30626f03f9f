"""Parts are committed in groups, in their order, by a thread that holds nobody up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from actors import commit_queue as module
from actors.commit_queue import CommitQueue
from symoe_ray.ledger import Commits, FencedError, Part
from symoe_ray.storage import Storage

STAGE = "answer"


def part(name: str, stage: str = STAGE) -> Part:
    return Part(
        path=f"responses/{name}", stage=stage, expert="A", chunk=name, slot="slot-0", shards=(0,), requests=1,
        samples=1, failed=0, prompt_tokens=1, completion_tokens=1, seconds=0.0, done=(0,),
    )  # fmt: skip


class Slow(Commits):
    """A storage that takes as long as it is let; `groups` are the commits that were asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Storage(str(folder)), epoch=1)
        self.go, self.asked = threading.Event(), threading.Event()
        self.groups: list[list[str]] = []
        self.error: Exception | None = None

    def append(self, parts: Iterable[Part]) -> None:
        taken = list(parts)
        self.groups.append([p.chunk for p in taken])
        self.asked.set()
        assert self.go.wait(20)
        if self.error is not None:
            raise self.error
        super().append(taken)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


def play(use: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(use(), 20))


def test_what_comes_while_a_commit_is_written_goes_into_the_next_together(slow: Slow) -> None:
    async def use() -> None:
        queue = CommitQueue(slow)
        first = asyncio.create_task(queue.commit(part("a"), hurry=False))
        await asyncio.to_thread(slow.asked.wait)  # the loop is free while it is written
        others = [asyncio.create_task(queue.commit(part(name), hurry=True)) for name in "bc"]
        await asyncio.sleep(0)
        slow.go.set()
        await asyncio.gather(first, *others)
        assert slow.groups == [["a"], ["b", "c"]]
        assert [p.chunk for p in Commits(Storage(slow._storage.uri)).parts(STAGE)] == ["a", "b", "c"]

    play(use)


def test_without_hurry_a_commit_waits_after_another_and_who_hurries_takes_it_along(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 3600.0)
    slow.go.set()

    async def use() -> None:
        queue = CommitQueue(slow)
        await queue.commit(part("a"), hurry=False)
        waiting = asyncio.create_task(queue.commit(part("b"), hurry=False))
        await asyncio.sleep(0)
        await queue.commit(part("c"), hurry=True)
        await waiting
        assert slow.groups == [["a"], ["b", "c"]]
        last = asyncio.create_task(queue.commit(part("d"), hurry=False))
        await asyncio.sleep(0)
        await queue.flush()
        await last
        assert slow.groups[2:] == [["d"]]

    play(use)


def test_an_error_is_everybodys_whose_part_was_in_it_and_the_next_is_tried(slow: Slow) -> None:
    slow.go.set()

    async def use() -> None:
        queue = CommitQueue(slow)
        slow.error = FencedError("taken over")
        done = await asyncio.gather(*(queue.commit(part(n), hurry=True) for n in "ab"), return_exceptions=True)
        assert done == [slow.error, slow.error]
        slow.error = None
        await queue.commit(part("c"), hurry=True)
        await queue.flush()
        assert [p.chunk for p in slow.parts(STAGE)] == ["c"]

    play(use)


def test_stages_have_commits_of_their_own_and_one_that_fails_leaves_the_other(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow.go.set()
    append = slow.append

    def refusing(parts: Iterable[Part]) -> None:
        taken = list(parts)
        if taken[0].stage == "profile":
            raise OSError("no room")
        append(taken)

    monkeypatch.setattr(slow, "append", refusing)

    async def use() -> None:
        queue = CommitQueue(slow)
        asked = (part("a"), part("p", "profile"), part("b"))
        first, refused, second = await asyncio.gather(
            *(queue.commit(one, hurry=True) for one in asked), return_exceptions=True
        )
        assert (first, second) == (None, None)
        assert isinstance(refused, OSError)
        assert [p.chunk for p in slow.parts(STAGE)] == ["a", "b"]
        assert slow.parts("profile") == []

    play(use)
