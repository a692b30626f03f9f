"""What the scheduling policy sees and what it answers: plain values, so that it is tested without a pool."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_OVER_MEAN = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """A slot as the pool sees it.

    `resident` is the engine key that it holds, or is loading for a lease; `promised` the one that it prepares for when
    the resident one has drained. `rows` are leased to it and not finished; `capacity` is how many sequences its engine
    runs at once. `had` are the keys it held earlier in this stage, `barred` those it could not load, `asleep` those
    with a sleeping engine here. `ready`: its resident engine generates (False while that loads). `since_lease_s`: since
    when it has been given nothing more (None: unknown).
    """

    id: str
    resident: str = ""
    promised: str = ""
    rows: int = 0
    capacity: int = 256
    had: frozenset[str] = frozenset()
    barred: frozenset[str] = frozenset()
    asleep: frozenset[str] = frozenset()
    tensor_parallel_size: int = 1
    available: bool = True
    ready: bool = True
    since_lease_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """The requests of one engine key. A row here is one sequence: each sample of a request that is generated.

    `rows` wait, and `tokens` is what they will write, as estimated; `running_rows` are leased and not finished, over
    all slots. `hosts` counts the available slots that hold the engine, load it or have it promised. `longest_tokens` is
    the estimate of the longest single answer (0: four times the mean). Engines of equal `shape` can be exchanged by
    reloading weights ("": alone). `capacity` is how many sequences its engine runs at once (0: as the slot says).
    `starting_rows` are those of the running ones whose engine still loads. `most_hosts` is how many slots could hold it
    (0: all). Online, the oldest request has waited for
    `oldest_s`.
    """

    key: str
    rows: int
    tokens: int
    running_rows: int = 0
    hosts: int = 0
    longest_tokens: int = 0
    tensor_parallel_size: int = 1
    shape: str = ""
    capacity: int = 0
    starting_rows: int = 0
    most_hosts: int = 0
    oldest_s: float = 0.0

    @property
    def mean_tokens(self) -> float:
        """Estimated output of one waiting row."""
        return self.tokens / self.rows if self.rows else 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether none of its hosts generates yet: one more loads no later than they."""
        return self.starting_rows == self.running_rows

    @property
    def longest(self) -> float:
        """Estimated output of the longest row."""
        return self.longest_tokens or LONGEST_OVER_MEAN * self.mean_tokens


@dataclass(frozen=True, slots=True)
class Lease:
    """Give a slot the next `rows` rows of a key at most, loading its engine first where another is resident."""

    slot: str
    key: str
    rows: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """A slot drains: read the key's weights into the page cache now, start its engine as soon as it fits beside."""

    slot: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Online:
    """Requests arrive for ever: a group whose oldest request has waited `due_share` of `max_wait_s` goes first."""

    max_wait_s: float
    due_share: float = 0.5
