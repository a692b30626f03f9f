"""Opens a run for a command: its lock, its manifest, and a cluster and a pool that start when they are needed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.progress import Display
from pipelines.run import Run, failure_of, locked, open_manifest, save_config
from pipelines.signals import INTERRUPTIONS, Signals
from symoe_ray.core import InputError, ResourceError
from symoe_ray.ledger import Commits
from symoe_ray.planning import Machine, ModelSize, plan_of
from symoe_ray.ports import Pool
from symoe_ray.question_files import Row
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage


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
    with locked(storage), ExitStack() as stack:
        manifest = open_manifest(storage, settings, restart=restart)
        manifest["attempts"] += 1
        Commits(storage, manifest["attempts"]).fence()
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
            client = stack.enter_context(started_pool(settings, storage.uri, manifest["attempts"], started))
            client.require([e.name for e in settings.pool.experts])
            if "predicted_wall_s" not in manifest:
                counts = manifest["stages"]["questions"]
                manifest.update(_predicted(settings, counts["validation"], counts["test"]))
            return client

        run = Run(
            settings=settings, storage=storage, manifest=manifest, attempt=manifest["attempts"], started=started,
            start_ray=start_ray, pool=pool, embed=embedder_of(settings), verify=verifier(),
            say=signals.checked(display.say), on_progress=signals.checked(display.progress), retry_failed=retry_failed,
        )  # fmt: skip
        run.save()
        run.set_status("running")
        try:
            yield run
        except BaseException as error:
            _end(run, signals.reason_of(error))
        finally:
            display.end_stage()


def _end(run: Run, reason: BaseException) -> None:
    """Write down why a run ends, and raise it."""
    state = "interrupted" if isinstance(reason, INTERRUPTIONS) else "failed"
    with suppress(OSError):
        run.set_status(state, error=f"{type(reason).__name__}: {reason}"[:2000])
    if isinstance(reason, Exception) and not isinstance(reason, InputError | ResourceError):
        raise failure_of(run, reason) from reason
    raise reason


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


def sizes_of(settings: Settings) -> tuple[dict[str, ModelSize], Machine]:
    """The size of each expert's model, and the machine that they run on."""
    from actors.model_sizes import machine_of, size_of

    sizes = {e.name: size_of(e, fake=settings.engine.kind == "fake") for e in settings.pool.experts}
    return sizes, machine_of(settings)


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
