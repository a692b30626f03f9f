"""What the endpoint adds to an engine's own time: one caller, one request at a time, tiny models.

`python -m benchmarks.serve_latency [--json] [--requests N] [--fake]`: `symoe serve` over real vLLM engines, asked over
HTTP for 16 tokens of one expert, beside the same engine asked directly, over its process' own socket; in turns, so that
both see the same machine, with a pause before each, as an idle engine's first step is slower than one amid others. The
difference of the medians is what is added. `nothing` is a request that needs no engine:
what HTTP and Ray Serve cost alone. `--fake` takes engines that answer at once: what is added is then nearly all there
is, and a busy machine, whose engines differ from one request to the next, does not hide it.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from actors.engine_link import EngineLink
from actors.engine_plans import EnginePlans
from actors.launcher import SpawnLauncher
from actors.platform import cores_of, engine_environment
from actors.protocol import Generate
from pipelines.profile import write_profiles
from symoe_ray.config import load, to_yaml
from symoe_ray.core import Profile
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage

EXPERT = "TinyLlama"
PROMPT = "Why is the sky blue?"
TOKENS = 16
ROUND = 20
PAUSE_S = 0.02
READY_TIMEOUT_S = 180.0
WAYS = ("direct", "nothing", "whole", "stream")


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    parser.add_argument("--fake", action="store_true", help="engines that answer at once")
    options = parser.parse_args()
    result = measure(options.requests, fake=options.fake)
    if not options.json:
        show(result, sys.stdout)
    print(json.dumps({"benchmark": "serve_latency", **result}))


def show(result: dict[str, Any], table: Any) -> None:
    """A table."""
    print(f"{'ms':<24}{'p50':>8}{'p95':>8}{'first p50':>11}", file=table)
    for way in WAYS:
        row = result["ways"][way]
        print(f"{way:<24}{row['p50_ms']:>8.1f}{row['p95_ms']:>8.1f}{row['first_p50_ms']:>11.1f}", file=table)
    print(f"added: {result['added_p50_ms']:.1f} ms, streamed {result['added_stream_p50_ms']:.1f} ms", file=table)


def measure(requests: int, *, fake: bool = False) -> dict[str, Any]:
    """Milliseconds of each way to ask."""
    settings = load(["pool=tiny", *(["engine.kind=fake"] if fake else [])])
    with tempfile.TemporaryDirectory(prefix="serve-") as folder, served(settings, Path(folder)) as port, \
            engine(settings, Path(folder)) as direct:  # fmt: skip
        client = http.client.HTTPConnection("127.0.0.1", port)
        ask: dict[str, Callable[[], tuple[float, float]]] = {
            "direct": direct,
            "nothing": lambda: _http(client, "GET", "/healthz"),
            "whole": lambda: _http(client, "POST", "/v1/chat/completions", stream=False),
            "stream": lambda: _http(client, "POST", "/v1/chat/completions", stream=True),
        }
        for way in WAYS:
            for _ in range(5):
                ask[way]()
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(max(1, requests // ROUND)):
            for way in WAYS:
                times[way] += [_after_a_pause(ask[way]) for _ in range(ROUND)]
    ways = {way: _row(taken) for way, taken in times.items()}
    return {
        "engines": settings.engine.kind, "requests": len(times["whole"]), "tokens": TOKENS, "ways": ways,
        "added_p50_ms": round(ways["whole"]["p50_ms"] - ways["direct"]["p50_ms"], 2),
        "added_stream_p50_ms": round(ways["stream"]["p50_ms"] - ways["direct"]["p50_ms"], 2),
        "added_first_p50_ms": round(ways["stream"]["first_p50_ms"] - ways["direct"]["first_p50_ms"], 2),
    }  # fmt: skip


def _after_a_pause(ask: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    time.sleep(PAUSE_S)
    return ask()


def _row(taken: list[tuple[float, float]]) -> dict[str, float]:
    whole = sorted(t for t, _ in taken)
    made = {
        "p50_ms": median(whole), "p95_ms": whole[int(0.95 * len(whole))], "first_p50_ms": median(f for _, f in taken),
    }  # fmt: skip
    return {name: round(1000 * value, 2) for name, value in made.items()}


def _http(client: http.client.HTTPConnection, method: str, path: str, *, stream: bool = False) -> tuple[float, float]:
    """Seconds of a request, and until its first text."""
    body = json.dumps(
        {
            "model": EXPERT, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": TOKENS, "stream": stream,
            "temperature": 0.7, "seed": 1,
        }
    ) if method == "POST" else None  # fmt: skip
    first, started = 0.0, time.perf_counter()
    client.request(method, path, body, {"content-type": "application/json"})
    response = client.getresponse()
    while line := response.readline():
        if not first and b'"content":"' in line.replace(b'"content":""', b""):
            first = time.perf_counter() - started
    response.read()
    seconds = time.perf_counter() - started
    if response.status != 200:
        raise RuntimeError(f"{path}: status {response.status}")
    return seconds, first or seconds


@contextmanager
def engine(settings: Settings, folder: Path) -> Iterator[Callable[[], tuple[float, float]]]:
    """An engine process of the expert; the call asks it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    plan = EnginePlans(settings.pool.experts, settings.engine, cores=cores_of(0, 1), cuda=False).plan(EXPERT)
    module = "actors.fake_engine" if settings.engine.kind == "fake" else "actors.engine"
    launcher = SpawnLauncher(module, engine_environment(offline=True), str(folder / "direct.log"))
    frame = Generate(
        tag="", messages=[{"role": "user", "content": PROMPT}], n=1, first_sample=0, seed=1, temperature=0.7, top_p=1.0,
        top_k=-1, max_tokens=TOKENS, repetition_penalty=1.0, stream=True,
    )  # fmt: skip
    link = asyncio.run_coroutine_threadsafe(EngineLink.start(launcher, plan.frame, print), loop).result()

    async def ask() -> tuple[float, float]:
        first: list[float] = []
        started = time.perf_counter()
        await link.generate(frame, 60.0, lambda _: first.append(time.perf_counter() - started))
        return time.perf_counter() - started, first[0] if first else time.perf_counter() - started

    try:
        yield lambda: asyncio.run_coroutine_threadsafe(ask(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(link.end(), loop).result()
        asyncio.run_coroutine_threadsafe(launcher.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def served(settings: Settings, folder: Path, *overrides: str) -> Iterator[int]:
    """`symoe serve` over a made-up run, ready; its port."""
    storage = Storage(str(folder / "run"))
    names = [e.name for e in settings.pool.experts]
    write_profiles(
        storage,
        [Profile(expert=name, task="made up", graded=1, correct=1, scores={"counting": 1.0}) for name in names],
    )
    storage.write_json("manifest.json", {"format": 1, "stages": {"recruit": {"seeds": {"0": {"kept": names}}}}})
    storage.write_bytes("config.yaml", to_yaml(settings).encode())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    log = folder / "serve.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "serve", "--run", str(folder / "run"), f"serve.port={port}", *overrides],
        stderr=log.open("w"), start_new_session=True,
    )  # fmt: skip
    try:
        _until_ready(process, port, log)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            client.request("GET", "/readyz")
            if client.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            client.close()
        time.sleep(0.2)
    raise RuntimeError(f"the endpoint did not start: {log.read_text()}")


if __name__ == "__main__":
    main()
