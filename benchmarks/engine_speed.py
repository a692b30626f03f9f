"""How many tokens per second one loaded engine generates, and what each of our settings adds to that, on the CPU.

`python -m benchmarks.engine_speed [--json] [--rounds N] [--contenders NAME...]`: SmolLM2-135M-Instruct, 32 requests of
64 tokens at once, on all cores; from the first submit to the last result, tokenizing included. All compute in bfloat16,
or in float32 on a CPU that has none, unless the name says otherwise. Contenders:

- symoe: our engine, with the arguments, threads and environment that a pool gives it, through its engine host.
- the same with one setting taken back. spinning: OpenMP threads spin as long as libgomp has them (300,000 rounds);
  sleeping: not at all; small_pages: no huge pages asked for by either allocator; giving_back: memory that a step has
  used goes back to the system after it; block_128: vLLM's blocks of 128 tokens; one_thread; unpatched: vLLM's code as
  it is; bfloat16 and float32.
- default_vllm: `vllm.LLM` with its defaults, which compile, in processes of its own; default_vllm_eager: the same with
  `enforce_eager=True`, as ours. Timed in its own process, so without the way there and back that ours has.
- symoe_beside, spinning_beside: two of the above while another process keeps one core busy.

Contenders take turns, A B C A B C: in a turn an engine is loaded (vLLM's own is loaded once and stopped between its
turns), answers a small batch of both kinds to warm up, then one greedy and one with seeded sampling at temperature 0.7.
The batches of a round are the same for all, and no question comes twice, so that nobody finds a prompt in its cache;
what prompts have in common, everyone may share. The model has no end-of-sequence token, and the tokens are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from actors.engine_host import EngineHost, HostSettings
from actors.engine_plans import EnginePlans
from actors.launcher import ForkLauncher, SpawnLauncher
from actors.platform import cores_of, cpu_dtype, engine_environment
from benchmarks.contenders.models import SMALL
from benchmarks.contenders.peers import Mark
from benchmarks.contenders.plain_engines import LoadedVllm
from benchmarks.contenders.work import Counts, check_equal, expert_of, questions, requests_of
from symoe_ray.core import Request, Sampling
from symoe_ray.settings import EngineSettings

REQUESTS, MAX_TOKENS, WARM_UP_TOKENS = 32, 64, 8
KINDS = {"greedy": 0.0, "sampled": 0.7}
SPEC = expert_of(SMALL[0], MAX_TOKENS)
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
Batches = dict[str, list[Request]]  # kind -> its requests
Marks = dict[str, dict[str, list[Mark]]]  # contender -> kind -> one for each round


class Engine(Protocol):
    """An engine that takes turns with others."""

    async def begin(self) -> None:
        """Be loaded, and wait for requests."""

    async def answer(self, requests: Sequence[Request]) -> Mark:
        """Answer requests, all at once."""

    async def rest(self) -> None:
        """Use no core until the next turn."""

    async def close(self) -> None:
        """End all processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """An engine of ours: what differs from the way a pool runs it. `beside` a busy process or alone."""

    environment: Mapping[str, str] = field(default_factory=dict)
    settings: EngineSettings = field(default_factory=EngineSettings)
    patched: bool = True
    beside: bool = False


