"""What the pool knows: its slots, the stage under way, and the log of what happens. Owned by the pool's event loop."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from actors.placing import Reservation
from actors.slot import SlotInfo
from symoe_ray.core import ExpertSpec, Failure
from symoe_ray.engine_room import PROMPT_TOKENS
from symoe_ray.ledger import Chunk, pieces, split
from symoe_ray.length_guesses import piece_rows, started_alike
from symoe_ray.slot_places import Place
from symoe_ray.stage_sizes import stages_of
from symoe_ray.storage import Storage

ESTIMATE_SEQUENCES = 8
CHUNKS_AHEAD = 16


@dataclass(slots=True)
class SlotState:
    """A slot: the engine key it has or is loading, the one promised next, what each lease has left to generate, in
    sequences.

    `tokens` is what its engine had generated when it was last asked. Since `measured_at`, for the measure of its speed,
    it has committed `written` tokens, and its sequences have run for `sequence_seconds` in all until `counted_at`.
    `alone`: it works on a suspect chunk and gets nothing else. `serves` is the engine key of a server's model, if it is
    the slot of one ("": it has engines). Times are those of `time.monotonic`.
    """

    info: SlotInfo
    actor: Any
    serves: str = ""
    place: Place = field(default_factory=Place)
    reservation: Reservation | None = None
    key: str = ""
    promised: str = ""
    expert: str = ""
    loaded: bool = False
    loaded_expert: str = ""
    adapters: set[str] = field(default_factory=set)
    asleep: frozenset[str] = frozenset()
    available: bool = True
    gone: bool = False
    state: str = "idle"
    leases: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    written: int = 0
    measured_at: float = 0.0
    sequence_seconds: float = 0.0
    counted_at: float = 0.0
    leased_at: float = 0.0
    had: set[str] = field(default_factory=set)
    alone: bool = False
    watched: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def sequences(self) -> int:
        """Sequences leased to it and not finished."""
        return sum(self.leases.values())

    def count(self, capacity: int) -> None:
        """Add up how long its sequences have run, so many at once: to be called before there are more or fewer."""
        now = time.monotonic()
        self.sequence_seconds += min(self.sequences, capacity) * (now - self.counted_at)
        self.counted_at = now

    def measure_from_now(self) -> None:
        """Begin to measure its speed anew."""
        self.measured_at = self.counted_at = time.monotonic()
        self.written, self.sequence_seconds = 0, 0.0


@dataclass(slots=True)
class Group:
    """The chunks of one engine key that wait, with their rows, sequences and estimated tokens.

    A sequence is a sample that is generated: all of them, but for the copies of a greedy one. `running` are leased, in
    requests that are not finished. When the stage began there were `total` in `total_rows`, of which each was expected
    to write `expected` tokens, `most` at most (0: not known), after a prompt of `prompt` tokens (0: not known).
    Those that are committed were expected to write `finished_expected` and wrote `finished_tokens`.
    """

    waiting: deque[Chunk] = field(default_factory=deque)
    rows: int = 0
    sequences: int = 0
    tokens: int = 0
    running: int = 0
    expected: float = 0.0
    prompt: float = 0.0
    total: int = 0
    total_rows: int = 0
    most: int = 0
    finished_expected: float = 0.0
    finished_tokens: int = 0
    finished_requests: int = 0
    finished_prompt_tokens: int = 0

    @property
    def sequence_tokens(self) -> float:
        """The mean of all sequences, as estimated and then corrected."""
        return self.expected * self._correction

    @property
    def next_tokens(self) -> float:
        """The mean of those that start next, where that is more than the mean of all: the longest come first."""
        ahead = list(islice(self.waiting, CHUNKS_AHEAD))
        sequences = sum(chunk.sequences or chunk.rows for chunk in ahead)
        expected = sum(chunk.tokens for chunk in ahead) / max(1, sequences)
        return max(self.sequence_tokens, expected * self._correction)

    @property
    def waiting_tokens(self) -> float:
        """What those that wait will write, as estimated and then corrected: of stages at once, one may have short
        answers and the other long ones.
        """
        return self.tokens * self._correction

    @property
    def _correction(self) -> float:
        """How much those that are finished wrote for each token that was expected, as far as that can be trusted.

        Short ones finish first, so those that run count as estimated, and so do `ESTIMATE_SEQUENCES` more.
        """
        guessed = (self.running + ESTIMATE_SEQUENCES) * self.expected
        return (self.finished_tokens + guessed) / max(1.0, self.finished_expected + guessed)

    @property
    def prompt_tokens(self) -> float:
        """Of the prompt of a row that waits."""
        guessed = (self.prompt or PROMPT_TOKENS) * ESTIMATE_SEQUENCES
        return (self.finished_prompt_tokens + guessed) / (self.finished_requests + ESTIMATE_SEQUENCES)

    @property
    def each(self) -> float:
        """Sequences of a row."""
        return self.total / max(1, self.total_rows)

    def start_alike(self, hosts: int, capacity: int) -> int:
        """Have so many hosts start with like work, one after another; how many chunks more that makes."""
        before, chunks = len(self.waiting), list(self.waiting)
        differ = len({chunk.tokens / (chunk.sequences or chunk.rows) for chunk in chunks}) > 1
        if differ and self.sequences <= hosts * capacity:
            rows = piece_rows(self.rows, hosts)
            chunks = [piece for chunk in chunks for piece in pieces(chunk, rows)]
        order = started_alike(chunks, hosts * capacity, lambda chunk: chunk.sequences or chunk.rows)
        self.waiting = deque(order)
        return len(order) - before

    def put(self, chunk: Chunk, *, first: bool = False) -> None:
        """Let a chunk wait, behind the others or before them."""
        (self.waiting.appendleft if first else self.waiting.append)(chunk)
        self.rows += chunk.rows
        self.sequences += chunk.sequences or chunk.rows
        self.tokens += chunk.tokens

    def take_chunk(self) -> Chunk:
        """The next chunk."""
        chunk = self.waiting.popleft()
        self.rows -= chunk.rows
        self.sequences -= chunk.sequences or chunk.rows
        self.tokens -= chunk.tokens
        return chunk

    def take(self, sequences: int) -> tuple[Chunk, bool]:
        """The next chunk, or as few rows of it as have so many sequences; whether a rest of it stays."""
        chunk = self.take_chunk()
        taken, rest = split(chunk, math.ceil(sequences * chunk.rows / (chunk.sequences or chunk.rows)))
        if rest is not None:
            self.put(rest, first=True)
        return taken, rest is not None


@dataclass(slots=True)
class StageState:
    """A stage under way: its work by engine key, what has come, what could not be loaded, which keys the next wants.

    `suspects` are chunks under which slot actors have died, `doomed` those that end as failed rows.
    """

    name: str
    groups: dict[str, Group]
    total_rows: int
    then: frozenset[str] = frozenset()
    started: float = field(default_factory=time.monotonic)
    open_chunks: int = 0
    rows: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    live_tokens: int = 0
    load_failures: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    load_errors: dict[str, str] = field(default_factory=dict)
    suspects: deque[Chunk] = field(default_factory=deque)
    doomed: deque[tuple[Chunk, Failure]] = field(default_factory=deque)
    failing: bool = False
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None

    def label_of(self, chunk: Chunk) -> str:
        """What events call the work of a chunk: its own stage among several at once, else as all is called (`replay`
        has what other stages lack generated).
        """
        return chunk.stage if chunk.stage in stages_of(self.name) else self.name


class EventLog:
    """events.jsonl of a run: one object a line, written a few at a time.

    Times are `started`, in epoch seconds, and what a monotonic clock has counted since: the wall clock may jump.
    """

    def __init__(self, storage: Storage, attempt: int, started: float) -> None:
        self._storage, self._attempt, self._started = storage, attempt, started
        self._zero = time.monotonic() - max(0.0, time.time() - started)
        self._lines: list[str] = []
        self._adding, self._writing = threading.Lock(), threading.Lock()

    def add(self, stage: str, slot: str, event: str, **values: object) -> None:
        """Note an event with the time, epoch seconds and seconds since the attempt began."""
        t = time.monotonic() - self._zero
        head = {"time": round(self._started + t, 3), "t": round(t, 3), "attempt": self._attempt}
        line = json.dumps({**head, "stage": stage, "slot": slot, "event": event, **values}) + "\n"
        with self._adding:
            self._lines.append(line)

    def flush(self) -> None:
        """Write what was noted since the last time. Where it cannot be written, it waits: events decide nothing."""
        with self._writing:  # one after the other: a thread may be at it
            with self._adding:
                lines, self._lines = self._lines, []
            if lines:
                try:
                    self._storage.append_text("events.jsonl", "".join(lines))
                except OSError:
                    with self._adding:
                        self._lines[:0] = lines


def stage_of(
    name: str, chunks: Sequence[Chunk], experts: dict[str, ExpertSpec], then: Sequence[str] = ()
) -> StageState:
    """A stage at its start. Of every engine key come first the chunks of the longest answers, then the largest ones.

    `then` are experts of the next stage.
    """
    groups: dict[str, Group] = defaultdict(Group)
    for chunk in sorted(chunks, key=lambda c: (-c.tokens / (c.sequences or c.rows), -c.tokens)):
        spec = experts[chunk.expert]
        group = groups[spec.engine_key]
        group.put(chunk)
        group.prompt = max(group.prompt, chunk.prompt)
        group.most = max(group.most, chunk.most or spec.sampling.max_tokens)
    for group in groups.values():
        group.total, group.total_rows = group.sequences, group.rows
        group.expected = group.tokens / max(1, group.sequences)
    return StageState(
        name=name, groups=dict(groups), total_rows=sum(c.rows for c in chunks), open_chunks=len(chunks),
        then=frozenset(experts[name].engine_key for name in then),
    )  # fmt: skip
