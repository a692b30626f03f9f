"""`symoe serve`: the endpoint on Ray Serve. `pipelines.serve:build` is what `serve run` and `serve deploy` name."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.bench_aggregators import RESULT as AGGREGATORS
from pipelines.profile import read_profiles
from pipelines.run import MANIFEST, run_uri, settings_of
from pipelines.signals import DONE, INTERRUPTIONS, Signals
from symoe_ray.aggregators import best_aggregator
from symoe_ray.config import load
from symoe_ray.core import InputError, Profile, ResourceError
from symoe_ray.serving.keys import Key, parse_keys
from symoe_ray.settings import ServeSettings, Settings
from symoe_ray.storage import Storage, beside

KEYS_VARIABLE = "SYMOE_API_KEYS"
NAME = "symoe"
POLL_S = 0.5
ENDING_S = 15.0  # for the pool and what is being sent, after the questions


def add_command(commands: Any) -> None:
    """Add `serve` to the parser's commands."""
    parser = commands.add_parser("serve", help="the endpoint: OpenAI's API over the experts of a run")
    parser.add_argument("--run", metavar="NAME_OR_PATH", help="the run whose profiles it uses (serve.run)")
    parser.set_defaults(function=_run)


def build(arguments: Mapping[str, Any]) -> Any:
    """The Serve application of a config file: `run` names the run, `settings` is a list of `key=value`."""
    unknown = sorted(arguments.keys() - {"run", "settings"})
    if unknown:
        raise InputError(f"args: {', '.join(unknown)} is unknown; there are run and settings")
    from actors.serving.endpoint import application

    return application(deployed(arguments.get("run"), list(arguments.get("settings") or ())))


def deployed(run: str | None, overrides: list[str]) -> Any:
    """What an endpoint is made of; InputError for a run that has no profiles, or none of these experts."""
    from actors.hub_commits import with_commits
    from actors.serving.endpoint import Deployed

    given = load([o for o in overrides if o.startswith(("output_dir=", "serve.run="))])  # others are of the run's pool
    name = run or given.serve.run
    if not name:
        raise InputError("symoe serve: name the run whose profiles are used: --run NAME, or serve.run=NAME")
    storage = Storage(run_uri(given, name))
    settings = settings_of(storage, [*overrides, f"serve.run={storage.uri}"])
    if settings is None:
        raise InputError(f"there is no run at {storage.uri}: make one with `symoe run`, or its stages up to recruit")
    profiles = read_profiles(storage)
    _check_experts(settings, profiles, storage)
    return Deployed(
        settings=with_commits(settings, storage.read_json(MANIFEST).get("models", {})),
        profiles=tuple(profiles), kept=_kept(storage, settings),
        aggregator=_aggregator(storage, settings, profiles), keys=tuple(read_keys(settings.serve)),
        folder=beside(storage.uri, "-serving"),
    )  # fmt: skip


def _check_experts(settings: Settings, profiles: list[Profile], storage: Storage) -> None:
    names = {e.name for e in settings.pool.experts}
    strangers = [p.expert for p in profiles if p.expert not in names]
    if strangers:
        raise InputError(f"run {storage.uri} has profiles of {', '.join(strangers)}, which the pool does not have")


def _kept(storage: Storage, settings: Settings) -> tuple[str, ...]:
    """The experts that the run's trimming has kept; all where it has not recruited yet."""
    seeds = storage.read_json(MANIFEST)["stages"].get("recruit", {}).get("seeds", {})
    of_seed = seeds.get(str(settings.seed)) or next(iter(seeds.values()), None)
    return tuple(of_seed["kept"]) if of_seed else tuple(e.name for e in settings.pool.experts)


def _aggregator(storage: Storage, settings: Settings, profiles: list[Profile]) -> str:
    """The aggregator: named in the settings, chosen by the run, or the one with the best validation accuracy."""
    if settings.aggregator != "auto":
        return settings.aggregator
    if storage.exists(AGGREGATORS):
        return str(storage.read_json(AGGREGATORS)["chosen"])
    return best_aggregator({}, {p.expert: p.accuracy for p in profiles})[0]


def read_keys(settings: ServeSettings) -> list[Key]:
    """The keys of the file and of the environment, hashed; InputError where one is not understood or there twice."""
    limits = {"requests_per_minute": settings.requests_per_minute, "concurrency": settings.concurrency}
    keys = parse_keys(os.environ.get(KEYS_VARIABLE, "").splitlines(), f"${KEYS_VARIABLE}", **limits)
    if settings.api_keys_file:
        try:
            lines = Path(settings.api_keys_file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"serve.api_keys_file={settings.api_keys_file}: {error}") from None
        keys += parse_keys(lines, settings.api_keys_file, **limits)
        if not keys:
            raise InputError(f"serve.api_keys_file={settings.api_keys_file}: there is no key in it")
    return keys


def check_binding(settings: ServeSettings, keys: list[Key]) -> None:
    """InputError for an address that others reach without keys."""
    try:
        local = settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        local = False
    if not local and not keys:
        raise InputError(
            f"serve.host={settings.host}: others reach this address, so keys are needed: "
            f"give serve.api_keys_file=FILE or ${KEYS_VARIABLE} with `name: key` lines"
        )


def _run(options: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
    from actors.cluster import connected, is_own_cluster
    from actors.serving.listener import bound

    made = deployed(options.run, overrides)
    limits: ServeSettings = made.settings.serve
    check_binding(limits, list(made.keys))
    if is_own_cluster(made.settings):  # in a cluster of others the replica may be anywhere
        bound(limits.host, limits.port).close()  # an address that is taken is told now
        made = replace(made, listens=True)
    with connected(made.settings, Path(made.folder, "logs", "ray") if "://" not in made.folder else None):
        _serve(made, signals)
    return DONE


def _serve(made: Any, signals: Signals) -> None:
    """Serve until a signal comes; then take nothing new, and end when what is under way has ended."""
    from ray import serve

    from actors.serving.endpoint import application

    settings: ServeSettings = made.settings.serve
    serve.start(
        proxy_location="Disabled" if made.listens else "HeadOnly",
        http_options={"host": settings.host, "port": settings.port},
    )
    try:
        handle = serve.run(application(made), name=NAME, route_prefix="/")
        try:
            _wait_until_ready(handle)
            print(f"symoe serves on http://{settings.host}:{settings.port}", file=sys.stderr, flush=True)
            threading.Event().wait()  # for a signal
        except BaseException as error:
            if not isinstance(signals.reason_of(error), INTERRUPTIONS):
                raise
            handle.drain.remote().result(timeout_s=settings.drain_s + ENDING_S)
    finally:
        serve.shutdown()


def _wait_until_ready(handle: Any) -> None:
    """Return when the endpoint is ready; ResourceError where it will not be."""
    wake, said = threading.Event(), ""
    while True:
        state = handle.state.remote().result()
        if state.failed:
            raise ResourceError(state.failed)
        if not state.starting:
            return
        if state.starting != said:
            said = state.starting
            print(f"symoe serve: {said}", file=sys.stderr, flush=True)
        wake.wait(POLL_S)