SPINNING = {"GOMP_SPINCOUNT": "300000"}
OURS = {
    "symoe": Ours(),
    "spinning": Ours(environment=SPINNING),
    "sleeping": Ours(environment={"GOMP_SPINCOUNT": "0"}),
    "small_pages": Ours(environment={"THP_MEM_ALLOC_ENABLE": "0", "GLIBC_TUNABLES": ""}),
    "giving_back": Ours(environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
    "block_128": Ours(settings=EngineSettings(block_size=128)),
    "one_thread": Ours(settings=EngineSettings(threads=1)),
    "unpatched": Ours(patched=False),
    "bfloat16": Ours(settings=EngineSettings(dtype="bfloat16")),
    "float32": Ours(settings=EngineSettings(dtype="float32")),
    "symoe_beside": Ours(beside=True),
    "spinning_beside": Ours(environment=SPINNING, beside=True),
}
PEERS: Mapping[str, dict[str, object]] = {"default_vllm": {}, "default_vllm_eager": {"enforce_eager": True}}
KV_BYTES = 1 << 30  # of a peer, whose default is 0.92 of the machine's memory: the most that ours would take


def main() -> None:
    """Print the median tokens per second of each contender, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--contenders", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS], metavar="NAME")
    options = parser.parse_args()
    table = sys.stderr if options.json else sys.stdout
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left behind, stopped as it may be
    marks = asyncio.run(measure(options.contenders, options.rounds))
    speeds = {n: {kind: [_speed(m) for m in made] for kind, made in of.items()} for n, of in marks.items()}
    medians = {n: {kind: round(statistics.median(each), 1) for kind, each in of.items()} for n, of in speeds.items()}
    print("\n".join(_lines(speeds)), file=table)
    print(json.dumps({"benchmark": "engine_speed", "tokens_per_s": medians, "n": options.rounds}))


async def measure(contenders: Sequence[str], rounds: int) -> Marks:
    """What each contender took for its batches; UnequalWorkError where one of them did other work."""
    marks: Marks = {name: {kind: [] for kind in KINDS} for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: _engine(name, folder) for name in contenders}
        try:
            for number in range(rounds):
                batches = _batches(number, MAX_TOKENS)
                for name, engine in engines.items():
                    with _busy_process(name in OURS and OURS[name].beside):
                        made = await _turn(engine, _batches(rounds, WARM_UP_TOKENS), batches)
                    for kind, mark in made.items():
                        marks[name][kind].append(mark)
                        _check(name, mark, marks[contenders[0]][kind][number])
        finally:
            for engine in engines.values():
                await engine.close()
    return marks


async def _turn(engine: Engine, warm_up: Batches, batches: Batches) -> dict[str, Mark]:
    await engine.begin()
    for requests in warm_up.values():
        await engine.answer(requests)
    made = {kind: await engine.answer(requests) for kind, requests in batches.items()}
    await engine.rest()
    return made


def _batches(number: int, max_tokens: int) -> Batches:
    """The batches of a round, all of different questions."""
    first = number * len(KINDS) * REQUESTS
    asked = iter(questions(first + len(KINDS) * REQUESTS)[first:])
    return {
        kind: requests_of(
            replace(SPEC, sampling=Sampling(temperature=temperature, max_tokens=max_tokens)),
            list(islice(asked, REQUESTS)),
        )
        for kind, temperature in KINDS.items()
    }


def _check(name: str, mark: Mark, first: Mark) -> None:
    had = Counts(prompt=mark.prompt_tokens, completion=mark.completion_tokens)
    check_equal(name, had, Counts(prompt=first.prompt_tokens, completion=REQUESTS * MAX_TOKENS))


def _engine(name: str, folder: str) -> Engine:
    if name in PEERS:
        own = {"model": SPEC.model, "kv_cache_memory_bytes": KV_BYTES, "dtype": cpu_dtype("auto")}
        return LoadedVllm(own | PEERS[name])
    return _OurEngine(OURS[name], str(Path(folder, f"{name}.log")))


class _OurEngine:
    """An engine of ours, loaded anew for each turn: threads that spin would spin on after it."""

    def __init__(self, ours: Ours, log: str) -> None:
        environment = {**engine_environment(offline=True), **ours.environment}
        launcher = (
            ForkLauncher(environment, log)
            if ours.patched
            else SpawnLauncher("benchmarks.contenders.plain_engines", environment, log)
        )
        times = HostSettings(
            load_timeout_s=ours.settings.load_timeout_s, stall_timeout_s=ours.settings.stall_timeout_s, reload=False
        )
        self._host = EngineHost([launcher], times)
        self._plan = EnginePlans([SPEC], ours.settings, cores=cores_of(0, 1), cuda=False).plan(SPEC.name)

    async def begin(self) -> None:
        """Load it."""
        await self._host.load(self._plan)

    async def answer(self, requests: Sequence[Request]) -> Mark:
        """Answer requests, all at once."""
        started = time.time()
        answers = [sample for (sample,) in await asyncio.gather(*map(self._host.generate, requests))]
        return Mark(
            started=started, finished=time.time(),
            prompt_tokens=sum(a.prompt_tokens for a in answers),
            completion_tokens=sum(a.completion_tokens for a in answers),
        )  # fmt: skip

    async def rest(self) -> None:
        """Unload it."""
        await self._host.unload()

    async def close(self) -> None:
        """End it and what starts it."""
        await self._host.close()


@contextmanager
def _busy_process(wanted: bool) -> Iterator[None]:
    """Keep one core busy meanwhile, where that is wanted."""
    process = subprocess.Popen([sys.executable, "-c", BUSY]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def _speed(mark: Mark) -> float:
    return mark.completion_tokens / mark.seconds


def _lines(speeds: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """The table: medians of both kinds, how many times the first contender's they are, and all values."""
    first = next(iter(speeds))
    rows = [f"{'tokens/s':<20}" + "".join(f"{kind:>10}{'/ ' + first:>10}" for kind in KINDS) + "  each"]
    for name, of in speeds.items():
        medians = {kind: statistics.median(each) for kind, each in of.items()}
        figures = (f"{m:>10.1f}{m / statistics.median(speeds[first][kind]):>10.3f}" for kind, m in medians.items())
        each = " | ".join(" ".join(f"{s:.0f}" for s in of[kind]) for kind in KINDS)
        rows.append(f"{name:<20}{''.join(figures)}  {each}")
    return rows


if __name__ == "__main__":
    main()
