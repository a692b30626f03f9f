"""Opens a run for a command: its lock, its manifest, and a cluster and a pool that start when they are needed."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.locking import locked
from pipelines.progress import Display
from pipelines.run import Run, failure_of, open_manifest, save_config
from pipelines.signals import INTERRUPTIONS, MISSING, Signals, code_of
from symoe_ray.core import InputError, ResourceError
from symoe_ray.ledger import Commits
from symoe_ray.planning import Machine, ModelSize, plan_of
from symoe_ray.ports import Pool
from symoe_ray.question_files import Row
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@contextmanager
def opened(
    settings: Settings,
    uri: str,
    display: Display,
    signals: Signals,
    *,
    restart: bool = False,
    retry_failed: bool = False,
) -> Iterator[Run]:
    """The run, locked, with its manifest and a pool that starts when it is first needed; its end is in status.json."""
    storage, started = Storage(uri), time.time()
    with locked(storage, display.say) as hold, ExitStack() as stack:
        stack.callback(storage.compact_text, "events.jsonl")  # the last thing: the pool has ended by then
        manifest = open_manifest(storage, settings, restart=restart)
        manifest["attempts"] += 1
        with writable(storage):
            Commits(storage, manifest["attempts"], hold.token).fence()
            _revoke_damaged(storage, manifest, display)
            save_config(storage, settings)

        @cache
        def start_ray() -> None:
            from actors.cluster import connected

            logs = Path(storage.path("logs", "ray")) if storage.is_local else None
            stack.enter_context(connected(settings, logs))

        @cache
        def pool() -> Pool:
            from actors.pool_client import pool as started_pool

            start_ray()
            pinned = _pinned(run)
            client = stack.enter_context(started_pool(pinned, storage.uri, run.attempt, started, hold.token))
            client.require([e.name for e in settings.pool.experts])
            if "predicted_wall_s" not in manifest:
                counts = manifest["stages"]["questions"]
                manifest.update(_predicted(settings, counts["validation"], counts["test"]))
            return client

        run = Run(
            settings=settings, storage=storage, manifest=manifest, attempt=manifest["attempts"], started=started,
            start_ray=start_ray, pool=pool, embed=embedder_of(settings), verify=verifier(),
            say=signals.checked(display.say), on_progress=signals.checked(display.progress), retry_failed=retry_failed,
            token=hold.token, check=hold.check,
        )  # fmt: skip
        with writable(storage):
            run.save()
            run.set_status("running")
        try:
            yield run
        except BaseException as error:
            _end(run, signals.reason_of(error))
        finally:
            display.end_stage()


def _revoke_damaged(storage: Storage, manifest: dict[str, Any], display: Display) -> None:
    """Have parts generated again whose file is no longer what was committed: their stages have not run."""
    commits = Commits(storage)
    for stage in commits.stages():
        for part in commits.revoke_damaged(stage):
            display.say(f"warning: {part.path} is damaged or gone: its {part.samples} samples are generated again")
            manifest["stages"].pop(stage, None)


@contextmanager
def writable(storage: Storage) -> Iterator[None]:
    """What is written within must be written: else a ResourceError."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"run {storage.uri} cannot be written: {error.strerror or error}") from error


def _end(run: Run, reason: BaseException) -> None:
    """Write down why a run ends, and raise it."""
    state = "interrupted" if isinstance(reason, INTERRUPTIONS) else "failed"
    number = _no_room(reason)
    with suppress(OSError):
        code = MISSING if number else code_of(reason)
        run.set_status(state, error=f"{type(reason).__name__}: {reason}"[:2000], exit_code=code)
    if number:
        raise ResourceError(f"run {run.storage.uri} cannot be written: {os.strerror(number)}") from reason
    if isinstance(reason, Exception) and not isinstance(reason, InputError | ResourceError):
        raise failure_of(run, reason) from reason
    raise reason


def _no_room(reason: BaseException) -> int:
    """The number of the error by which a disk said that it takes nothing more, 0 where that was not the reason."""
    causes: list[BaseException] = []
    cause: BaseException | None = reason
    while cause is not None and cause not in causes:
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return cause.errno or 0
        causes.append(cause)
        cause = getattr(cause, "cause", None) or cause.__cause__  # of an error in an actor, Ray's `cause`
    return 0


def _pinned(run: Run) -> Settings:
    """The settings with each hub model at the commit that it had at the run's first attempt, as the manifest says."""
    from actors.hub_commits import commits, with_commits

    if run.settings.engine.kind == "fake":
        return run.settings
    run.manifest["models"] = commits(run.settings.pool.experts, run.manifest.get("models", {}))
    run.save()
    for name in (name for name, commit in run.manifest["models"].items() if not commit):
        run.warn(f"the commit of {name} is not known: the Hugging Face hub does not answer, and it is not here")
    return with_commits(run.settings, run.manifest["models"])


def embedder_of(settings: Settings) -> Any:
    """What maps skills to vectors: the method's embedding model, or a fake one beside fake engines."""
    if settings.engine.kind == "fake":
        import numpy as np

        from symoe_ray.testing import fake_embeddings

        return lambda texts: np.asarray(fake_embeddings(texts))
    from actors.embedding import embedder

    return embedder(settings.embedding_model)


def hub_rows(source: str) -> list[Row]:
    """The rows of an hf:// address, through the `datasets` library."""
    from actors.hub_datasets import read_hub

    return read_hub(source)


def verifier() -> Any:
    """Decides whether two mathematical expressions are equal, in worker processes that can be killed."""
    from actors.math_verifier import MathVerifier

    return MathVerifier()


def check_engines(settings: Settings) -> None:
    """InputError for an engine argument that the vLLM of this machine, if there is one, does not take."""
    from actors.engine_arguments import argument_problem

    if settings.engine.kind == "vllm":
        problems = filter(None, map(argument_problem, settings.pool.local))
        if problem := next(problems, ""):
            raise InputError(problem)


def sizes_of(settings: Settings) -> tuple[dict[str, ModelSize], Machine]:
    """The size of each expert's model, and the machine that they run on."""
    from actors import model_sizes

    machine = model_sizes.machine_of(settings)
    return model_sizes.sizes_of(settings, machine), machine


def _predicted(settings: Settings, validation: int, test: int) -> dict[str, Any]:
    """What the manifest keeps of the plan: seconds, and for each stage who loads and generates where and when."""
    sizes, machine = sizes_of(settings)
    plan = plan_of(settings, validation=validation, test=test, sizes=sizes, machine=machine)
    return {
        "predicted_wall_s": round(plan.seconds, 3),
        "plan": [
            {
                "stage": stage.stage,
                "seconds": round(stage.seconds, 3),
                "spans": [
                    [s.slot, s.event, "+".join(s.experts), round(s.begin_s, 3), round(s.end_s, 3)] for s in stage.spans
                ],
            }
            for stage in plan.stages
        ],
    }
