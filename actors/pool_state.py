"""What the pool knows: its slots, the stage under way, and the log of what happens. Owned by the pool's event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.slot import SlotInfo
from symoe_ray.core import ExpertSpec
from symoe_ray.ledger import Chunk
from symoe_ray.storage import Storage


@dataclass(slots=True)
class SlotState:
    """A slot: the engine key it has or is loading, the leases it works on, whether it can be used now or ever again."""

    info: SlotInfo
    actor: Any
    key: str = ""
    expert: str = ""
    loaded: bool = False
    loaded_expert: str = ""
    available: bool = True
    gone: bool = False
    state: str = "idle"
    leases: int = 0
    tokens: int = 0
    had: set[str] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class StageState:
    """A stage under way: chunks that wait by engine key, what has come, what could not be loaded."""

    name: str
    waiting: dict[str, deque[Chunk]]
    open_tokens: dict[str, int]
    total_rows: int
    started: float = field(default_factory=time.monotonic)
    open_chunks: int = 0
    rows: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    live_tokens: int = 0
    load_failures: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    load_errors: dict[str, str] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None


class EventLog:
    """events.jsonl of a run: one object a line, written a few at a time."""

    def __init__(self, storage: Storage, attempt: int, started: float) -> None:
        self._storage, self._attempt, self._started = storage, attempt, started
        self._lines: list[str] = []

    def add(self, stage: str, slot: str, event: str, **values: object) -> None:
        """Note an event with the time, epoch seconds and seconds since the attempt began."""
        now = time.time()
        head = {"time": round(now, 3), "t": round(now - self._started, 3), "attempt": self._attempt}
        self._lines.append(json.dumps({**head, "stage": stage, "slot": slot, "event": event, **values}) + "\n")

    def flush(self) -> None:
        """Write what was noted since the last time."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._storage.append_text("events.jsonl", "".join(lines))


def stage_of(name: str, chunks: Sequence[Chunk], experts: dict[str, ExpertSpec]) -> StageState:
    """A stage at its start: the largest chunks of every engine key first."""
    waiting: dict[str, deque[Chunk]] = defaultdict(deque)
    tokens: dict[str, int] = defaultdict(int)
    for chunk in sorted(chunks, key=lambda c: -c.tokens):
        key = experts[chunk.expert].engine_key
        waiting[key].append(chunk)
        tokens[key] += chunk.tokens
    stage = StageState(name=name, waiting=waiting, open_tokens=tokens, total_rows=sum(c.rows for c in chunks))
    stage.open_chunks = len(chunks)
    return stage
