"""Commits in groups: what slots write while a commit is under way, or shortly after it, goes into the next one of its
stage.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from symoe_ray.ledger import Commits, Part

PAUSE_S = 0.25
FLUSH_S = 5.0

_Waiting = tuple[Part, asyncio.Future[None]]


class CommitQueue:
    """One commit at a time, and in a thread: an object store may take long, and the pool has slots to feed.

    After a commit the next one waits `PAUSE_S`, so that a fast stage has few, unless somebody is in a hurry.
    """

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._waiting: list[_Waiting] = []
        self._open: set[asyncio.Future[None]] = set()
        self._hurry = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def commit(self, part: Part, *, hurry: bool) -> None:
        """Return when the part counts; FencedError, or what the storage has raised, where it does not.

        With `hurry` it is not kept waiting, nor are those that wait already.
        """
        loop = asyncio.get_running_loop()
        committed = loop.create_future()
        self._waiting.append((part, committed))
        self._open.add(committed)
        committed.add_done_callback(self._open.discard)
        if hurry:
            self.hurry()
        if self._writer is None:
            self._writer = loop.create_task(self._write())
        await committed

    def hurry(self) -> None:
        """Let nothing that waits already wait any longer."""
        if self._waiting:
            self._hurry.set()

    async def flush(self) -> None:
        """Return when everything that waited has been committed, has not been for an error, or takes too long."""
        self.hurry()
        if self._open:
            await asyncio.wait(self._open, timeout=FLUSH_S)

    async def _write(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            self._hurry.clear()
            groups: dict[str, list[_Waiting]] = defaultdict(list)
            for waiting in taken:
                groups[waiting[0].stage].append(waiting)
            for group in groups.values():
                await self._append(group)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), PAUSE_S)
        self._writer = None

    async def _append(self, group: Sequence[_Waiting]) -> None:
        """One commit, of parts of one stage."""
        failed: Exception | None = None
        try:
            await asyncio.to_thread(self._commits.append, [part for part, _ in group])
        except Exception as error:
            failed = error
        for _, committed in group:
            if committed.done():  # nobody waits for it any more
                continue
            if failed is None:
                committed.set_result(None)
            else:
                committed.set_exception(failed)
