"""What every pool does with its slots: starts them, changes their engines, measures them, revives them, ends them.

`EnginePool` gives them the chunks of a run, `OnlinePool` requests that arrive one by one. Both run as one async actor,
the owner of all this state: one event loop, so no locks. They decide nothing themselves: `symoe_ray.scheduling.decide`
does, from a view of the state.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.pool_costs import CostBook
from actors.pool_state import EventLog, SlotState
from actors.slot import Loaded, SlotActor, SlotConfig, SlotInfo
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.scheduling import GroupView, SlotView
from symoe_ray.settings import EngineSettings
from symoe_ray.storage import Storage

SLOT_START_TIMEOUT_S = 600.0
WATCH_S = 1.0
EVENT_OF_TIER = {"reload": "reload", "lora": "reload", "wake": "wake"}
CPU_CAPACITY = 32
GPU_CAPACITY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """What a pool is made of. `gpus_per_slot` 0 makes CPU slots. `epoch` is this attempt's number at the run."""

    run_uri: str
    epoch: int
    started: float
    experts: tuple[ExpertSpec, ...]
    engine: EngineSettings
    slots: int
    gpus_per_slot: int = 0


class LeaseLostError(Exception):
    """The slot no longer has, and is not about to load, the engine that a lease was given for."""


