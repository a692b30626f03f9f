"""Engines with less of us around them, as programs for the comparison of one engine's speed.

`python -m benchmarks.contenders.plain_engines FD` is an engine process as `actors.engine`, with vLLM as it is.
`python -m benchmarks.contenders.plain_engines default ENGINE_ARGS` is a `vllm.LLM` that stays loaded: it reads a
batch from each line of its input and writes a line with what it took; `LoadedVllm` is the other end of that.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE

from benchmarks.contenders.peers import END_S, ENVIRONMENT, REPOSITORY, TIMEOUT_S, Mark, PeerError
from symoe_ray.core import Request


class LoadedVllm:
    """A `vllm.LLM` in processes of its own. It is loaded once and stands still (SIGSTOP) while others have their turn,
    since processes that wait for work may spin. PeerError, with the end of its log, where it ends early.
    """

    def __init__(self, engine_args: dict[str, object]) -> None:
        self._engine_args = engine_args
        self._process: asyncio.subprocess.Process | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="vllm-", suffix=".log")  # noqa: SIM115  (closed with the engine)

    async def begin(self) -> None:
        """Load it at the first turn, let it go on at the others."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.contenders.plain_engines", "default", json.dumps(self._engine_args),
                cwd=REPOSITORY, env={**os.environ, **ENVIRONMENT}, start_new_session=True,
                stdin=PIPE, stdout=PIPE, stderr=self._log,
            )  # fmt: skip
            await self._line()
        self._signal(signal.SIGCONT)

    async def answer(self, requests: Sequence[Request]) -> Mark:
        """Answer requests, all at once; timed in its own process, without the way there and back."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([asdict(r) for r in requests]).encode() + b"\n")
        await self._process.stdin.drain()
        return Mark(**json.loads(await self._line()))

    async def rest(self) -> None:
        """Stand still."""
        self._signal(signal.SIGSTOP)

    async def close(self) -> None:
        """End it: it leaves when its input ends, and what is then left of its session is killed."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._signal(signal.SIGCONT)
            self._process.stdin.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), END_S)
            self._signal(signal.SIGKILL)
            await self._process.wait()
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), TIMEOUT_S)
        if not line:
            raise PeerError(f"vllm.LLM has ended\n{Path(self._log.name).read_text(errors='replace')[-6000:]}")
        return line


def serve_default(engine_args: str) -> None:
    """Load, say so with an empty line, then answer batches. Everything else that is printed goes to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams

    llm = LLM(**json.loads(engine_args))
    print(file=answers, flush=True)
    for line in sys.stdin:
        requests = json.loads(line)
        sampling = [
            SamplingParams(temperature=s["temperature"], seed=r["seed"], max_tokens=s["max_tokens"])
            for r, s in ((r, r["sampling"]) for r in requests)
        ]
        started = time.time()
        outputs = llm.chat([r["messages"] for r in requests], sampling, use_tqdm=False)
        mark = Mark(
            started=started, finished=time.time(),
            prompt_tokens=sum(len(o.prompt_token_ids or ()) for o in outputs),
            completion_tokens=sum(len(o.outputs[0].token_ids) for o in outputs),
        )  # fmt: skip
        print(json.dumps(asdict(mark)), file=answers, flush=True)


def serve_unpatched() -> None:
    """An engine process without the version-bound changes of `actors.vllm_patches`."""
    from actors import engine, vllm_patches

    vllm_patches.TRIED_ON = ("no version",)
    engine.main()


if __name__ == "__main__":
    if sys.argv[1] == "default":
        serve_default(sys.argv[2])
    else:
        serve_unpatched()
