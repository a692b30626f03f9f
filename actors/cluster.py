"""Getting a Ray cluster for a run, and the number and size of the slots that it has room for."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import ray

from symoe_ray.core import ResourceError
from symoe_ray.settings import Settings

DATA_CPUS = 2
_LOGS = ("worker-*.out", "worker-*.err", "raylet.err", "gcs_server.err", "ray-data/*.log")
_QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """How many slots, and how many GPUs each holds (0: CPU slots)."""

    slots: int
    gpus_per_slot: int


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


def _connected(settings: Settings, logs: Path | None) -> Iterator[None]:
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    address = settings.cluster.address
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    session = ""
    if address == "local" and "RAY_ADDRESS" not in os.environ:
        context = ray.init(
            address="local", include_dashboard=settings.cluster.dashboard,
            num_cpus=settings.cluster.num_cpus or max(DATA_CPUS, os.cpu_count() or 1),
            object_store_memory=settings.cluster.object_store_bytes or None, **common,
        )  # fmt: skip
        session = context.address_info["session_dir"]
    else:
        where = os.environ.get("RAY_ADDRESS", "auto") if address == "local" else address
        try:
            ray.init(address=where, **common)
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


def _keep_logs(source: Path, target: Path) -> None:
    """Copy what Ray's workers and Ray Data have written, where they have written anything."""
    for pattern in _LOGS:
        for file in source.glob(pattern):
            with suppress(OSError):  # logs are no reason to fail a run
                if file.stat().st_size:
                    target.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target / file.name)


def slot_plan(settings: Settings) -> SlotPlan:
    """The slots that the settings ask for and the cluster has; ResourceError where it has too few GPUs."""
    size = max(e.tensor_parallel_size for e in settings.pool.experts)
    there = int(ray.cluster_resources().get("GPU", 0))
    if settings.engine.kind == "fake" or (there == 0 and settings.gpus == 0):
        return SlotPlan(slots=settings.gpus or settings.engine.slots, gpus_per_slot=0)
    wanted = settings.gpus or there
    if wanted > there:
        raise ResourceError(f"gpus={wanted} was asked for, but the cluster has {there}")
    if wanted < size:
        raise ResourceError(f"an expert needs tensor_parallel_size={size} GPUs, but only {wanted} may be used")
    return SlotPlan(slots=wanted // size, gpus_per_slot=size)