class SlotPool(ABC):
    """Runs on the cluster as a Ray actor and owns the slot actors: Ray ends them with it.

    What is done with the slots is the subclass's: `_dispatch` is called whenever that may have changed.
    """

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._experts = {e.name: e for e in config.experts}
        self._storage = Storage(config.run_uri)
        self._slots: dict[str, SlotState] = {}
        self._costs = CostBook(cuda=bool(config.gpus_per_slot))
        self._tasks: set[asyncio.Task[None]] = set()
        self._events = EventLog(self._storage, config.epoch, config.started)
        self._swaps: Counter[str] = Counter()

    @abstractmethod
    def _dispatch(self) -> None:
        """Give the slots what there is to do."""

    def _label(self) -> str:
        """The stage that events belong to."""
        return ""

    @abstractmethod
    def _note_tokens(self, tokens: int) -> None:
        """Engines have generated so many tokens since the last time."""

    @abstractmethod
    def _fits(self, slot: SlotState, key: str) -> bool:
        """Whether a slot may be asked for an engine."""

    async def start(self) -> list[SlotInfo]:
        """Start the slots; returns where they are."""
        states = await asyncio.gather(*(self._start_slot(index) for index in range(self._config.slots)))
        self._slots = {s.info.id: s for s in states}
        self._spawn(self._watch())
        return [s.info for s in states]

    async def resolve(self, experts: list[str]) -> dict[str, str]:
        """Have the weights of these experts on every node that has a slot; problems by expert."""
        # on each node one slot fetches what the others then find
        first = {s.info.node: s for s in self._slots.values()}
        others = [s for s in self._slots.values() if s not in first.values()]
        found: list[dict[str, str]] = []
        for slots in (list(first.values()), others):
            found += await asyncio.gather(*(s.actor.resolve.remote(experts) for s in slots))
        return {name: problem for problems in found for name, problem in problems.items()}

    async def stop(self) -> None:
        """End all engines and slots."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(s.actor.stop.remote() for s in self._slots.values()), return_exceptions=True)
        for slot in self._slots.values():
            if slot.loaded_expert:
                self._emit("unload", slot, expert=slot.loaded_expert)
            ray.kill(slot.actor)
        self._events.flush()

    async def _start_slot(self, index: int) -> SlotState:
        config = SlotConfig(
            id=f"slot-{index}", index=index, slots=self._config.slots, run_uri=self._config.run_uri,
            epoch=self._config.epoch, experts=self._config.experts, engine=self._config.engine,
        )  # fmt: skip
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0, "max_concurrency": 1000}
        if self._config.gpus_per_slot:
            options["num_gpus"] = self._config.gpus_per_slot
        else:
            options["scheduling_strategy"] = "SPREAD"
        actor = SlotActor.options(**options).remote(config)
        try:
            info = await asyncio.wait_for(actor.start.remote(), SLOT_START_TIMEOUT_S)
        except TimeoutError:
            raise ResourceError(
                f"slot {index + 1} of {self._config.slots} did not start within {SLOT_START_TIMEOUT_S:.0f} s: "
                f"does the cluster have {self._config.gpus_per_slot * self._config.slots} free GPUs?"
            ) from None
        return SlotState(info=info, actor=actor)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _learn_facts(self, experts: set[str]) -> None:
        """Know the sizes of the engines that are wanted; where a slot cannot tell, scheduling guesses."""
        unknown = sorted(name for name in experts if not self._costs.knows(self._experts[name].engine_key))
        if unknown:
            slots = [s for s in self._slots.values() if s.available]
            told = await asyncio.gather(*(s.actor.facts.remote(unknown) for s in slots), return_exceptions=True)
            for facts in told:  # what is wrong with a model or a slot shows when it is used
                for name, fact in facts.items() if isinstance(facts, dict) else ():
                    self._costs.describe(self._experts[name].engine_key, fact)

    async def _prepare(self, slot: SlotState, expert: str) -> None:
        """Have a slot get ready for the expert that comes next."""
        try:
            read = await slot.actor.prepare.remote(expert)
        except RayActorError:  # its leases tell
            return
        except RayTaskError as error:  # the load will fail, too, and say why
            self._emit("crash", slot, expert=expert, message=f"prefetch: {error.cause}"[:500])
        else:
            self._emit("prefetch", slot, expert=expert, seconds=round(read.seconds, 3), bytes=read.bytes)

    async def _have_engine(self, slot: SlotState, expert: str, key: str) -> None:
        """Have an expert's engine on a slot that has been given to its key; LeaseLostError where it no longer is."""
        async with slot.lock:
            if slot.key != key:  # the lease before this one could not load it
                raise LeaseLostError
            lora = self._experts[expert].lora
            if slot.loaded and (not lora or lora in slot.adapters):
                return
            swap = not slot.loaded
            slot.state, slot.expert = "load", expert
            loaded = await slot.actor.load.remote(expert)
            slot.capacity, slot.loaded = loaded.capacity, True
            if swap:
                self._note_end(slot, frozenset(loaded.asleep))
                slot.loaded_expert, slot.adapters = expert, set()
                if EVENT_OF_TIER.get(loaded.tier, "load") == "load":
                    self._costs.loaded(key, loaded.start_s)
                slot.measured_at = time.monotonic()
            slot.adapters.add(lora)
            self._note_load(slot, expert, key, loaded)

    def _note_end(self, slot: SlotState, asleep: frozenset[str]) -> None:
        """What became of the engine that was on the slot: an event."""
        if slot.loaded_expert:
            key = self._experts[slot.loaded_expert].engine_key
            self._emit("sleep" if key in asleep else "unload", slot, expert=slot.loaded_expert)
        slot.asleep, slot.loaded_expert = asleep, ""

    def _note_load(self, slot: SlotState, expert: str, key: str, loaded: Loaded) -> None:
        self._swaps[loaded.tier] += 1
        self._emit(
            EVENT_OF_TIER.get(loaded.tier, "load"), slot, expert=expert, key=key, seconds=round(loaded.seconds, 3),
            tier=loaded.tier, start_s=round(loaded.start_s, 3), beside=loaded.beside, bytes=loaded.bytes,
            **({"message": loaded.note} if loaded.note else {}),
        )  # fmt: skip

    def _lose(self, slot: SlotState) -> None:
        """A slot actor is dead, and its engine with it."""
        slot.key, slot.promised, slot.loaded = "", "", False
        slot.loaded_expert, slot.asleep = "", frozenset()
        if slot.available:
            slot.available, slot.state = False, "lost"
            self._spawn(self._revive(slot))

    async def _revive(self, slot: SlotState) -> None:
        """Wait for Ray to restart a slot actor (on another node, where its own is gone)."""
        try:
            started = slot.actor.start.options(max_task_retries=-1).remote()
            slot.info = await asyncio.wait_for(started, SLOT_START_TIMEOUT_S)
        except (RayActorError, RayTaskError, TimeoutError) as error:
            slot.gone = True
            self._emit("crash", slot, expert="", message=f"slot actor is lost: {error}".splitlines()[0])
        else:
            slot.available, slot.state = True, "idle"
        self._dispatch()

    async def _watch(self) -> None:
        """Once a second: what the slots have generated, and which engines have died."""
        while True:
            await asyncio.sleep(WATCH_S)
            for slot in list(self._slots.values()):
                if not slot.available:
                    continue
                try:
                    tokens, deaths = await slot.actor.progress.remote()
                except (RayActorError, RayTaskError):
                    continue
                # an engine counts from its start, so a smaller number is a new engine's
                self._note_tokens(tokens - slot.tokens if tokens >= slot.tokens else tokens)
                slot.tokens = tokens
                for cause in deaths:
                    self._emit("crash", slot, expert=slot.expert, message=cause[:500])
            self._events.flush()

    def _measure(self, slot: SlotState, key: str) -> None:
        """Note what a slot has written since the last time, and with how many sequences."""
        now = time.monotonic()
        if slot.written and slot.loaded:
            self._costs.generated(key, slot.written, now - slot.measured_at, min(slot.rows, slot.capacity))
        slot.written, slot.measured_at = 0, now

    def _view(self, slot: SlotState, keys: Mapping[str, object]) -> SlotView:
        """A slot as the policy sees it; `keys` are those that there is work for."""
        usual = GPU_CAPACITY if self._config.gpus_per_slot else CPU_CAPACITY
        return SlotView(
            id=slot.info.id, resident=slot.key, promised=slot.promised, rows=slot.rows,
            capacity=slot.capacity or self._config.engine.max_num_seqs or usual, had=frozenset(slot.had),
            barred=frozenset(key for key in keys if not self._fits(slot, key)), asleep=slot.asleep,
            tensor_parallel_size=max(1, self._config.gpus_per_slot), available=slot.available, ready=slot.loaded,
            since_lease_s=time.monotonic() - slot.leased_at,
        )  # fmt: skip

    def _idle_views(self, keys: Mapping[str, object]) -> dict[str, GroupView]:
        """Engines on the slots that there is no work for: their shape may save a load."""
        held = [s.key for s in self._slots.values() if s.available]
        return {
            key: GroupView(key=key, rows=0, tokens=0, hosts=held.count(key), shape=self._costs.shape(key))
            for key in set(held) - keys.keys()
        }

    def _emit(self, event: str, slot: SlotState, **values: object) -> None:
        self._events.add(self._label(), slot.info.id, event, **values)
