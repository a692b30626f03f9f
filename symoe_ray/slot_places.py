"""Where the slots of a pool go: so many on the CPU of each node, or on its GPUs, in the sizes that the engines need.

A slot holds whole GPUs of one node. A node's GPUs are not cut into slots of one size: a pool of engines of 1, 2 and 4
GPUs gets slots of 1, 2 and 4, so that none of the four is idle while a small engine runs, and as many of each size as
its engines have to write: two reasoning experts may want more slots than fourteen others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.length_estimates import most_tokens, unseen_tokens
from symoe_ray.settings import Settings

Size = tuple[int, str]
"""GPUs, and of which kind ("": any)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the cluster: its GPUs, all of one `kind` ("": not known)."""

    id: str
    cpus: float = 1.0
    gpus: int = 0
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a slot goes: a node ("": any), so many of its GPUs (0: its CPU). It is the `index`-th of `beside` there."""

    node: str = ""
    gpus: int = 0
    kind: str = ""
    index: int = 0
    beside: int = 1

    def holds(self, size: Size) -> bool:
        """Whether an engine of that size fits. On the CPU every one does."""
        gpus, kind = size
        return not self.gpus or (gpus <= self.gpus and kind in ("", self.kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRule:
    """How nodes are divided into slots: by the `demand` for sizes (`demand_of`), or `cpu_slots` each.

    `gpus` is the most that may be taken in all (0: all there are).
    """

    cpu_slots: int = 0
    demand: Mapping[Size, float] = field(default_factory=dict)
    gpus: int = 0

    def places(self, nodes: Iterable[Node], *, taken: Sequence[Place] = ()) -> tuple[Place, ...]:
        """The slots that these nodes get, beside those that are there already."""
        if not self.demand:
            return tuple(
                Place(node=node.id, index=index, beside=self.cpu_slots)
                for node in nodes if node.cpus >= 1
                for index in range(self.cpu_slots)
            )  # fmt: skip
        left = self.gpus - sum(p.gpus for p in taken) if self.gpus else sum(n.gpus for n in nodes)
        return _Division(list(nodes), self.demand, left, taken).places()


def anywhere(count: int) -> tuple[Place, ...]:
    """So many slots without GPUs, wherever Ray puts them."""
    return tuple(Place(index=index, beside=count) for index in range(count))


def size_of(spec: ExpertSpec) -> Size:
    """What an expert's engine needs."""
    return spec.tensor_parallel_size, spec.accelerator_type


def demand_of(experts: Iterable[ExpertSpec], tokens: Mapping[str, float]) -> dict[Size, float]:
    """What engines of each size have to do, if every expert is asked as often, from the tokens of each one's answers.

    A model of twice the size on twice the GPUs writes as fast, so that tokens stand for the time of a slot.
    """
    found: dict[Size, float] = {}
    for spec in experts:
        found[size_of(spec)] = found.get(size_of(spec), 0.0) + tokens[spec.name]
    return found


def slot_rule(settings: Settings, *, any_kind: bool = False) -> SlotRule:
    """How the GPUs of a run are cut; `any_kind`: whichever kind of GPU its experts ask for."""
    local = [replace(e, accelerator_type="") if any_kind else e for e in settings.pool.local]
    tokens = {e.name: unseen_tokens(most_tokens(settings, "answer", e)) for e in local}
    return SlotRule(demand=demand_of(local, tokens), gpus=settings.gpus)


def check_room(experts: Iterable[ExpertSpec], places: Sequence[Place], nodes: Sequence[Node], limit: int) -> None:
    """ResourceError for an expert that no slot can hold, with what it needs and what there is."""
    for spec in experts:
        if not any(place.holds(size_of(spec)) for place in places):
            there = ", ".join(f"{n.gpus} {n.kind or 'GPUs'}" for n in nodes if n.gpus) or "none"
            allowed = f", of which gpus={limit} may be used" if limit else ""
            kind = f" of kind {spec.accelerator_type}" if spec.accelerator_type else ""
            raise ResourceError(
                f"expert {spec.name} needs tensor_parallel_size={spec.tensor_parallel_size} GPUs{kind} on one node; "
                f"the nodes have {there}{allowed}"
            )


class _Division:
    """The GPUs of some nodes, while they are given out."""

    def __init__(self, nodes: list[Node], demand: Mapping[Size, float], left: int, taken: Sequence[Place]) -> None:
        self._nodes, self._demand, self._left = nodes, demand, left
        self._free = {node.id: node.gpus for node in nodes}
        self._taken = list(taken)
        self._made: list[Place] = []

    def places(self) -> tuple[Place, ...]:
        """First a slot for each size that has none that is large enough, the largest first; then the rest by need."""
        for size in sorted(self._demand, reverse=True):
            if not any(place.holds(size) for place in (*self._taken, *self._made)):
                self._take(size)
        while scarce := self._scarcest():
            self._take(scarce)
        return tuple(self._made)

    def _scarcest(self) -> Size | None:
        """The size with the most to do for a slot among those that there is room for; of equals the largest."""
        have = Counter((place.gpus, place.kind) for place in (*self._taken, *self._made))
        fits = [size for size in self._demand if self._node_for(size) is not None]

        def scarcity(size: Size) -> tuple[float, Size]:
            slots = sum(count for (gpus, kind), count in have.items() if gpus == size[0] and size[1] in ("", kind))
            return self._demand[size] / (slots + 1), size

        return max(fits, key=scarcity) if fits else None

    def _node_for(self, size: Size) -> Node | None:
        """The node with room whose free GPUs are the fewest."""
        gpus, kind = size
        fits = [n for n in self._nodes if gpus <= min(self._free[n.id], self._left) and kind in ("", n.kind)]
        return min(fits, key=lambda n: (self._free[n.id], n.id)) if fits else None

    def _take(self, size: Size) -> None:
        node = self._node_for(size)
        if node is not None:
            self._free[node.id] -= size[0]
            self._left -= size[0]
            self._made.append(Place(node=node.id, gpus=size[0], kind=node.kind))
