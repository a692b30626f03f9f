"""A run: its folder, its manifest, and what its stages need of the outside world.

The manifest says what each stage was made from (`inputs`) and what came of it (`output`): a stage whose inputs have not
changed is not run again, and one that changed makes all that follow stale.
"""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from symoe_ray.config import load, to_yaml
from symoe_ray.core import InputError
from symoe_ray.fingerprints import digest
from symoe_ray.grading import Verify
from symoe_ray.ports import Embedder, Pool, Progress
from symoe_ray.prompts import PROMPTS_VERSION
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage, below

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
OWNED = frozenset(
    [
        "config.yaml",
        "manifest.json",
        "status.json",
        "events.jsonl",
        "events.jsonl.parts",
        "commits",
        "logs",
        "questions",
        "skills",
        "profiles",
        "aggregators",
        "recruits",
        "seats",
        "drafts",
        "answers",
        "requests",
        "responses",
        "results.json",
        "report.html",
        "report.md",
        "methods",
        "baselines",
        "imported",
        "replays",
    ]
)
OWNED_PREFIXES = ("samples_", "seed=")


class RunFailed(RuntimeError):  # noqa: N818  (what happened, as the command line says it)
    """A run ended with an error that is nobody's input: the message says where the details are."""


@dataclass
class Run:
    """One run in the hands of its driver.

    `pool` and `start_ray` start what they name at their first call, so that a run with nothing to do starts nothing.
    `token` is the attempt's own, and `check` raises where the run is no longer in our hands. `generated`: the inputs
    for which this attempt has generated all rows of a stage.
    """

    settings: Settings
    storage: Storage
    manifest: dict[str, Any]
    attempt: int
    started: float
    start_ray: Callable[[], None]
    pool: Callable[[], Pool]
    embed: Embedder
    verify: Verify | None
    say: Callable[[str], None]
    on_progress: Callable[[Progress], None]
    retry_failed: bool = False
    token: str = ""
    check: Callable[[], None] = lambda: None
    warnings: list[str] = field(default_factory=list)
    generated: dict[str, str] = field(default_factory=dict)

    def warn(self, message: str) -> None:
        """Tell the user something that the report repeats."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.say(f"warning: {message}")

    def seed_folder(self, seed: int) -> str:
        """Where the derived data of a seed lie, relative to the run: "" for a run with a single one."""
        return f"seed={seed}/" if len(self.settings.all_seeds) > 1 else ""

    def output(self, stage: str) -> str:
        """The fingerprint of what a stage has made; InputError where it has not run."""
        done = self.manifest["stages"].get(stage)
        if done is None:
            raise InputError(f"stage {stage} of run {self.storage.uri} has not run yet: run `symoe {stage}` first")
        return str(done["output"])

    def is_due(self, stage: str, inputs: str) -> bool:
        """Whether a stage must run: False if it has, with just these inputs.

        A stage that `symoe import-reference` has filled stands as it is, whatever the settings say.
        """
        done = self.manifest["stages"].get(stage)
        return done is None or not (done.get("imported") or (done["inputs"] == inputs and not self.retry_failed))

    def begin(self, stage: str, inputs: str) -> bool:
        """`is_due`; what the stage made with other inputs is forgotten then."""
        is_due = self.is_due(stage, inputs)
        if is_due:
            self.forget(stage)
        return is_due

    def forget(self, stage: str) -> None:
        """Before what a stage made is overwritten: a stage that is cut off has not run."""
        if self.manifest["stages"].pop(stage, None) is not None:
            self.save()

    def done(self, stage: str, inputs: str, *made: object, **facts: object) -> None:
        """Record that a stage has run: `made` is what its output's fingerprint follows from beside the inputs."""
        self.manifest["stages"][stage] = {
            "inputs": inputs, "output": digest(inputs, *made), "attempt": self.attempt, "time": time.time(), **facts,
        }  # fmt: skip
        self.save()

    def save(self) -> None:
        """Write the manifest."""
        self.check()
        self.storage.write_json(MANIFEST, self.manifest)

    def set_status(self, state: str, **facts: object) -> None:
        """Write status.json: running, finished, failed or interrupted."""
        row = {"state": state, "attempt": self.attempt, "time": time.time(), "pid": os.getpid(), **facts}
        self.storage.write_json("status.json", row)


def failure_of(run: Run, error: Exception) -> RunFailed:
    """One line for people; the traceback goes to a log file of the run."""
    name = f"logs/driver-{run.attempt}.txt"
    lines, details = str(error).strip().splitlines() or [""], ""
    with suppress(OSError):  # the disk may be full
        run.storage.write_bytes(name, "".join(traceback.format_exception(error)).encode())
        details = f" (details: {run.storage.path(name)})"
    return RunFailed(f"{type(error).__name__}: {lines[-1][:300]}{details}")


