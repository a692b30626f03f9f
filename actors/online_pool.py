"""The engine pool of the endpoint: requests that arrive one by one wait by engine key and are granted room on a slot.

What they write goes from the slot to the asker and never through here. A place is reserved, used, and always released.
It lives in the event loop of whoever asks, the endpoint's replica: a call of it is a function call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

from ray.exceptions import RayActorError, RayTaskError

from actors.engine_host import LoadError
from actors.online_state import USUAL_TOKENS, Grant, OnlineStatus, Queue, Refusal, Ticket, Waiting
from actors.pool_state import SlotState
from actors.slot import RestartedError, Told
from actors.slot_pool import LeaseLostError, Lengths, PoolConfig, SlotPool
from symoe_ray.engine_room import PROMPT_TOKENS
from symoe_ray.scheduling import GroupView, Lease, Online, Prepare, admission_wait_s, ask_order, decide
from symoe_ray.serving.engine_metrics import merged

FORGIVE_S = 30.0
TICK_S = 0.25
MEASURE_S = 1.0
STATUS_TIMEOUT_S = 3.0


class OnlinePool(SlotPool):
    """Queues of live requests, one for each engine key, and the slots that work on them.

    `max_queue` bounds the rows that wait in one queue.
    """

    def __init__(self, config: PoolConfig, policy: Online, max_queue: int) -> None:
        super().__init__(config)
        self._policy, self._max_queue = policy, max_queue
        keys = dict.fromkeys(e.engine_key for e in config.experts)
        self._queues = {
            key: Queue(key=key, experts=tuple(e.name for e in config.experts if e.engine_key == key)) for key in keys
        }
        self._granted: dict[str, tuple[SlotState, Ticket]] = {}
        self._told: dict[str, Told] = {}
        self._crashes = 0

    async def open(self) -> dict[str, str]:
        """Start the slots and have the experts' weights on their nodes; problems by expert."""
        await self.start()
        names = list(self._experts)
        problems = await self.resolve(names)
        await self._learn_facts({name for name in names if name not in problems})
        self._spawn(self._tick())
        return problems

    async def reserve(self, ticket: Ticket) -> Grant | Refusal:
        """Wait for room on an engine of the ticket's expert, or be refused at once. Cancelling it gives the room up."""
        queue = self._queue(ticket.expert)
        refusal = self._hopeless(queue)
        if refusal is None and queue.rows + ticket.rows > self._max_queue:
            message = f"the queue of {ticket.expert} is full"
            refusal = Refusal(kind="overloaded", message=message, retry_after_s=self._wait_s(queue))
        if refusal is not None:
            return refusal
        waiting = Waiting(ticket, queue.expect(ticket), asyncio.get_running_loop().create_future())
        queue.waiting.append(waiting)
        self._dispatch()
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            self.release(ticket.id)
            raise

    def release(self, ticket_id: str, tokens: int = 0, prompt_tokens: int = 0, *, lost: bool = False) -> None:
        """Give a place back, granted or waited for; `tokens` were written after a prompt of `prompt_tokens`. `lost`:
        the slot or its engine has died.
        """
        granted = self._granted.pop(ticket_id, None)
        if granted is None:
            self._forget(ticket_id)
            return
        slot, ticket = granted
        queue = self._queue(ticket.expert)
        if tokens:
            slot.written += tokens
            queue.learn(tokens, ticket.rows, prompt_tokens)
        if len(slot.leases) == 1 or time.monotonic() - slot.measured_at > MEASURE_S:
            self._measure(slot, queue.key)
        self._free(slot, ticket)
        if lost and slot.key == queue.key:
            slot.loaded = False
        self._dispatch()

    def admit(self, expert: str) -> Refusal | None:
        """Why a question that begins with this expert must not be let in; None where it may."""
        queue = self._queue(expert)
        wait_s, most_s = self._wait_s(queue), self._policy.max_wait_s
        if wait_s > most_s:
            message = f"{expert} would be reached in {wait_s:.0f} s, the limit is {most_s:.0f} s"
            return Refusal(kind="overloaded", message=message, retry_after_s=wait_s - most_s)
        return self._hopeless(queue)

    async def status(self) -> OnlineStatus:
        """What waits and runs, and what has been swapped so far."""
        slots = [s for s in self._slots.values() if s.available]
        await asyncio.gather(*(self._ask_engine(s) for s in slots))
        told = [self._told[s.info.id] for s in slots if s.info.id in self._told]
        return OnlineStatus(
            queues=tuple(q.status() for q in self._queues.values()), swaps=dict(self._swaps), crashes=self._crashes,
            engine_samples=sum(t.running for t in told), engines=tuple(merged(t.families for t in told)),
        )  # fmt: skip

    async def _ask_engine(self, slot: SlotState) -> None:
        """Have what its engine says of itself; what it said last stays where it does not answer in time."""
        with suppress(RayActorError, RayTaskError, TimeoutError):
            self._told[slot.info.id] = await asyncio.wait_for(slot.actor.measure.remote(), STATUS_TIMEOUT_S)

    def _lengths(self, key: str) -> Lengths:
        queue = self._queues.get(key)
        return Lengths(queue.mean_prompt or PROMPT_TOKENS, queue.mean_tokens or USUAL_TOKENS) if queue else Lengths()

    def _note_tokens(self, tokens: int) -> None:
        """Tokens are counted where they are read: they never pass here."""

    @property
    def gone(self) -> bool:
        """Whether every slot actor has died and none came back."""
        return all(s.gone for s in self._slots.values())

    def _queue(self, expert: str) -> Queue:
        return self._queues[self._experts[expert].engine_key]

    def _hopeless(self, queue: Queue) -> Refusal | None:
        """Why no slot can work on a queue; None where one can."""
        if self._orphaned(queue.key):
            return Refusal(kind="no_slot", message="every slot actor has died and none came back")
        if not any(self._fits(s, queue.key) for s in self._slots.values() if not s.gone):
            return Refusal(kind="load_failed", message=queue.load_error)
        return None

    def _wait_s(self, queue: Queue) -> float:
        slots = [s for s in self._slots.values() if s.available and self._serves(s, queue.key)]
        capacity = max((self._view(s, {}).capacity for s in slots), default=1)
        views = self._choice(slots[0], self._views()) if slots else {}
        return admission_wait_s(queue.key, views, self._costs.costs(), slots=max(1, len(slots)), capacity=capacity)

    def _decide_all(self) -> None:
        for slot in self._slots.values():
            if slot.promised and not self._queues[slot.promised].waiting:
                slot.promised = ""
        peers = self._peers()
        views: Mapping[str, GroupView] = self._views()
        for view in ask_order([self._view(s, self._queues) for s in self._slots.values()], views):
            views = self._ask(self._slots[view.id], views, peers)
        for queue in self._queues.values():
            if queue.waiting and (refusal := self._hopeless(queue)):
                for waiting in queue.take(queue.rows):
                    _answer(waiting, refusal)

    def _decide(
        self, slot: SlotState, views: Mapping[str, GroupView], peers: Mapping[str, int]
    ) -> Lease | Prepare | None:
        """What a slot should do next."""
        seen, costs = self._view(slot, self._queues), self._costs.costs()
        return decide(seen, self._choice(slot, views), costs, slots=peers[slot.serves], online=self._policy)

    def _cannot_decide(self, error: Exception) -> None:
        for queue in self._queues.values():
            for waiting in queue.take(queue.rows):
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)

    def _ask(
        self, slot: SlotState, views: Mapping[str, GroupView], peers: Mapping[str, int]
    ) -> Mapping[str, GroupView]:
        """Do what is decided, again and again, until there is nothing more to do; the queues as they are then."""
        while (decision := self._decide(slot, views, peers)) is not None:
            if isinstance(decision, Lease):
                self._grant(slot, decision)
            else:
                slot.promised = decision.key
                self._spawn(self._prepare(slot, self._queues[decision.key].waiting[0].ticket.expert))
            views = self._views()
        return views

    def _grant(self, slot: SlotState, lease: Lease) -> None:
        queue = self._queues[lease.key]
        if slot.key != lease.key:
            slot.key, slot.loaded, slot.promised = lease.key, False, ""
        now = time.monotonic()
        if not slot.leases:
            slot.measure_from_now()
        slot.count(self._capacity(slot.key))
        slot.leased_at = now
        taken = queue.take(lease.rows)
        for waiting in taken:
            ticket = waiting.ticket
            slot.leases[ticket.id] = ticket.rows
            queue.running_rows += ticket.rows
            self._granted[ticket.id] = slot, ticket
        for expert in dict.fromkeys(w.ticket.expert for w in taken):
            mine = [w for w in taken if w.ticket.expert == expert]
            if slot.loaded and not self._experts[expert].lora:
                self._admit(slot, mine)
            else:
                self._spawn(self._bring(slot, expert, queue, mine))

    async def _bring(self, slot: SlotState, expert: str, queue: Queue, taken: list[Waiting]) -> None:
        """Have the engine, then let in who was granted; who could not be waits again, before all others."""
        try:
            await self._have_engine(slot, expert, queue.key)
        except (RayActorError, RayTaskError, LeaseLostError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, RayActorError | RestartedError):
                self._emit("crash", slot, expert=expert, message=f"slot actor: {cause}".splitlines()[0])
                self._lose(slot)
            elif not isinstance(error, LeaseLostError):
                self._load_failed(slot, expert, queue, cause)
            self._take_back(slot, queue, taken)
        else:
            queue.load_failures.pop(slot.info.id, None)
            self._admit(slot, taken)
        self._dispatch()

    def _admit(self, slot: SlotState, taken: list[Waiting]) -> None:
        for waiting in taken:
            _answer(waiting, Grant(slot=slot.info.id, actor=slot.actor))
        if taken:
            slot.state, slot.expert = "generate", taken[-1].ticket.expert

    def _take_back(self, slot: SlotState, queue: Queue, taken: list[Waiting]) -> None:
        for waiting in reversed(taken):
            if self._granted.pop(waiting.ticket.id, None) is not None:  # else it was released while the engine loaded
                self._free(slot, waiting.ticket)
                queue.waiting.appendleft(waiting)

    def _free(self, slot: SlotState, ticket: Ticket) -> None:
        slot.count(self._capacity(self._queue(ticket.expert).key))
        del slot.leases[ticket.id]
        self._queue(ticket.expert).running_rows -= ticket.rows
        if not slot.leases and slot.state != "lost":
            slot.state = "idle"

    def _forget(self, ticket_id: str) -> None:
        """Take a ticket out of its queue, if it is in one."""
        for queue in self._queues.values():
            for waiting in queue.waiting:
                if waiting.ticket.id == ticket_id:
                    queue.waiting.remove(waiting)
                    waiting.answer.cancel()
                    self._dispatch()
                    return

    def _load_failed(self, slot: SlotState, expert: str, queue: Queue, cause: BaseException) -> None:
        """Note it: after `max_attempts` the slot is not asked for this engine for a while."""
        message = str(cause) if isinstance(cause, LoadError) else f"{type(cause).__name__}: {cause}"
        if slot.key == queue.key:
            slot.key, slot.loaded = "", False
            self._note_end(slot, frozenset())
        queue.load_failures[slot.info.id] = queue.load_failures.get(slot.info.id, 0) + 1
        queue.load_error, queue.failed_at = message[:500], time.monotonic()
        self._emit("crash", slot, expert=expert, message=f"load: {message}"[:500])

    def _fits(self, slot: SlotState, key: str) -> bool:
        if not self._serves(slot, key):
            return False
        queue = self._queues[key]
        if queue.load_failures and time.monotonic() - queue.failed_at > FORGIVE_S:
            queue.load_failures.clear()
        return queue.load_failures.get(slot.info.id, 0) < self._config.engine.max_attempts

    def _views(self) -> dict[str, GroupView]:
        """The queues as the policy sees them. A slot that is promised to another engine no longer hosts its own."""
        slots = [s for s in self._slots.values() if s.available]
        next_keys, now = [s.promised or s.key for s in slots], time.monotonic()
        return {
            key: queue.view(
                now, hosts=next_keys.count(key), shape=self._costs.shape(key), capacity=self._capacity(key),
                starting_rows=sum(s.sequences for s in slots if s.key == key and not s.loaded),
            )
            for key, queue in self._queues.items()
        }  # fmt: skip

    async def _tick(self) -> None:
        """Waiting alone makes a queue due."""
        while True:
            await asyncio.sleep(TICK_S)
            if any(q.waiting for q in self._queues.values()):
                self._dispatch()

    def _emit(self, event: str, slot: SlotState, *, stage: str = "", **values: object) -> None:
        self._crashes += event == "crash"
        super()._emit(event, slot, stage=stage, **values)


def _answer(waiting: Waiting, answer: Grant | Refusal) -> None:
    if not waiting.answer.done():
        waiting.answer.set_result(answer)
