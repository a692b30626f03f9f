"""The command line: `symoe COMMAND [key=value ...] [options]`. The only place that connects stages with Ray and
engines.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pipelines import (
    aggregate,
    annotate,
    answer,
    bench_aggregators,
    evaluate,
    profile,
    questions,
    recruit,
)  # fmt: skip
from pipelines import (
    run as runs,
)
from pipelines.doctor import doctor
from pipelines.plan import plan
from pipelines.progress import Display
from pipelines.report import write_report
from symoe_ray.config import load, to_yaml
from symoe_ray.core import InputError, ResourceError
from symoe_ray.ledger import Commits
from symoe_ray.planning import Machine, ModelSize, plan_of
from symoe_ray.ports import Pool
from symoe_ray.results import accuracy_table
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage

DONE, FAILED, USAGE, TOO_MANY_FAILURES, MISSING, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143

T = TypeVar("T")
Stage = Callable[[runs.Run], Any]
STAGES: dict[str, Stage] = {
    "annotate": annotate.run_stage,
    "profile": profile.run_stage,
    "bench-aggregators": bench_aggregators.run_stage,
    "recruit": recruit.run_stage,
    "answer": answer.run_stage,
    "aggregate": aggregate.run_stage,
    "evaluate": evaluate.run_stage,
}


class Terminated(BaseException):
    """SIGTERM: end cleanly, like an interrupt."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code (see `symoe --help`)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    places = [i for i, a in enumerate(given) if "=" in a and not a.startswith("--") and given[i - 1 : i] != ["--run"]]
    overrides = [given[i] for i in places]
    options = _parser().parse_args([a for i, a in enumerate(given) if i not in places])
    signals = _Signals()
    try:
        return int(options.function(options, overrides, signals))
    except InputError as error:
        print(f"symoe: {error}", file=sys.stderr)
        return USAGE
    except ResourceError as error:
        print(f"symoe: {error}", file=sys.stderr)
        return MISSING
    except runs.RunFailed as error:
        print(f"symoe: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("symoe: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except (Terminated, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:  # which is how ray.init answers the signal
            raise
        print("symoe: terminated; the same command goes on where it stopped", file=sys.stderr)
        return TERMINATED
    finally:
        signals.close()


class _Signals:
    """SIGINT and SIGTERM: raised where they come, and again at the next safe point.

    A call into Ray that a signal meets may swallow what the handler raises, and then the run would go on to its end.
    """

    def __init__(self) -> None:
        self._received: BaseException | None = None
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def close(self) -> None:
        """Put back what handled the signals before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        self._received = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        raise self._received

    def checked(self, function: Callable[[T], None]) -> Callable[[T], None]:
        """The function, which first raises what was received."""

        def call(value: T) -> None:
            if self._received is not None:
                raise self._received
            function(value)

        return call


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="symoe",
        description="Symbolic mixture of experts on a pool of language models.",
        epilog="Settings are key=value anywhere on the line: task=, pool=, k=, engine.slots=, ... (conf/config.yaml). "
        "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 more failed rows than max_failures, "
        "4 resources missing, 130 and 143 interrupted (resumable).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _run_options(commands.add_parser("run", help="all stages, resuming what is there")).set_defaults(function=_run)
    for name in STAGES:
        command = commands.add_parser(name, help=f"the stage {name} alone")
        _run_options(command).set_defaults(function=_run)
    report = commands.add_parser("report", help="write a run's report.html again, generating nothing")
    report.add_argument("run", metavar="RUN", help="name or path of the run")
    report.add_argument("--json", action="store_true", help="machine-readable standard output")
    report.set_defaults(function=_report)
    planning = commands.add_parser("plan", help="what would be loaded where and when, and how long; spends nothing")
    planning.add_argument("--run", metavar="NAME_OR_PATH", help="an earlier run, whose measured speeds are used")
    planning.add_argument("--limit", type=int, metavar="N", help="at most N questions of each split")
    planning.add_argument("--json", action="store_true", help="machine-readable standard output")
    planning.set_defaults(function=_plan)
    check = commands.add_parser("doctor", help="what is here, and whether each expert fits")
    check.add_argument("--json", action="store_true", help="machine-readable standard output")
    check.set_defaults(function=_doctor)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--run", metavar="NAME_OR_PATH", help="where the run lies (default: <task>-<pool>)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N questions of each split")
    parser.add_argument(
        "--json", action="store_true", help="results as JSON on standard output, progress on standard error"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check settings and data, say what would run, run nothing"
    )
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML and stop")
    parser.add_argument("--restart", action="store_true", help="delete what the run has and start over")
    parser.add_argument("--retry-failed", action="store_true", help="generate failed rows again")
    return parser


def _run(options: argparse.Namespace, overrides: list[str], signals: _Signals) -> int:
    if options.limit is not None:
        overrides = [*overrides, f"limit={options.limit}"]
    settings = _settings(options, overrides)
    if options.print_config:
        print(to_yaml(settings), end="")
        return DONE
    display = Display(sys.stderr if options.json else sys.stdout)
    uri = runs.run_uri(settings, options.run or f"{settings.task.name}-{settings.pool.name}")
    wanted = list(STAGES) if options.command == "run" else [options.command]
    if options.dry_run:
        return _dry_run(settings, uri, wanted, display)
    with _opened(settings, uri, options, display, signals) as run:
        questions.run_stage(run)
        made: Any = None
        for name in wanted:
            run.say(f"== {name}")
            made = STAGES[name](run)
            display.end_stage()
        if wanted[-1] == "evaluate":
            return _finish(run, made, options.json, display)
        run.set_status("finished", stage=wanted[-1])
        return DONE


def _settings(options: argparse.Namespace, overrides: list[str]) -> Settings:
    """`run` takes the settings given; a single stage takes those of its run, with the given ones on top."""
    if options.command == "run" or options.run is None:
        return load(overrides)
    uri = runs.run_uri(load([o for o in overrides if o.startswith("output_dir=")]), options.run)
    return runs.settings_of(Storage(uri), overrides) or load(overrides)


def _finish(run: runs.Run, results: dict[str, Any], as_json: bool, display: Display) -> int:
    report = write_report(run.storage, run.settings)
    failed = evaluate.failed_rows(results)
    run.set_status("finished", failed=failed)
    if as_json:
        print(json.dumps(results))
    else:
        display.say("\n" + accuracy_table(results))
        display.say(f"\nresults: {run.storage.path('results.json')}\nreport:  {report}")
    if failed > run.settings.max_failures:
        print(f"symoe: {failed} failed rows, max_failures is {run.settings.max_failures}", file=sys.stderr)
        return TOO_MANY_FAILURES
    return DONE


def _dry_run(settings: Settings, uri: str, wanted: list[str], display: Display) -> int:
    data = questions.load_questions(settings)
    for warning in data.warnings:
        display.say(f"warning: {warning}")
    display.say(f"run {uri}: {len(data.validation)} validation and {len(data.test)} test questions")
    display.say(f"experts: {', '.join(e.name for e in settings.pool.experts)}; annotator {settings.annotator_name}")
    display.say(f"stages: {', '.join(wanted)}; k={settings.k}, seeds {', '.join(map(str, settings.all_seeds))}")
    return DONE


@contextmanager
def _opened(
    settings: Settings, uri: str, options: argparse.Namespace, display: Display, signals: _Signals
) -> Iterator[runs.Run]:
    """The run, locked, with its manifest and a pool that starts when it is first needed; its end is in status.json."""
    storage, started = Storage(uri), time.time()
    with runs.locked(storage), ExitStack() as stack:
        manifest = runs.open_manifest(storage, settings, restart=options.restart)
        manifest["attempts"] += 1
        Commits(storage, manifest["attempts"]).fence()
        runs.save_config(storage, settings)

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
                manifest["predicted_wall_s"] = _predicted_s(settings, counts["validation"], counts["test"])
            return client

        run = runs.Run(
            settings=settings, storage=storage, manifest=manifest, attempt=manifest["attempts"], started=started,
            start_ray=start_ray, pool=pool, embed=_embedder(settings), verify=_verifier(),
            say=signals.checked(display.say), on_progress=signals.checked(display.progress),
            retry_failed=options.retry_failed,
        )  # fmt: skip
        run.save()
        run.set_status("running")
        try:
            yield run
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt | Terminated | SystemExit) else "failed"
            with suppress(OSError):
                run.set_status(state, error=f"{type(error).__name__}: {error}"[:2000])
            if isinstance(error, Exception) and not isinstance(error, InputError | ResourceError):
                raise runs.failure_of(run, error) from error
            raise
        finally:
            display.end_stage()


def _embedder(settings: Settings) -> Any:
    if settings.engine.kind == "fake":
        import numpy as np

        from symoe_ray.testing import fake_embeddings

        return lambda texts: np.asarray(fake_embeddings(texts))
    from actors.embedding import embedder

    return embedder(settings.embedding_model)


def _verifier() -> Any:
    from actors.math_verifier import MathVerifier

    return MathVerifier()


def _report(options: argparse.Namespace, overrides: list[str], _: _Signals) -> int:
    storage = Storage(runs.run_uri(load(overrides), options.run))
    settings = runs.settings_of(storage)
    if settings is None:
        raise InputError(f"there is no run at {storage.uri} (no {runs.CONFIG})")
    path = write_report(storage, settings)
    results = storage.read_json("results.json")
    print(json.dumps({"report": path}) if options.json else f"{accuracy_table(results)}\n\nreport: {path}")
    return DONE


def _doctor(options: argparse.Namespace, overrides: list[str], _: _Signals) -> int:
    from actors.inspection import inspect_machine

    settings = load(overrides)
    return doctor(inspect_machine(settings), as_json=options.json)


def _sizes(settings: Settings) -> tuple[dict[str, ModelSize], Machine]:
    from actors.model_sizes import machine_of, size_of

    sizes = {e.name: size_of(e, fake=settings.engine.kind == "fake") for e in settings.pool.experts}
    return sizes, machine_of(settings)


def _predicted_s(settings: Settings, validation: int, test: int) -> float:
    sizes, machine = _sizes(settings)
    return round(plan_of(settings, validation=validation, test=test, sizes=sizes, machine=machine).seconds, 3)


def _plan(options: argparse.Namespace, overrides: list[str], _: _Signals) -> int:
    settings = load(overrides if options.limit is None else [*overrides, f"limit={options.limit}"])
    sizes, machine = _sizes(settings)
    run = Storage(runs.run_uri(settings, options.run)) if options.run else None
    return plan(settings, sizes, machine, run, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
