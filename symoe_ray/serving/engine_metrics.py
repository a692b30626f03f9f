"""What engines count by themselves, vLLM's Prometheus metrics, for as long as the endpoint lives.

An engine process counts from its start and ends with a swap. What is shown goes on: counters and histograms are added
up over the processes that have served an expert, gauges are those of the engines that live.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

REMEMBERED = 64  # processes whose last counts are kept: one may sleep and go on
_OWN = ("model_name", "engine")
_Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A Prometheus metric: its kind (counter, gauge, histogram) and its samples (name, labels, value)."""

    name: str
    kind: str
    help: str
    samples: tuple[tuple[str, dict[str, str], float], ...]


class Counts:
    """What the engine processes of one slot have counted, one after the other.

    Of vLLM's own labels `model_name` becomes the experts that an engine serves (its own is a path), and `engine` the
    slot, on gauges alone: so there are as many series as experts, not as experts times slots.
    """

    def __init__(self, slot: str) -> None:
        self._slot = slot
        self._about: dict[str, tuple[str, str]] = {}
        self._totals: dict[str, dict[_Key, float]] = defaultdict(lambda: defaultdict(float))
        self._seen: dict[int, dict[_Key, float]] = {}
        self._gauges: dict[str, dict[_Key, float]] = {}

    def note(self, experts: str, process: int, families: Sequence[Family]) -> None:
        """Take what the engine process that serves these experts has counted since its start."""
        before, now = self._seen.pop(process, {}), {}
        self._gauges = {}
        for family in families:
            self._about[family.name] = family.kind, family.help
            for name, labels, value in family.samples:
                plain = {k: v for k, v in labels.items() if k not in _OWN}
                if family.kind == "gauge":
                    key = _key(name, {**plain, "model_name": experts, "engine": self._slot})
                    self._gauges.setdefault(family.name, {})[key] = value
                else:  # a process whose weights were exchanged counts on: only what is new is of these experts
                    now[_key(name, plain)] = value
                    key = _key(name, {**plain, "model_name": experts})
                    self._totals[family.name][key] += value - before.get(_key(name, plain), 0.0)
        self._seen[process] = now
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def idle(self) -> None:
        """There is no engine now."""
        self._gauges = {}

    def families(self) -> list[Family]:
        """Everything so far."""
        known = [*self._totals.items(), *self._gauges.items()]
        return [_family(name, *self._about[name], samples) for name, samples in known]


def merged(slots: Iterable[Sequence[Family]]) -> list[Family]:
    """The metrics of several slots: what is counted under the same labels is added up."""
    about: dict[str, tuple[str, str]] = {}
    sums: dict[str, dict[_Key, float]] = defaultdict(lambda: defaultdict(float))
    for family in (f for families in slots for f in families):
        about[family.name] = family.kind, family.help
        for name, labels, value in family.samples:
            sums[family.name][_key(name, labels)] += value
    return [_family(name, *about[name], samples) for name, samples in sorted(sums.items())]


def _key(name: str, labels: dict[str, str]) -> _Key:
    return name, tuple(labels.items())


def _family(name: str, kind: str, text: str, samples: dict[_Key, float]) -> Family:
    made = tuple((sample, dict(labels), value) for (sample, labels), value in samples.items())
    return Family(name=name, kind=kind, help=text, samples=made)
