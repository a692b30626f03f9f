"""Runs what we compare ourselves with: each peer is a program of its own, in a session of its own, that notes when it
had what.

A peer writes a line of JSON for every `Mark`; all else that it and its libraries print goes to a log, of which the end
is shown where the peer fails. vLLM keeps compiled code between processes, so a run that met a model for the first time
is done again and only the second one counts. (vLLM 0.32 cannot read all of what it keeps on the CPU: it reports that
"'function' object has no attribute 'finalize_loading'" and compiles again, which is part of what its default costs.
Where a second run has shown that, first runs count from then on: they are no slower.)

Peers run with their defaults, less two, `PEER_ARGS`: vLLM's share of the machine's memory, on the CPU too, is 0.92, and
that is refused wherever anything else uses the memory; and all compute in the same numbers, in float32 on a CPU without
bfloat16, as our engines do there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actors.platform import cpu_dtype

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800.0
END_S = 15.0
COMPILED, COULD_NOT_READ = "saved AOT compiled function", "Compiling model again due to a load failure"
PEER_ARGS: dict[str, object] = {"gpu_memory_utilization": 0.3, "dtype": cpu_dtype("auto")}
_compile_always: set[str] = set()
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class PeerError(RuntimeError):
    """A peer did not do its work; the message holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One expert's work: its model folder, its conversations, how many tokens each answer has."""

    model: str
    conversations: tuple[tuple[dict[str, str], ...], ...]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a peer is to do, one task after the other, with these engine arguments."""

    tasks: tuple[Task, ...]
    engine_args: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The work of a task: `started` and `finished` in epoch seconds, and the tokens of all its requests."""

    started: float
    finished: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def seconds(self) -> float:
        """From the start to the last result."""
        return self.finished - self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A peer's run from the start of its process to its exit (epoch seconds), with a mark for each task."""

    started: float
    exited: float
    marks: tuple[Mark, ...]


def run_peer(name: str, job: Job, environment: Mapping[str, str] | None = None) -> Run:
    """Run `python -m benchmarks.contenders.NAME` with warm caches; PeerError where it fails or does not finish."""
    with tempfile.TemporaryDirectory() as folder:
        run, log = _run(name, job, environment or {}, Path(folder, "first"))
        if log.count(COMPILED) > log.count(COULD_NOT_READ) and name not in _compile_always:
            run, log = _run(name, job, environment or {}, Path(folder, "second"))
            if COULD_NOT_READ in log:
                _compile_always.add(name)
    return run


def _run(name: str, job: Job, environment: Mapping[str, str], folder: Path) -> tuple[Run, str]:
    folder.mkdir()
    order, marks, log = folder / "job.json", folder / "marks.jsonl", folder / "log.txt"
    order.write_text(json.dumps(asdict(job)))
    command = [sys.executable, "-m", f"benchmarks.contenders.{name}", str(order), str(marks)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends with us; ray.init puts up a handler of its own
    started = time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, **ENVIRONMENT, **environment}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        status = _end_of(process)
    exited = time.time()
    text = log.read_text(errors="replace")
    made = [Mark(**json.loads(line)) for line in marks.read_text().splitlines()] if marks.exists() else []
    if status or len(made) != len(job.tasks):
        raise PeerError(f"{name} ended with status {status}, {len(made)} of {len(job.tasks)} tasks\n{text[-6000:]}")
    return Run(started=started, exited=exited, marks=tuple(made)), text


def _end_of(process: subprocess.Popen[bytes]) -> int:
    """Wait for a peer to exit. What is left of its session goes with it, also when we are interrupted."""
    try:
        return process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return -1
    finally:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(END_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_job(path: str) -> Job:
    """The job, in a peer's own process."""
    job = json.loads(Path(path).read_text())
    tasks: Sequence[dict[str, object]] = job["tasks"]
    return Job(tasks=tuple(Task(**task) for task in tasks), engine_args=job["engine_args"])  # type: ignore[arg-type]


def answered(llm: Any, task: Task, started: float) -> Mark:
    """Have a `vllm.LLM` answer a task greedily; its mark ends with the last result."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=task.max_tokens)
    outputs = llm.chat([list(c) for c in task.conversations], sampling, use_tqdm=False)
    return Mark(
        started=started, finished=time.time(),
        prompt_tokens=sum(len(o.prompt_token_ids or ()) for o in outputs),
        completion_tokens=sum(len(o.outputs[0].token_ids) for o in outputs),
    )  # fmt: skip


def write_mark(path: str, mark: Mark) -> None:
    """Note a task's end, in a peer's own process."""
    with Path(path).open("a") as file:
        file.write(json.dumps(asdict(mark)) + "\n")
