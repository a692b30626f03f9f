"""What a pool has learned about its engines: priors from their sizes, then loads and speeds as they are measured."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from statistics import median

from actors.engine_plans import EngineFacts
from symoe_ray.engine_costs import Costs, EngineCost, prior_cost
from symoe_ray.engine_room import Room, running_tokens

UNKNOWN = EngineFacts(weight_bytes=500_000_000, kv_bytes_per_token=30_000, shape="")


@dataclass(slots=True)
class _Seen:
    """Loads, and the time in which an engine has written, beside what its prior then let expect for that."""

    loads_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    predicted_s: float = 0.0

    @property
    def scale(self) -> float:
        """How many times as long as by its prior an engine writes (0: not measured)."""
        return self.seconds / self.predicted_s if self.predicted_s else 0.0


class CostBook:
    """Costs by engine key. Owned by the pool."""

    def __init__(self, *, cuda: bool) -> None:
        self._default = prior_cost(UNKNOWN.weight_bytes, UNKNOWN.kv_bytes_per_token, cuda=cuda)
        self._cuda = cuda
        self._facts: dict[str, tuple[EngineFacts, int]] = {}
        self._priors: dict[str, EngineCost] = {}
        self._shapes: dict[str, str] = {}
        self._rooms: dict[str, Room] = {}
        self._sized: set[str] = set()
        self._seen: dict[str, _Seen] = defaultdict(_Seen)
        self._costs: Costs | None = None

    def knows(self, key: str) -> bool:
        """Whether an engine has been described."""
        return key in self._priors

    def shape(self, key: str) -> str:
        """The shape of an engine, "" if it is not known."""
        return self._shapes.get(key, "")

    def room(self, key: str) -> Room | None:
        """What an engine works on at once, None if it is not known: as it said itself, else as computed."""
        return self._rooms.get(key)

    def describe(self, key: str, facts: EngineFacts, gpus: int = 1) -> None:
        """Note the sizes of an engine over so many GPUs."""
        if facts.weight_bytes:
            self._sized.add(key)
            self._facts[key] = facts, gpus
            self._priors[key] = prior_cost(facts.weight_bytes, facts.kv_bytes_per_token, cuda=self._cuda, gpus=gpus)
        else:
            self._priors[key] = self._default
        self._shapes[key], self._costs = facts.shape, None
        if facts.room is not None:
            self._rooms.setdefault(key, facts.room)

    def expect(self, key: str, prompt_tokens: float, answer_tokens: float) -> None:
        """Have the prior of an engine be that for prompts and answers of these mean lengths, from now on."""
        if key in self._facts:
            facts, gpus = self._facts[key]
            self._priors[key] = prior_cost(
                facts.weight_bytes, facts.kv_bytes_per_token, cuda=self._cuda, gpus=gpus, prompt_tokens=prompt_tokens,
                answer_tokens=answer_tokens, context_tokens=running_tokens(prompt_tokens, answer_tokens),
            )  # fmt: skip
            self._costs = None

    def has_room(self, key: str, room: Room) -> None:
        """Note what a live engine works on at once, as far as it says."""
        known = self._rooms.get(key)
        self._rooms[key] = Room(room.max_num_seqs, room.kv_tokens or (known.kv_tokens if known else 0))

    def loaded(self, key: str, seconds: float) -> None:
        """Note how long a fork or spawn of an engine took."""
        self._seen[key].loads_s.append(seconds)
        self._costs = None

    def generated(self, key: str, tokens: int, seconds: float, sequences: float) -> None:
        """Note what an engine wrote in some seconds, `sequences` at a time on average."""
        seen = self._seen[key]
        seen.seconds += seconds
        seen.predicted_s += self._prior(key).write_s(tokens, sequences)
        self._costs = None

    def costs(self) -> Costs:
        """All that is known now.

        An engine of which nothing was measured is as far off its prior as the others are, of those whose size is known:
        a server is no engine of ours.
        """
        if self._costs is None:
            keys = self._priors.keys() | self._seen.keys()
            sized = {key: self._seen[key] for key in self._sized & self._seen.keys()}
            loads = [median(seen.loads_s) / self._prior(key).load_s for key, seen in sized.items() if seen.loads_s]
            steps = [seen.scale for seen in sized.values() if seen.scale]
            typical = median(loads) if loads else 1.0, median(steps) if steps else 1.0
            scales = {key: typical if key in self._sized else (1.0, 1.0) for key in keys}
            self._costs = Costs(by_key={key: self._cost(key, *scales[key]) for key in keys}, default=self._default)
        return self._costs

    def _prior(self, key: str) -> EngineCost:
        return self._priors.get(key, self._default)

    def _cost(self, key: str, load_scale: float, step_scale: float) -> EngineCost:
        seen, cost = self._seen[key], self._prior(key)
        scale = seen.scale or step_scale
        load_s = median(seen.loads_s) if seen.loads_s else cost.load_s * load_scale
        return replace(cost, step_s=cost.step_s * scale, sequence_s=cost.sequence_s * scale, load_s=load_s)
