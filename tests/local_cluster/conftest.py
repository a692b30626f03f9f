"""Whole runs as a user starts them: `python -m pipelines ...` in a process of its own, on a Ray cluster of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.faults.checking import committed_parts
from tests.processes import family

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE = (
    "engine.kind=fake", "engine.slots=2", "pool=small", "task.demo.validation=40", "task.demo.test=64",
)  # fmt: skip
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Command:
    """A finished `symoe` command."""

    code: int
    out: str
    err: str


@dataclass
class Symoe:
    """Runs commands in a folder; runs lie below it."""

    folder: Path
    started: list[subprocess.Popen[str]]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command under way, in a process group of its own."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled"}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *arguments],
            cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def __call__(self, *arguments: str) -> Command:
        """A command, to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=TIMEOUT_S)
        return Command(process.returncode, out, err)

    def run_folder(self, name: str) -> RunFolder:
        """What a run has written."""
        return RunFolder(self.folder / "runs" / name)


@dataclass(frozen=True)
class RunFolder:
    """Reads a run from its files alone, never from what the run says of itself."""

    path: Path

    def json(self, name: str) -> Any:
        """A JSON file."""
        return json.loads((self.path / name).read_text())

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """The events, of one kind if named."""
        file = self.path / "events.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [r for r in rows if kind in ("", r["event"])]

    def parts(self, stage: str) -> list[dict[str, Any]]:
        """The committed parts of a stage."""
        return committed_parts(self.path, stage)

    def committed(self, stage: str) -> Counter[tuple[str, int]]:
        """How often each (request, sample) is committed."""
        counts: Counter[tuple[str, int]] = Counter()
        for part in self.parts(stage):
            rows = pq.read_table(self.path / part["path"], columns=["request_id", "sample"], partitioning=None)
            counts.update(zip(rows["request_id"].to_pylist(), rows["sample"].to_pylist(), strict=True))
        return counts

    def requested(self, stage: str) -> set[tuple[str, int]]:
        """Each (request, sample) that the stage asks for."""
        wanted = set()
        for file in (self.path / "requests" / stage).rglob("*.parquet"):
            rows = pq.read_table(file, columns=["request_id", "n"], partitioning=None).to_pylist()
            wanted |= {(r["request_id"], i) for r in rows for i in range(r["n"])}
        return wanted

    def rows(self, folder: str) -> list[dict[str, Any]]:
        """All rows of a stage's table."""
        files = sorted((self.path / folder).glob("*.parquet"))
        return [row for f in files for row in pq.read_table(f, partitioning=None).to_pylist()]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition while a command is under way; a failure says how it ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the command ended first: {process.communicate()}")
        assert time.monotonic() < deadline, "the condition did not come true in time"
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)


def engines_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of a command's engines: fake ones, and those forked from a zygote."""
    rows = family(process.pid)
    zygotes = {pid for pid, _, args in rows if "actors.zygote" in args}
    return [pid for pid, parent, args in rows if "actors.fake_engine" in args or {pid, parent} <= zygotes]


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def symoe(tmp_path: Path) -> Iterator[Symoe]:
    """Commands in an empty folder; what is still running afterwards is ended with its process group."""
    runner = Symoe(tmp_path, [])
    yield runner
    for process in runner.started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Symoe, Command]:
    """One undisturbed run with fake engines, for all tests that only look at it: run `plain`, two slots, two seeds."""
    runner = Symoe(tmp_path_factory.mktemp("finished"), [])
    command = runner("run", *FAKE, "seeds=[0,1]", "--run", "plain", "--json")
    return runner, command
