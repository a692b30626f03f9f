"""Getting a Ray cluster for a run, and the number and size of the slots that it has room for."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.placing import bundles_of, nodes, nodes_with
from symoe_ray.core import ResourceError
from symoe_ray.settings import Settings
from symoe_ray.slot_places import Place, SlotRule, anywhere, check_room, slot_rule

DATA_CPUS = 2
NODE_WAIT_S = 300.0
_LOGS = ("worker-*.out", "worker-*.err", "raylet.err", "gcs_server.err", "ray-data/*.log")
HEAD_LOST_S = 5  # nobody starts the head of a run's own cluster again: Ray would wait a minute for it
_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for a job's driver
_PASSED_ON = ("HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "SYMOE_CACHE")
_QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    """Where slots are started, and what nodes that join later get (None: nothing)."""

    places: tuple[Place, ...]
    rule: SlotRule | None = None


@contextmanager
def connected(settings: Settings, logs: Path | None = None) -> Iterator[None]:
    """Ray for the time of a run: a cluster of its own (`cluster.address` local), or the one at the address.

    Ray Data needs CPUs that no slot holds: slots take none, and a local cluster has at least `DATA_CPUS`. A local
    cluster has token authentication, which `ray.init` turns on by itself where RAY_AUTH_MODE does not say otherwise.
    What its processes had to say is in `logs` afterwards, and its session folder is gone. Ray prints a node's warnings
    at any moment to standard output, which is for results: until the end, standard output is standard error.
    """
    with redirect_stdout(sys.stderr):
        yield from _connected(settings, logs)


def is_own_cluster(settings: Settings) -> bool:
    """Whether a run starts a cluster of its own, on this machine."""
    return settings.cluster.address == "local" and "RAY_ADDRESS" not in os.environ


def _connected(settings: Settings, logs: Path | None) -> Iterator[None]:
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    address = settings.cluster.address
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    session = ""
    if is_own_cluster(settings):
        context = ray.init(
            address="local", include_dashboard=settings.cluster.dashboard,
            num_cpus=settings.cluster.num_cpus or max(DATA_CPUS, os.cpu_count() or 1),
            object_store_memory=settings.cluster.object_store_bytes or None,
            _system_config={"gcs_rpc_server_reconnect_timeout_s": HEAD_LOST_S}, **common,
        )  # fmt: skip
        session = context.address_info["session_dir"]
    else:
        where = os.environ.get("RAY_ADDRESS", "auto") if address == "local" else address
        try:
            passed_on = driver_environment(os.environ)
            ray.init(address=where, runtime_env={"env_vars": passed_on} if passed_on else None, **common)
        except ConnectionError as error:
            raise ResourceError(f"no Ray cluster answers at {where!r} (cluster.address): {error}") from error
    for number, handler in handlers.items():  # ray.init puts its own one at SIGTERM, which prints a stack trace
        signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()
        if session:
            if logs is not None:
                _keep_logs(Path(session, "logs"), logs)
            shutil.rmtree(session, ignore_errors=True)


def driver_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the driver's environment must hold on other nodes, too: where models are and how engines run.

    A Ray job has had it passed on already, with its own runtime environment.
    """
    if _RAY_JOB in environment:
        return {}
    return {name: value for name, value in environment.items() if name in _PASSED_ON or name.startswith("VLLM_")}


def _keep_logs(source: Path, target: Path) -> None:
    """Copy what Ray's workers and Ray Data have written, where they have written anything."""
    for pattern in _LOGS:
        for file in source.glob(pattern):
            with suppress(OSError):  # logs are no reason to fail a run
                if file.stat().st_size:
                    target.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target / file.name)


def node_wait_s(settings: Settings) -> float:
    """How long nodes are waited for: as said, else on a cluster of others (also by RAY_ADDRESS) `NODE_WAIT_S`."""
    said = settings.cluster.node_wait_s
    return said if said is not None else 0.0 if is_own_cluster(settings) else NODE_WAIT_S


def slot_plan(settings: Settings) -> SlotPlan:
    """The slots that the settings ask for and the cluster has; ResourceError where an expert fits into none of them.

    With GPUs they are cut to the sizes of the engines and what these have to write, and missing ones are waited for
    (`node_wait_s`). Without, each node has `engine.slots` on its CPU; fake engines that are given a number of GPUs
    which are not there take as many slots, wherever Ray puts them.
    """
    experts, here = settings.pool.local, nodes()
    if not experts:
        return SlotPlan(places=())
    there, fake = sum(node.gpus for node in here), settings.engine.kind == "fake"
    if fake and settings.gpus > there:
        return SlotPlan(places=anywhere(settings.gpus))
    if (fake or not there) and not settings.gpus:
        rule = SlotRule(cpu_slots=settings.engine.slots)
        return SlotPlan(places=rule.places(here) or anywhere(settings.engine.slots), rule=rule)
    rule = slot_rule(settings)
    here = nodes_with(settings.gpus, bundles_of(rule.demand, settings.gpus), node_wait_s(settings))
    places = rule.places(here)
    check_room(experts, places, here, settings.gpus)
    return SlotPlan(places=places, rule=rule)
