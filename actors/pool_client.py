"""The pool as the stages see it: a plain object in the driver that speaks to the pool actor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import SlotPlan, node_wait_s, slot_plan
from actors.pool import PoolActor, PoolConfig
from symoe_ray.core import InputError, ResourceError
from symoe_ray.ledger import Chunk
from symoe_ray.ports import Progress, StageSummary
from symoe_ray.settings import Settings

POLL_S = 0.5
STOP_TIMEOUT_S = 30.0


class PoolClient:
    """Implements `symoe_ray.ports.Pool` over a pool actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def require(self, experts: Sequence[str]) -> None:
        """Have these experts' weights on every node; one ResourceError that names all that cannot be had."""
        problems: dict[str, str] = ray.get(self._actor.resolve.remote(list(experts)))
        if problems:
            lines = [f"expert {name}: {problem}" for name, problem in sorted(problems.items())]
            raise ResourceError("\n".join(lines))

    def generate(
        self,
        stage: str,
        chunks: Sequence[Chunk],
        on_progress: Callable[[Progress], None] | None = None,
        then: Sequence[str] = (),
    ) -> StageSummary:
        """Work through the chunks; returns when every row of them is committed. `then`: experts of the next stage."""
        running = self._actor.generate.remote(stage, list(chunks), list(then))
        while not ray.wait([running], timeout=POLL_S)[0]:
            progress = ray.get(self._actor.progress.remote())
            if progress is not None and on_progress is not None:
                on_progress(progress)
        try:
            summary: StageSummary = ray.get(running)
        except RayTaskError as error:
            raise _translated(error) from error
        return summary


@contextmanager
def pool(settings: Settings, run_uri: str, epoch: int, started: float, token: str = "") -> Iterator[PoolClient]:
    """A pool for the time of a run; its engines end with it, however the run ends."""
    plan: SlotPlan = slot_plan(settings)
    config = PoolConfig(
        run_uri=run_uri, epoch=epoch, token=token, started=started, experts=settings.pool.experts,
        engine=settings.engine,
        places=plan.places, rule=plan.rule, node_wait_s=node_wait_s(settings),
    )  # fmt: skip
    # on the driver's node: there it sees a local run folder, and ends with the driver and not before it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = PoolActor.options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote(config)
    try:
        try:
            ray.get(actor.start.remote())
        except RayTaskError as error:
            raise _translated(error) from error
        yield PoolClient(actor)
    finally:
        with suppress(RayActorError, RayTaskError, GetTimeoutError):  # it is killed in any case
            ray.get(actor.stop.remote(), timeout=STOP_TIMEOUT_S)
        ray.kill(actor)


def _translated(error: RayTaskError) -> Exception:
    """What went wrong inside an actor, as one of our own errors where it is one."""
    cause = error.cause
    return cause if isinstance(cause, InputError | ResourceError) else error
