"""The endpoint as a Ray Serve deployment: one replica that owns a pool and serves `actors.serving.app` over it.

It is one replica on purpose: the limits of keys and the metrics have one owner, and whatever ends it ends the pool, its
slots and their engines with it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.config import BackpressureConfig

from actors.cluster import SlotPlan, slot_plan
from actors.online_pool import OnlinePool
from actors.serving.app import make_app
from actors.serving.listener import Listener, bound
from actors.serving.metrics import Metrics
from actors.serving.pool_engines import PoolEngines
from actors.serving.service import Service
from actors.slot_pool import PoolConfig
from symoe_ray.core import Message, Profile, ResourceError
from symoe_ray.routing import Router, RoutingRules
from symoe_ray.scheduling import Online
from symoe_ray.serving.chat import Chat
from symoe_ray.serving.keys import Key
from symoe_ray.serving.question import Method, answer_alone, skills_of
from symoe_ray.serving.remembered import Remembered
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage

BESIDE = 256  # requests beside the questions: health, metrics, refusals
BIND_EVERY_S = 0.2
log = logging.getLogger("symoe.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What an endpoint is made of, read once where it is deployed. `folder` takes the engines' logs and events.

    `listens`: the replica itself opens serve.host and serve.port, instead of a proxy of Ray Serve.
    """

    settings: Settings
    profiles: tuple[Profile, ...]
    kept: tuple[str, ...]
    aggregator: str
    keys: tuple[Key, ...]
    folder: str
    listens: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """How an endpoint does: `starting` as of `Service`; `failed` says why it will not start ("": it will)."""

    starting: str
    failed: str


class Endpoint:
    """The deployment. It answers once the GPUs that it is to have are there, and is ready when the profiles are known
    and an engine has answered.
    """

    async def __init__(self, deployed: Deployed) -> None:  # type: ignore[misc]
        _log_to_stderr()
        self._deployed, self._failed = deployed, ""
        self._pool = _pool(deployed, await asyncio.to_thread(slot_plan, deployed.settings))
        settings = deployed.settings
        method = Method(
            experts={e.name: e for e in settings.pool.experts}, profiles=deployed.profiles,
            known_skills=skills_of(deployed.profiles), kept=deployed.kept,
            router=Router(deployed.profiles, RoutingRules.from_settings(settings, settings.seed)),
            annotator=settings.annotator_name, aggregator=deployed.aggregator, annotate=settings.annotate,
            aggregate=settings.aggregate, serve=settings.serve, embed=_unready,
        )  # fmt: skip
        metrics = Metrics()
        self._service = Service(
            method=method, engines=PoolEngines(self._pool, metrics.waited), keys=deployed.keys,
            status=self._pool.status, metrics=metrics, starting="starting",
        )  # fmt: skip
        self._listener: Listener | None = None
        self._draining: asyncio.Task[bool] | None = None
        self._starting = asyncio.create_task(self._start())

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self._service)

    async def state(self) -> State:
        """Whether it is ready, and why not."""
        return State(self._service.starting, self._failed)

    async def drain(self) -> bool:
        """Take nothing new, wait for what is under way as long as the settings allow, and end the pool.

        Whether all has ended by itself. It happens once: who asks again waits for the first.
        """
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await asyncio.shield(self._draining)

    async def __del__(self) -> None:
        """Ray Serve ends the replica, perhaps without having had it drained."""
        await self.drain()

    async def _drain(self) -> bool:
        ended = await self._service.drain(self._deployed.settings.serve.drain_s)
        await self._pool.stop()
        if self._listener is not None:
            await self._listener.close()
        return ended

    async def check_health(self) -> None:
        """Ray Serve asks: a replica that could not start, or has lost its slots or its port for good, is replaced."""
        if self._failed:
            raise ResourceError(self._failed)
        if self._service.starting or self._service.draining:
            return
        if self._pool.gone:
            raise ResourceError("every slot actor has died and none came back")
        if self._listener is not None and self._listener.has_ended:
            raise ResourceError("the HTTP server has ended")

    async def _start(self) -> None:
        """Open the address, start the pool, learn the skills, have one answer."""
        service, limits = self._service, self._deployed.settings.serve
        try:
            if self._deployed.listens:
                service.starting = "the address is opened"
                at = await _bound_in(limits.drain_s, limits.host, limits.port)
                self._listener = Listener(make_app(service), at, most_requests=limits.max_questions + BESIDE)
            service.starting = "slots start and models are fetched"
            problems = await self._pool.open()
            if problems:
                raise ResourceError("\n".join(f"expert {n}: {problem}" for n, problem in sorted(problems.items())))
            service.starting = "skills are embedded"
            embed = await asyncio.to_thread(_embedding, self._deployed.settings, service.method.known_skills)
            service.method = replace(service.method, embed=embed)
            service.starting = "the first engine is loaded"
            chat = Chat(messages=(Message(role="user", content="Hello"),), max_tokens=1)
            async for _ in answer_alone(chat, service.method, service.engines, service.method.annotator, seed=0):
                pass
        except Exception as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            self._failed, service.starting = f"{type(cause).__name__}: {cause}", "it cannot start: the log says why"
            log.error("the endpoint cannot start: %s", self._failed)
        else:
            service.starting = ""


async def _bound_in(seconds: float, host: str, port: int) -> socket.socket:
    """The endpoint's socket, once a replica that ends has given its own up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return bound(host, port)
        except ResourceError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(BIND_EVERY_S)


def _log_to_stderr() -> None:
    """A line for each request, into the log that Ray keeps of this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _unready(_: Sequence[str]) -> np.ndarray:
    raise AssertionError("a question was let in before the endpoint was ready")


def _pool(deployed: Deployed, plan: SlotPlan) -> OnlinePool:
    settings = deployed.settings
    config = PoolConfig(
        run_uri=deployed.folder, epoch=1, started=time.time(), experts=settings.pool.experts, engine=settings.engine,
        places=plan.places, rule=plan.rule, metrics=True,
    )  # fmt: skip
    return OnlinePool(config, Online(max_wait_s=settings.serve.max_wait_s), settings.serve.max_queue)


def _embedding(settings: Settings, known: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """What maps skills to vectors: the method's embedding model, or a fake one beside fake engines."""
    if settings.engine.kind == "fake":
        from symoe_ray.testing import fake_embeddings

        return Remembered(lambda texts: np.asarray(fake_embeddings(texts)), known)
    import torch

    from actors.embedding import embedder

    torch.set_num_threads(1)  # the cores are the engines'
    return Remembered(embedder(settings.embedding_model), known)


def application(deployed: Deployed) -> Any:
    """The Serve application."""
    Storage(deployed.folder).write_json("manifest.json", {"format": 1, "serves": deployed.settings.serve.run})
    limits = deployed.settings.serve
    deployment = serve.deployment(
        serve.ingress()(Endpoint), name="Endpoint", num_replicas=1, ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=limits.max_questions + BESIDE, max_queued_requests=BESIDE,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=limits.drain_s, graceful_shutdown_wait_loop_s=0.2,
        logging_config={"enable_access_log": False},
    )  # fmt: skip
    return deployment.bind(deployed)
