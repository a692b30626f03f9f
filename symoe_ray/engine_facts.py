"""What the events of a run say of its engines: loads, swaps, and the time in which slots generated."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

Event = Mapping[str, Any]
Key = TypeVar("Key", bound=Hashable)


def engine_facts(events: Sequence[Event], predicted_wall_s: float | None = None) -> dict[str, Any]:
    """Loads per expert, swaps per tier, and slot-seconds spent on them and on generating, of all attempts of a run.

    `generate_s` is the time in which a slot had work: chunks that overlap on a slot count once. `wall_s` is the time
    from the first event's begin to the last one's end, added up over attempts; `busy_ratio` is generate_s per slot and
    wall_s. `predicted_wall_s` is what `symoe plan` said of loads and generation before the run began. Only wall_s
    counts what servers elsewhere did: they have no slot that could be idle.
    """
    elsewhere = {e["slot"] for e in events if e.get("tier") == "remote"}
    own = [e for e in events if e["slot"] not in elsewhere]
    swaps = [e for e in own if e["event"] in ("load", "reload", "wake")]
    loads = Counter(e["expert"] for e in swaps if e["event"] == "load")
    walls: dict[int, list[float]] = defaultdict(list)
    for event in events:
        walls[event["attempt"]] += [event["t"] - event.get("seconds", 0.0), event["t"]]
    generate_s = sum(_generation(own, lambda event: "").values())
    wall_s = sum(max(w) - min(w) for w in walls.values())
    slots = len({e["slot"] for e in own}) or 1
    return {
        "loads": dict(sorted(loads.items())),
        "tiers": dict(sorted(Counter(e["tier"] for e in swaps).items())),
        "swap_s": round(sum(e["seconds"] for e in swaps), 3),
        "generate_s": round(generate_s, 3),
        "wall_s": round(wall_s, 3),
        "busy_ratio": round(generate_s / (wall_s * slots), 4) if wall_s else 0.0,
        "predicted_wall_s": predicted_wall_s,
    }


def token_seconds(events: Sequence[Event]) -> dict[tuple[str, str], float]:
    """Slot-seconds of generation for one token that was written, by (stage, expert).

    A stage's time for an expert (prompts read, tokens written, many rows at once) is shared out over the tokens that it
    wrote: what the tokens cost as they were made, in batches, not what one question alone would have taken.
    """
    seconds = _generation(events, lambda event: (event["stage"], event["expert"]))
    tokens: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event["event"] == "generate":
            tokens[event["stage"], event["expert"]] += event["completion_tokens"]
    return {key: seconds[key] / count for key, count in tokens.items() if count}


def _generation(events: Sequence[Event], key: Callable[[Event], Key]) -> dict[Key, float]:
    """Seconds in which slots generated, by `key(event)`. What overlaps on a slot counts once, and is shared by the keys
    in proportion to the tokens that they wrote in a second.
    """
    spans: dict[tuple[int, str], list[tuple[float, float, Key]]] = defaultdict(list)
    for event in events:
        if event["event"] == "generate" and event["seconds"] > 0:
            rate = max(1, event["completion_tokens"]) / event["seconds"]
            edges = spans[event["attempt"], event["slot"]]
            edges += [(event["t"] - event["seconds"], rate, key(event)), (event["t"], -rate, key(event))]
    total: dict[Key, float] = defaultdict(float)
    for edges in spans.values():
        _share(edges, total)
    return total


def _share(edges: list[tuple[float, float, Key]], total: dict[Key, float]) -> None:
    """Add up the time of one slot: `edges` are (time, tokens a second that begin or, negative, end there, key)."""
    rates: dict[Key, float] = defaultdict(float)
    open_: Counter[Key] = Counter()
    before = 0.0
    for time, rate, key in sorted(edges, key=lambda edge: edge[:2]):
        every = sum(rates.values())
        for one, own in rates.items():
            if own > 0:
                total[one] += (time - before) * own / every
        open_[key] += 1 if rate > 0 else -1
        rates[key] = rates[key] + rate if open_[key] else 0.0
        before = time
