"""`symoe plan`: what would be loaded where and when, how long it would take, and whether it fits. Spends nothing."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.opening import check_engines, sizes_of
from pipelines.run import run_uri
from pipelines.signals import DONE, MISSING, Signals
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.engine_costs import learned
from symoe_ray.engine_room import PROMPT_TOKENS
from symoe_ray.planning import Machine, ModelSize, RunPlan, Seen, capacity, plan_of, prior
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tasks import load_task

GIB = 1 << 30


def add_command(commands: Any) -> None:
    """Add `plan` to the parser's commands."""
    parser = commands.add_parser("plan", help="what would be loaded where and when, and how long; spends nothing")
    parser.add_argument("--run", metavar="NAME_OR_PATH", help="an earlier run, whose measured speeds are used")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N questions of each split")
    parser.add_argument("--json", action="store_true", help="machine-readable standard output")
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, overrides: list[str], _: Signals) -> int:
    settings = load(overrides if options.limit is None else [*overrides, f"limit={options.limit}"])
    check_engines(settings)
    sizes, machine = sizes_of(settings)
    run = Storage(run_uri(settings, options.run)) if options.run else None
    return plan(settings, sizes, machine, run, as_json=options.json)


def plan(
    settings: Settings, sizes: Mapping[str, ModelSize], machine: Machine, run: Storage | None, *, as_json: bool
) -> int:
    """Print the plan; exit code 0 if every engine fits, 4 otherwise. `run`: an earlier run whose speeds are used."""
    validation, test, note = question_counts(settings)
    seen = seen_in(run, settings, sizes, machine) if run is not None else {}
    made = plan_of(settings, validation=validation, test=test, sizes=sizes, machine=machine, seen=seen)
    if as_json:
        print(json.dumps(as_object(made, note)))
    else:
        print(as_text(made, note))
    return DONE if all(e.fits for e in made.engines) else MISSING


def question_counts(settings: Settings) -> tuple[int, int, str]:
    """Validation and test questions, of the task's files or, where these are not here, as published; and which."""
    task = settings.task
    absent = [f for f in (task.validation, task.test) if f and "://" not in f and not Path(f).is_file()]
    remote = [f for f in (task.validation, task.test) if "://" in f]
    if not absent and not remote:
        data = load_task(task, limit=settings.limit)
        return len(data.validation), len(data.test), ""
    if not task.test_questions:
        raise InputError(f"task {task.name!r}: {', '.join(absent or remote)} is not here, and its size is not known")
    counts = (task.validation_questions, task.test_questions)
    validation, test = (min(c, settings.limit) if settings.limit else c for c in counts)
    return validation, test, f"{', '.join(absent or remote)} not here: the task's published sizes"


def seen_in(storage: Storage, settings: Settings, sizes: Mapping[str, ModelSize], machine: Machine) -> dict[str, Seen]:
    """What the events of a run say about its experts: tokens of a sample, speeds, median loads; InputError without."""
    if not storage.exists("events.jsonl"):
        raise InputError(f"run {storage.uri} has no events.jsonl: nothing has been generated there")
    events = [json.loads(line) for line in storage.read_text("events.jsonl").splitlines() if line.strip()]
    by_expert: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_expert[event.get("expert", "")].append(event)
    names = {e.name for e in settings.pool.experts}
    return {
        name: _seen(own, settings, name, sizes[name], machine)
        for name, own in by_expert.items()
        if name in names and any(e["event"] == "generate" for e in own)
    }


def _seen(
    events: Sequence[Mapping[str, Any]], settings: Settings, name: str, size: ModelSize, machine: Machine
) -> Seen:
    made = [e for e in events if e["event"] == "generate" and e["requests"]]
    tokens: dict[str, float] = {}
    for stage in {e["stage"] for e in made}:
        own = [e for e in made if e["stage"] == stage]
        samples = settings.annotate.samples if stage == "annotate" else 1
        tokens[stage] = sum(e["completion_tokens"] for e in own) / (sum(e["requests"] for e in own) * samples)
    written = sum(e["completion_tokens"] for e in made)
    covered = covered_s([(e["attempt"], e["slot"], e["t"] - e["seconds"], e["t"]) for e in made])
    batch = sum(e["requests"] * e["seconds"] for e in made) / covered if covered else 1.0
    loads = sorted(e.get("start_s", e["seconds"]) for e in events if e["event"] == "load")
    spec, mean = settings.pool.expert(name), written / max(1, sum(e["requests"] for e in made))
    cost = learned(
        prior(spec, size, mean, machine), observed_tokens=written, observed_s=covered,
        mean_batch=min(batch, capacity(settings, spec, size, machine, (PROMPT_TOKENS, mean))),
        load_s=loads[len(loads) // 2] if loads else None,
    )  # fmt: skip
    return Seen(tokens=tokens, cost=cost)


def covered_s(spans: Sequence[tuple[int, str, float, float]]) -> float:
    """Seconds that spans of (attempt, slot, begin, end) cover, overlaps on one slot counted once."""
    total, place, reached = 0.0, (-1, ""), 0.0
    for attempt, slot, begin, end in sorted(spans):
        if (attempt, slot) != place:
            place, reached = (attempt, slot), begin
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def as_object(made: RunPlan, note: str) -> dict[str, Any]:
    """The plan as one JSON object."""
    return {**asdict(made), "seconds": round(made.seconds, 3), "notes": [*([note] if note else []), *made.notes]}


def as_text(made: RunPlan, note: str) -> str:
    """The plan as tables: stages, engines, and what was guessed."""
    cut = f" of {', '.join(map(str, made.gpus))}" if len(set(made.gpus)) > 1 else ""
    device = f"{sum(made.gpus)} GPU(s)" if made.gpus else "the CPU"
    lines = [f"{made.slots} slot(s){cut} on {device}", ""]
    lines.append(f"{'stage':<26}{'requests':>10}{'samples':>10}{'tokens':>14}{'seconds':>11}  loads")
    lines += [
        f"{s.stage:<26}{s.requests:>10,}{s.samples:>10,}{s.tokens:>14,}{s.seconds:>11,.1f}  {len(s.loads)}"
        for s in made.stages
    ]
    lines.append(
        f"{'total':<26}{sum(s.requests for s in made.stages):>10,}{sum(s.samples for s in made.stages):>10,}"
        f"{sum(s.tokens for s in made.stages):>14,}{made.seconds:>11,.1f}  {sum(len(s.loads) for s in made.stages)}"
    )
    lines += ["", "loads (second of the stage: experts); an engine that a stage finds on a slot is not loaded again"]
    for stage in made.stages:
        by_slot: dict[str, list[str]] = defaultdict(list)
        for start in stage.loads:
            by_slot[start.slot].append(f"{start.at_s:.0f}: {'+'.join(start.experts)}")
        lines += [f"  {stage.stage:<26}{slot:<9}{', '.join(own)}" for slot, own in sorted(by_slot.items(), key=_number)]
    if made.engines:
        lines += ["", f"{'engine of':<32}{'weights GiB':>12}{'KV GiB':>9}  fits"]
    for engine in made.engines:
        lines.append(
            f"{'+'.join(engine.experts):<32}{engine.weight_bytes / GIB:>12.2f}{engine.kv_bytes / GIB:>9.2f}"
            f"  {'yes' if engine.fits else 'NO'}{' (guessed)' if engine.guessed else ''}"
        )
    return "\n".join([*lines, "", *(f"note: {n}" for n in ([note] if note else []) + list(made.notes))])


def _number(item: tuple[str, list[str]]) -> tuple[int, str]:
    return int(item[0].rsplit("-", 1)[1]), item[0]