def run_uri(settings: Settings, name: str) -> str:
    """Where a run lies: a name is a folder in `output_dir`, a path or address is taken as it is."""
    return name if "/" in name or "://" in name else below(settings.output_dir, name)


def settings_of(storage: Storage, overrides: Sequence[str] = ()) -> Settings | None:
    """A run's own settings with overrides on top; None where there is no such run."""
    if not storage.exists(CONFIG):
        return None
    if storage.is_local:
        return load(overrides, base=Path(storage.path(CONFIG)))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, CONFIG)
        copy.write_bytes(storage.read_bytes(CONFIG))
        return load(overrides, base=copy)


def generation_facts(settings: Settings) -> dict[str, object]:
    """All settings that decide what is generated, flat: key -> value. The seed is not among them: it adds rows."""
    facts: dict[str, object] = {"prompts": PROMPTS_VERSION, "task.name": settings.task.name}
    for key in ("validation", "test", "kind", "demo"):
        value = getattr(settings.task, key)
        facts[f"task.{key}"] = asdict(value) if key == "demo" and value else value
    for expert in settings.pool.experts:
        for key, value in expert.facts.items():
            facts[f"pool.{expert.name}.{key}"] = dict(value) if isinstance(value, dict) else value
    facts |= {f"annotate.{key}": value for key, value in asdict(settings.annotate).items()}
    facts["annotator"] = settings.annotator_name
    facts["max_tokens"] = settings.max_tokens
    facts["engine.kind"], facts["engine.dtype"] = settings.engine.kind, settings.engine.dtype
    return facts


def open_manifest(storage: Storage, settings: Settings, *, restart: bool) -> dict[str, Any]:
    """The run's manifest, new or continued; InputError with the differences where other settings generated its rows.

    A run that has not got as far as its first requests takes any settings.
    """
    attempts = 0
    if restart:
        attempts = storage.read_json(MANIFEST, {"attempts": 0})["attempts"]  # those before stay fenced off
        _delete_run(storage)
    manifest: dict[str, Any] = storage.read_json(MANIFEST, {})
    check_same(storage, manifest, settings)
    facts = generation_facts(settings)
    if not manifest:
        return {
            "format": 1,
            "created": time.time(),
            "attempts": attempts,
            "generation": facts,
            "stages": {},
            "requests": {},
            "shards": {},
        }
    if not manifest["requests"]:
        return manifest | {"generation": facts}
    plain = storage_view(facts)
    return manifest | {"generation": manifest["generation"] | plain}  # an expert that is away stays known


def check_same(storage: Storage, manifest: Mapping[str, Any], settings: Settings) -> None:
    """InputError with the differences where other settings have generated a run's rows."""
    if changed := other_settings(manifest, settings):
        lines = [f"  {key}: {then!r} -> {now!r}"[:200] for key, (then, now) in changed.items()]
        raise InputError(
            f"run {storage.uri} was generated with other settings, listed below (then -> now): give the same as then, "
            "or --restart to delete the run and start over, or another --run:\n" + "\n".join(lines[:20])
        )


def other_settings(manifest: Mapping[str, Any], settings: Settings) -> dict[str, tuple[object, object]]:
    """What a run's rows were generated with and these settings have otherwise: key -> (then, now)."""
    if not manifest or not manifest["requests"]:
        return {}
    old, new = manifest["generation"], storage_view(generation_facts(settings))
    return {key: (old.get(key, "absent"), new.get(key, "absent")) for key in _changed(old, new)}


def _changed(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """The facts that differ, but for experts that only one side has: they add rows and change none."""
    both = _experts(old) & _experts(new)
    keys = (key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return sorted(key for key in keys if not key.startswith("pool.") or _expert(key) in both)


def _experts(facts: Mapping[str, object]) -> set[str]:
    return {_expert(key) for key in facts if key.startswith("pool.")}


def _expert(key: str) -> str:
    return key.removeprefix("pool.").rpartition(".")[0]


def _delete_run(storage: Storage) -> None:
    """Delete what a run owns, and nothing else; InputError for a folder with files that is no run."""
    if not storage.exists(MANIFEST):
        if storage.names():
            raise InputError(f"--restart: {storage.uri} is not empty and holds no {MANIFEST}, so it is no run")
        return
    there = {name.split("/", 1)[0] for name in storage.names()}
    for name in sorted(there, key=lambda name: name == MANIFEST):  # last: a restart that is cut off can be restarted
        if name in OWNED or name.startswith(OWNED_PREFIXES):
            storage.delete(name)


def storage_view(value: Any) -> Any:
    """A value as it comes back from JSON."""
    if isinstance(value, dict):
        return {str(k): storage_view(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [storage_view(v) for v in value]
    return value


def save_config(storage: Storage, settings: Settings) -> None:
    """Write the run's config.yaml."""
    storage.write_bytes(CONFIG, to_yaml(settings).encode())
