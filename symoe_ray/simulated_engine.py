"""An engine on a virtual clock: continuous batching, where a step of n sequences takes a + b * n seconds and gives each
of them one token, so that no row beats its own serial decoding.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from symoe_ray.engine_costs import EngineCost

Cohort = tuple[int, int]
"""(tokens, count): that many rows of one length."""


@dataclass(slots=True)
class SimulatedEngine:
    """The rows that one engine runs and those that queue for room. It is at step `step` at time `time_s`."""

    cost: EngineCost
    capacity: int
    time_s: float
    step: int = 0
    running: int = 0
    ends: list[Cohort] = field(default_factory=list)
    queue: deque[Cohort] = field(default_factory=deque)
    most_rows: int = 0

    @property
    def step_s(self) -> float:
        """Seconds of a step of the rows that run now."""
        return self.cost.step_s + self.cost.sequence_s * self.running

    def add(self, cohorts: list[Cohort], now_s: float) -> None:
        """Take rows at the next step that begins at `now_s` or later; rows beyond the capacity queue."""
        if self.running:
            self._go(min(max(0, math.ceil((now_s - self.time_s) / self.step_s - 1e-9)), self.ends[0][0] - self.step))
        else:
            self.time_s = max(self.time_s, now_s)
        self.queue.extend(cohorts)
        self._fill()

    def next_end_s(self) -> float:
        """When the next row ends, if nothing is added; infinity if nothing runs."""
        return self.time_s + (self.ends[0][0] - self.step) * self.step_s if self.ends else math.inf

    def finish(self) -> int:
        """Go on to where the next row ends; how many end there. Their room is filled from the queue."""
        self._go(self.ends[0][0] - self.step)
        rows = 0
        while self.ends and self.ends[0][0] == self.step:
            rows += heapq.heappop(self.ends)[1]
        self.running -= rows
        self._fill()
        return rows

    def _go(self, steps: int) -> None:
        self.time_s += steps * self.step_s
        self.step += steps

    def _fill(self) -> None:
        while self.queue and self.running < self.capacity:
            tokens, count = self.queue.popleft()
            fits = min(count, self.capacity - self.running)
            if fits < count:
                self.queue.appendleft((tokens, count - fits))
            heapq.heappush(self.ends, (self.step + max(1, tokens), fits))
            self.running += fits
        self.most_rows = max(self.most_rows, self.running)
