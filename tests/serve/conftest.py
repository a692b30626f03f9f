"""A served endpoint: `symoe serve` in a process of its own, over fake engines and the profiles of a made-up run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pipelines.profile import write_profiles
from symoe_ray.config import load, to_yaml
from symoe_ray.core import Profile
from symoe_ray.storage import Storage
from symoe_ray.testing import TOPICS

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 180.0


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_run(folder: Path, *overrides: str, kept: Sequence[str] = ()) -> Path:
    """A run with profiles: each expert is good at some topics and bad at others. `kept` may be recruited (all)."""
    settings = load([*overrides])
    storage = Storage(str(folder))
    names = [e.name for e in settings.pool.experts]
    profiles = [
        Profile(
            expert=name, task="demo", graded=20, correct=10 + number,
            scores={topic: float(2 if i % len(names) == number else -1) for i, topic in enumerate(TOPICS)},
        )
        for number, name in enumerate(names)
    ]  # fmt: skip
    write_profiles(storage, profiles)
    seeds = {"0": {"kept": list(kept) or names}}
    storage.write_json("manifest.json", {"format": 1, "stages": {"recruit": {"seeds": seeds}}})
    storage.write_bytes("config.yaml", to_yaml(settings).encode())
    return folder


@dataclass
class Served:
    """A running `symoe serve`."""

    process: subprocess.Popen[str]
    url: str
    folder: Path

    def events(self, kind: str) -> list[dict[str, object]]:
        """What its pool has noted, of one kind."""
        file = self.folder.with_name(self.folder.name + "-serving") / "events.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [r for r in rows if r["event"] == kind]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


def start(folder: Path, *overrides: str, environment: dict[str, str] | None = None) -> Served:
    """`symoe serve` on a free port, ready."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "serve", "--run", str(folder), f"serve.port={port}", *overrides],
        cwd=folder.parent, text=True, start_new_session=True, stderr=(folder.parent / "serve.log").open("w"),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled", **(environment or {})},
    )  # fmt: skip
    served = Served(process, f"http://127.0.0.1:{port}", folder)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{served.url}/readyz").status_code == 200:
                return served
        if process.poll() is not None or time.monotonic() > deadline:
            end(served)
            raise AssertionError(f"symoe serve did not start: {(folder.parent / 'serve.log').read_text()}")
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)


def end(served: Served) -> None:
    """End it, by force where it does not end by itself."""
    with suppress(subprocess.TimeoutExpired):
        served.process.terminate()
        served.process.wait(60)
    with suppress(ProcessLookupError):
        os.killpg(served.process.pid, signal.SIGKILL)
    served.process.wait()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An endpoint on one slot of fake engines, for all tests that leave it as it is."""
    folder = make_run(tmp_path_factory.mktemp("served") / "made", "engine.kind=fake", "pool=tiny")
    running = start(folder, "engine.fake_tokens_per_s=200", "engine.fake_load_s=0.05")
    yield running
    end(running)
