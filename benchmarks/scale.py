"""What a run costs its driver and its pool as questions grow: memory, processor time, and rows per second.

`python -m benchmarks.scale [--json] [--questions 10000 100000] [--folder DIR] [--seconds S]`: the stage `answer` of a
run as `symoe answer` runs it (Ray Data, pool, slots, commits, grading), three drafts for each question, by fake engines
that cost nothing. Before it, in a process of its own, the questions and annotations that the stages before it would
have left are made up and `recruit` is run. Peak memory is the kernel's, of the driver's process and the pool's. With
--folder a case that is cut off (--seconds) goes on at the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from symoe_ray.config import load
from symoe_ray.ledger import Commits
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import QUESTIONS, SKILLS

SETTINGS = (
    "task=demo", "pool=small", "engine.kind=fake", "engine.slots=2", "baselines=off", "aggregator=SmolLM2", "k=3",
    "replacement=false", "trim_threshold=0",
)  # fmt: skip
SKILL_NAMES = [f"skill {n}" for n in range(200)]
BATCH = 50_000
PEAK = "VmHWM:"


def main() -> None:
    """Print a row for each number of questions, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--questions", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", help="keep the runs here, and go on with what is there")
    parser.add_argument("--seconds", type=float, default=0.0, help="interrupt a case after so long (0: never)")
    parser.add_argument("--step", choices=["recruit", "answer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(options.step, options.folder, options.questions[0])
        return
    table = sys.stderr if options.json else sys.stdout
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(options.folder or scratch)
        cases = []
        head = (
            "questions", "driver MiB", "pool MiB", "recruit MiB", "recruit s", "wall s", "driver s", "all cpu s",
            "rows/s", "done",
        )  # fmt: skip
        print("".join(f"{name:>12}" for name in head), file=table)
        for questions in options.questions:
            case = measure(root / str(questions), questions, options.seconds)
            cases.append(case)
            print("".join(f"{value:>12,}" for value in case.values()), file=table, flush=True)
    print(json.dumps({"benchmark": "scale", "drafts_per_question": 3, "cases": cases}))


def measure(folder: Path, questions: int, seconds: float) -> Mapping[str, float]:
    """One size, from where it was left; figures of all its parts."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "measured.json"
    seen: dict[str, Any] = json.loads(log.read_text()) if log.exists() else {"answer": []}
    if "recruit" not in seen:
        seen["recruit"] = run_step("recruit", folder, questions, 0.0)
        log.write_text(json.dumps(seen))
    if not any(part["done"] for part in seen["answer"]):
        seen["answer"].append(run_step("answer", folder, questions, seconds))
        log.write_text(json.dumps(seen))
    parts = seen["answer"]
    rows = sum(part.samples for part in Commits(Storage(str(folder / "run"))).parts("answer"))
    wall = sum(part["wall_s"] for part in parts)
    return {
        "questions": questions,
        "driver_peak_mib": max(part["driver_peak_mib"] for part in parts),
        "pool_peak_mib": max(part["pool_peak_mib"] for part in parts),
        "recruit_peak_mib": seen["recruit"]["driver_peak_mib"],
        "recruit_s": seen["recruit"]["stage_s"],
        "wall_s": round(wall, 1),
        "driver_cpu_s": round(sum(part["driver_cpu_s"] for part in parts), 1),
        "cpu_s": round(sum(part["cpu_s"] for part in parts), 1),
        "rows_per_s": round(rows / wall),
        "done": int(parts[-1]["done"]),
    }


def run_step(name: str, folder: Path, questions: int, seconds: float) -> dict[str, Any]:
    """Run one step in a process of its own; what it has measured."""
    (folder / "step.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.scale", "--step", name, "--folder", str(folder)]
    with (folder / "step.log").open("w") as log:
        process = subprocess.Popen([*command, "--questions", str(questions)], stdout=log, stderr=log)
        try:
            process.wait(seconds or None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
    if not (folder / "step.json").exists():
        raise RuntimeError(f"{name} of {questions}: {(folder / 'step.log').read_text()[-2000:]}")
    measured: dict[str, Any] = json.loads((folder / "step.json").read_text())
    return measured


def step(name: str, folder: str, questions: int) -> None:
    """In a process of its own: run it and write down what it cost, also when it is interrupted."""
    settings, storage, started = load(SETTINGS), Storage(str(Path(folder, "run"))), time.monotonic()
    facts: dict[str, Any] = {"done": False, "pool_peak_mib": 0, "stage_s": 0.0}
    if name == "recruit" and not storage.exists("manifest.json"):
        if os.fork() == 0:  # its memory is not the stage's
            make_up(settings, storage, questions)
            os._exit(0)
        if os.wait()[1]:
            raise RuntimeError("the questions could not be made up")
    try:
        run_stage(name, settings, storage, facts)
    finally:
        own = resource.getrusage(resource.RUSAGE_SELF)
        facts["driver_cpu_s"] = round(own.ru_utime + own.ru_stime, 1)
        facts["cpu_s"] = round(facts["driver_cpu_s"] + facts.pop("children_cpu_s", 0.0), 1)
        facts["driver_peak_mib"] = own.ru_maxrss // 1024
        facts["wall_s"] = round(time.monotonic() - started, 1)
        Path(folder, "step.json").write_text(json.dumps(facts))


def run_stage(name: str, settings: Settings, storage: Storage, facts: dict[str, Any]) -> None:
    """A stage as its command runs it; `facts` are filled in."""
    from pipelines import answer, recruit
    from pipelines.opening import opened
    from pipelines.progress import Display
    from pipelines.signals import Signals

    signals = Signals()
    try:
        with opened(settings, storage.uri, Display(sys.stderr), signals) as run:
            started = time.monotonic()
            try:
                (recruit if name == "recruit" else answer).run_stage(run)
            finally:
                facts["stage_s"] = round(time.monotonic() - started, 1)
                facts["pool_peak_mib"] = peak_mib("EnginePool")
                facts["children_cpu_s"] = processes_cpu_s()
        facts["done"] = True
    finally:
        signals.close()


def peak_mib(actor: str) -> int:
    """The peak memory of an actor's process that this one has started."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            line = (status.parent / "cmdline").read_bytes().split(b"\0")[0].decode()
            if line.startswith(f"ray::{actor}") and is_ours(status.parent):
                return int(status.read_text().split(PEAK)[1].split()[0]) // 1024
        except (OSError, IndexError):
            continue
    return 0


def is_ours(process: Path) -> bool:
    """Whether a process descends from this one."""
    while process.name not in ("0", "1"):
        if process.name == str(os.getpid()):
            return True
        process = process.parent / (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
    return False


def processes_cpu_s() -> float:
    """Processor seconds of all living processes that this one has started."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if is_ours(stat.parent) and stat.parent.name != str(os.getpid()):
                fields = stat.read_text().rsplit(")", 1)[1].split()
                ticks += sum(map(int, fields[11:15]))
        except OSError:
            continue
    return round(ticks / os.sysconf("SC_CLK_TCK"), 1)


def make_up(settings: Settings, storage: Storage, questions: int) -> None:
    """What the stages before `recruit` leave: questions in their shards, skills, profiles, and the manifest."""
    from pipelines.profile import write_profiles
    from pipelines.questions import SPLIT_SHARDS, shards_for
    from pipelines.run import open_manifest
    from symoe_ray.core import Profile
    from symoe_ray.fingerprints import uniform

    count = shards_for(questions)
    shards = np.array([int(uniform("shard", f"q{n:07}") * count) for n in range(questions)]) + SPLIT_SHARDS
    for shard in range(SPLIT_SHARDS, SPLIT_SHARDS + count):
        numbers = np.flatnonzero(shards == shard).tolist()
        if not numbers:
            continue
        ids = [f"q{n:07}" for n in numbers]
        rows = {
            "question_id": ids, "split": ["test"] * len(ids), "shard": [shard] * len(ids), "position": numbers,
            "text": [f"A train has {n} seats and {n % 7} more are added. How many are there?" for n in numbers],
            "kind": ["integer"] * len(ids), "task": ["scale"] * len(ids), "choices": [[]] * len(ids),
            "gold": [[str(n + n % 7)] for n in numbers], "category": [""] * len(ids),
        }  # fmt: skip
        storage.write_table(f"questions/test/part-{shard:07d}.parquet", pa.table(rows, schema=QUESTIONS))
        own = [[SKILL_NAMES[(n + i * 13) % len(SKILL_NAMES)] for i in range(3)] for n in numbers]
        zeros = [0] * len(ids)
        made = {
            "question_id": ids, "split": rows["split"], "skills": own, "samples": [[]] * len(ids),
            "prompt_tokens": zeros, "completion_tokens": zeros, "failure": [None] * len(ids),
        }  # fmt: skip
        storage.write_table(f"skills/part-{shard:07d}.parquet", pa.table(made, schema=SKILLS))
    rng = np.random.default_rng(0)
    experts = [e.name for e in settings.pool.experts]
    scores = [dict(zip(SKILL_NAMES, rng.integers(1, 6, len(SKILL_NAMES)).tolist(), strict=True)) for _ in experts]
    write_profiles(
        storage,
        [
            Profile(expert=e, task="scale", scores=s, graded=200, correct=100)
            for e, s in zip(experts, scores, strict=True)
        ],
    )
    storage.write_json("aggregators/aggregators.json", {"chosen": experts[0], "reason": "made up", "scores": {}})
    manifest = open_manifest(storage, settings, restart=False)
    made_by = {"inputs": "made up", "output": "made up"}
    manifest["stages"] = {name: dict(made_by) for name in ("annotate", "profile", "bench-aggregators")}
    manifest["stages"]["questions"] = {**made_by, "validation": 0, "test": questions}
    storage.write_json("manifest.json", manifest)


if __name__ == "__main__":
    main()
