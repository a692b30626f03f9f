"""What every pool does with its slots: starts them, changes their engines, measures them, revives them, ends them.

`EnginePool` gives them the chunks of a run, `OnlinePool` requests that arrive one by one. The first is an async actor,
the second a part of the endpoint's replica: one event loop owns all this state, so no locks. They decide nothing
themselves: `symoe_ray.scheduling.decide` does, from a view of the state.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.placing import nodes, reserve
from actors.pool_costs import CostBook
from actors.pool_state import EventLog, SlotState
from actors.remote_slot import RemoteSlotActor
from actors.slot import Loaded, RestartedError, SlotActor, SlotConfig, SlotInfo
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.engine_room import Room, last_over_mean
from symoe_ray.remote_slots import remote_slots
from symoe_ray.scheduling import GroupView, SlotView
from symoe_ray.settings import EngineSettings
from symoe_ray.slot_places import Place, SlotRule, size_of
from symoe_ray.storage import Storage

SLOT_START_TIMEOUT_S = 600.0
WATCH_S = 1.0
SURVEY_S = 2.0
REST, LONGEST_REST_S = 4.0, 0.25  # so many times as long as it took to decide, nothing is decided
EVENT_OF_TIER = {"reload": "reload", "lora": "reload", "wake": "wake"}
CPU_CAPACITY = 32
GPU_CAPACITY = 256  # where no slot has said yet what its engine takes


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """What a pool is made of: slots at `places`, and by `rule` on nodes that join (None: such nodes get none).

    `epoch` is this attempt's number at the run, `token` its own. `metrics`: vLLM's own are wanted. `node_wait_s`: how
    long a node is waited for where all that had slots for some engine are lost.
    """

    run_uri: str
    epoch: int
    started: float
    token: str = ""
    experts: tuple[ExpertSpec, ...]
    engine: EngineSettings
    places: tuple[Place, ...]
    rule: SlotRule | None = None
    node_wait_s: float = 0.0
    metrics: bool = False


class Lengths(NamedTuple):
    """Mean tokens of the prompts and answers of an engine, and samples of a request, as far as one knows."""

    prompt: float = 0.0
    answer: float = 0.0
    samples: float = 1.0


class LeaseLostError(Exception):
    """The slot no longer has, and is not about to load, the engine that a lease was given for."""


class SlotPool(ABC):
    """Runs on the cluster as a Ray actor and owns the slot actors: Ray ends them with it.

    What is done with the slots is the subclass's: `_dispatch` is called whenever that may have changed, and
    `_decide_all` follows. What changes meanwhile is looked at once, and the looking takes a fifth of the loop's time at
    most, unless once takes longer than a sixteenth of a second.
    """

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._experts = {e.name: e for e in config.experts}
        self._storage = Storage(config.run_uri)
        self._slots: dict[str, SlotState] = {}
        self._on_gpus = any(place.gpus for place in config.places)
        self._costs = CostBook(cuda=self._on_gpus)
        self._started = 0  # slots, those that are gone included
        self._sizes = {e.engine_key: size_of(e) for e in config.experts}
        self._met = {place.node for place in config.places}
        self._orphaned_since: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._events = EventLog(self._storage, config.epoch, config.started)
        self._swaps: Counter[str] = Counter()
        self._servers = remote_slots(config.experts)
        self._served: dict[str, frozenset[str]] = {}
        self._deciding: asyncio.TimerHandle | None = None
        self._decided_until = 0.0

    @abstractmethod
    def _decide_all(self) -> None:
        """Give the slots what there is to do."""

    @abstractmethod
    def _cannot_decide(self, error: Exception) -> None:
        """End what waits for a decision: `_decide_all` has raised this."""

    def _dispatch(self) -> None:
        """Something has changed: decide soon."""
        if self._deciding is None:
            loop = asyncio.get_running_loop()
            self._deciding = loop.call_at(max(loop.time(), self._decided_until), self._decide_now)

    def _decide_now(self) -> None:
        self._deciding = None
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            self._decide_all()
        except Exception as error:  # nobody else would hear of it
            self._cannot_decide(error)
        ended = loop.time()
        self._decided_until = ended + min(REST * (ended - began), LONGEST_REST_S)

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
        states = await asyncio.gather(
            *(self._start_slot(place) for place in self._config.places),
            *(self._start_remote(key, name) for key, name in self._servers.items()),
        )
        self._slots = {s.info.id: s for s in states}
        self._spawn(self._watch())
        self._spawn(self._meet_nodes())
        return [s.info for s in states]

    async def resolve(self, experts: list[str]) -> dict[str, str]:
        """Have the weights of these experts on every node that has a slot; problems by expert."""
        # on each node one slot fetches what the others then find; a server's slot fetches nothing
        first = {s.info.node: s for s in self._slots.values() if not s.serves}
        first |= {s.serves: s for s in self._slots.values() if s.serves}
        others = [s for s in self._slots.values() if s not in first.values()]
        found: list[dict[str, str]] = []
        for slots in (list(first.values()), others):
            found += await asyncio.gather(*(s.actor.resolve.remote(self._reached(s, experts)) for s in slots))
        return {name: problem for problems in found for name, problem in problems.items()}

    async def stop(self) -> None:
        """End all engines and slots."""
        if self._deciding is not None:
            self._deciding.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(s.actor.stop.remote() for s in self._slots.values()), return_exceptions=True)
        for slot in self._slots.values():
            if slot.loaded_expert:
                self._emit("unload", slot, expert=slot.loaded_expert)
            ray.kill(slot.actor)
            if slot.reservation is not None:
                slot.reservation.release()
        self._events.flush()

    async def _start_slot(self, place: Place) -> SlotState:
        number, self._started = self._started, self._started + 1
        config = SlotConfig(
            id=f"slot-{number}", index=place.index, slots=place.beside, run_uri=self._config.run_uri,
            epoch=self._config.epoch, token=self._config.token, engine=self._config.engine,
            experts=tuple(e for e in self._config.experts if not e.is_remote), metrics=self._config.metrics,
        )  # fmt: skip
        reservation = await reserve(place, SLOT_START_TIMEOUT_S)
        actor = SlotActor.options(
            num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=1000, **reservation.options
        ).remote(config)
        try:
            info = await asyncio.wait_for(actor.start.remote(), SLOT_START_TIMEOUT_S)
        except TimeoutError:
            reservation.release()
            raise ResourceError(f"{config.id} did not start within {SLOT_START_TIMEOUT_S:.0f} s") from None
        return SlotState(info=info, actor=actor, place=place, reservation=reservation)

    async def _meet_nodes(self) -> None:
        """Give up the slots of nodes that are lost, and give slots to those that have joined."""
        while self._config.rule is not None:
            await asyncio.sleep(SURVEY_S)
            try:
                alive = {node.id: node for node in await asyncio.to_thread(nodes)}
            except (RayError, ResourceError) as error:
                self._events.add(self._label(), "", "crash", expert="", message=f"nodes: {error}"[:500])
                continue
            for slot in self._slots.values():
                if slot.place.node and slot.place.node not in alive and not slot.gone:
                    self._give_up(slot)
            new = [node for node in alive.values() if node.id not in self._met]
            taken = [slot.place for slot in self._slots.values() if not slot.gone and not slot.serves]
            for place in self._config.rule.places(new, taken=taken):
                self._met.add(place.node)
                self._spawn(self._add_slot(place))
            if any(slot.gone for slot in self._slots.values()):
                self._dispatch()  # it may have waited long enough for another

    def _give_up(self, slot: SlotState) -> None:
        """A slot's node is lost: Ray may wait for it for ever."""
        self._lose(slot)
        slot.gone = True
        self._emit("crash", slot, expert="", message=f"node {slot.place.node} is lost")
        ray.kill(slot.actor)
        if slot.reservation is not None:
            slot.reservation.release()

    async def _add_slot(self, place: Place) -> None:
        """A slot on a node that has joined. What is wrong with the node is an event, and no end of the run."""
        experts = [name for name, spec in self._experts.items() if not spec.is_remote]
        name = f"slot-{self._started}"
        try:
            slot = await self._start_slot(place)
            problems = await slot.actor.resolve.remote(experts)
        except (RayActorError, RayTaskError, ResourceError) as error:
            message = f"node {place.node} gets no slot: {error}".splitlines()[0][:500]
            self._events.add(self._label(), name, "crash", expert="", message=message)
            return
        for expert, problem in problems.items():
            self._emit("crash", slot, expert=expert, message=problem[:500])
        self._slots[slot.info.id] = slot
        self._emit("join", slot, expert="", node=place.node)
        self._dispatch()

    async def _start_remote(self, key: str, name: str) -> SlotState:
        """The slot of a server's model: beside the pool, where the keys are, with nothing of a node's but a process."""
        config = SlotConfig(
            id=name, index=0, slots=1, run_uri=self._config.run_uri, epoch=self._config.epoch,
            token=self._config.token, engine=self._config.engine,
            experts=tuple(e for e in self._config.experts if e.engine_key == key),
        )  # fmt: skip
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = RemoteSlotActor.options(
            num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=1000, scheduling_strategy=here
        ).remote(config)
        info = await actor.start.remote()
        self._costs.has_room(key, Room(config.experts[0].server.max_concurrency))
        return SlotState(info=info, actor=actor, serves=key)

    def _serves(self, slot: SlotState, key: str) -> bool:
        """Whether requests of a key are a slot's: a server's go to its own, all others to those with room for it."""
        if key in self._servers or slot.serves:
            return slot.serves == key
        return slot.place.holds(self._sizes[key])

    def _orphaned(self, key: str) -> bool:
        """Whether every slot that requests of a key may go to has died, and none came back or joined in time."""
        if not all(s.gone for s in self._slots.values() if self._serves(s, key)):
            self._orphaned_since.pop(key, None)
            return False
        since = self._orphaned_since.setdefault(key, time.monotonic())
        return self._config.rule is None or time.monotonic() - since >= self._config.node_wait_s

    def _reached(self, slot: SlotState, experts: Iterable[str]) -> list[str]:
        """Those of these experts that a slot may work for."""
        return [name for name in experts if self._serves(slot, self._experts[name].engine_key)]

    def _choice(self, slot: SlotState, views: Mapping[str, GroupView]) -> Mapping[str, GroupView]:
        """What `decide` is to choose from for a slot."""
        served = self._served.get(slot.info.id)
        if served is None:
            served = frozenset(key for key in self._sizes if self._serves(slot, key))
            self._served[slot.info.id] = served
        return views if served >= views.keys() else {key: view for key, view in views.items() if key in served}

    def _peers(self) -> Counter[str]:
        """How many available slots share what there is to choose from: the engines, or a server's requests."""
        return Counter(s.serves for s in self._slots.values() if s.available)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it beside, outside the call that led to it: what that has begun may be cancelled with it by Ray."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _learn_facts(self, experts: set[str]) -> None:
        """Know the sizes of the engines that are wanted; where a slot cannot tell, scheduling guesses."""
        unknown = sorted(name for name in experts if not self._costs.knows(self._experts[name].engine_key))
        if unknown:
            slots = [s for s in self._slots.values() if s.available]
            asked = (s.actor.facts.remote(self._reached(s, unknown)) for s in slots)
            told = await asyncio.gather(*asked, return_exceptions=True)
            for facts in told:  # what is wrong with a model or a slot shows when it is used
                for name, fact in facts.items() if isinstance(facts, dict) else ():
                    spec = self._experts[name]
                    self._costs.describe(spec.engine_key, fact, gpus=spec.tensor_parallel_size)

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

    async def _have_engine(self, slot: SlotState, expert: str, key: str, stage: str = "") -> None:
        """Have an expert's engine on a slot that has been given to its key, for work of a stage; LeaseLostError where
        it no longer is.
        """
        async with slot.lock:
            if slot.key != key:  # the lease before this one could not load it
                raise LeaseLostError
            lora = self._experts[expert].lora
            if slot.loaded and (not lora or lora in slot.adapters):
                return
            swap = not slot.loaded
            slot.state, slot.expert = "load", expert
            loaded = await slot.actor.load.remote(expert)
            slot.loaded = True
            self._costs.has_room(key, loaded.room)
            if swap:
                self._note_end(slot, frozenset(loaded.asleep))
                slot.loaded_expert, slot.adapters = expert, set()
                if EVENT_OF_TIER.get(loaded.tier, "load") == "load" and not slot.serves:
                    self._costs.loaded(key, loaded.start_s)
                slot.measure_from_now()
            slot.adapters.add(lora)
            self._note_load(slot, expert, key, stage, loaded)

    def _note_end(self, slot: SlotState, asleep: frozenset[str]) -> None:
        """What became of the engine that was on the slot: an event."""
        if slot.loaded_expert:
            key = self._experts[slot.loaded_expert].engine_key
            self._emit("sleep" if key in asleep else "unload", slot, expert=slot.loaded_expert)
        slot.asleep, slot.loaded_expert = asleep, ""

    def _note_load(self, slot: SlotState, expert: str, key: str, stage: str, loaded: Loaded) -> None:
        self._swaps[loaded.tier] += 1
        self._emit(
            EVENT_OF_TIER.get(loaded.tier, "load"), slot, stage=stage, expert=expert, key=key,
            seconds=round(loaded.seconds, 3), tier=loaded.tier, start_s=round(loaded.start_s, 3), beside=loaded.beside,
            bytes=loaded.bytes,
            **({"message": loaded.note} if loaded.note else {}),
            **({"not_beside": loaded.not_beside} if loaded.not_beside else {}),
            **({"dtype": loaded.dtype} if loaded.dtype else {}),
        )  # fmt: skip

    def _lose(self, slot: SlotState) -> None:
        """A slot actor is dead, and its engine with it: it may load the same one again."""
        slot.had.discard(slot.key)
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
            if slot.gone:
                return
            slot.gone = True
            self._emit("crash", slot, expert="", message=f"slot actor is lost: {error}".splitlines()[0])
        else:
            slot.available, slot.state = True, "idle"
        self._dispatch()

    async def _watch(self) -> None:
        """Once a second, look at every slot."""
        while True:
            await asyncio.sleep(WATCH_S)
            for slot in self._slots.values():
                if slot.available and not slot.watched:
                    slot.watched = True
                    self._spawn(self._look_at(slot))
            await asyncio.to_thread(self._events.flush)  # an object store may take long

    async def _look_at(self, slot: SlotState) -> None:
        """What a slot has generated, which engines have died. One that gives no answer is killed: Ray restarts it."""
        timeout_s = self._config.engine.stall_timeout_s
        try:
            tokens, deaths = await asyncio.wait_for(slot.actor.progress.remote(), timeout_s)
        except TimeoutError:
            message = f"slot actor: no sign of life for {timeout_s:.0f} s"
            self._emit("crash", slot, expert=slot.expert, message=message)
            ray.kill(slot.actor, no_restart=False)
        except RayActorError:  # its leases tell
            return
        except RayTaskError as error:
            if isinstance(error.cause, RestartedError):  # it died while nobody spoke to it
                self._emit("crash", slot, expert="", message=str(error.cause))
                self._lose(slot)
        else:
            # an engine counts from its start, so a smaller number is a new engine's
            self._note_tokens(tokens - slot.tokens if tokens >= slot.tokens else tokens)
            slot.tokens = tokens
            for cause in deaths:
                self._emit("crash", slot, expert=slot.expert, message=cause[:500])
        finally:
            slot.watched = False

    def _measure(self, slot: SlotState, key: str) -> None:
        """Note what a slot has written since the last time, and with how many sequences on average."""
        slot.count(self._capacity(key))
        seconds = slot.counted_at - slot.measured_at
        if slot.written and slot.loaded and seconds > 0:
            batch = slot.sequence_seconds / seconds / last_over_mean(self._lengths(key).samples)
            self._costs.generated(key, slot.written, seconds, batch)
        slot.measure_from_now()

    @abstractmethod
    def _lengths(self, key: str) -> Lengths:
        """What is asked of an engine."""

    def _capacity(self, key: str) -> int:
        """How many sequences an engine should have at once; "": one of which nothing is known.

        As many as it runs; more where requests have several samples, which count until the last of them is finished.
        """
        lengths, room = self._lengths(key), self._costs.room(key)
        if room is None:
            room = Room(self._config.engine.max_num_seqs or (GPU_CAPACITY if self._on_gpus else CPU_CAPACITY))
        return round(room.sequences(*lengths) * last_over_mean(lengths.samples))

    def _view(self, slot: SlotState, keys: Mapping[str, object]) -> SlotView:
        """A slot as the policy sees it; `keys` are those that there is work for."""
        return SlotView(
            id=slot.info.id, resident=slot.key, promised=slot.promised, rows=slot.sequences,
            capacity=self._capacity(slot.key), had=frozenset(slot.had),
            barred=frozenset(key for key in keys if not self._fits(slot, key)), asleep=slot.asleep,
            tensor_parallel_size=max(1, slot.place.gpus), available=slot.available, ready=slot.loaded,
            since_lease_s=time.monotonic() - slot.leased_at,
        )  # fmt: skip

    def _idle_views(self, keys: Mapping[str, object]) -> dict[str, GroupView]:
        """Engines on the slots that there is no work for: their shape may save a load."""
        held = [s.key for s in self._slots.values() if s.available]
        return {
            key: GroupView(key=key, rows=0, tokens=0, hosts=held.count(key), shape=self._costs.shape(key))
            for key in set(held) - keys.keys() - {""}
        }

    def _emit(self, event: str, slot: SlotState, *, stage: str = "", **values: object) -> None:
        self._events.add(stage or self._label(), slot.info.id, event, **values)
