"""An engine process without a model: the engine's protocol, rules and timing, for tests and for fault injection.

`python -m actors.fake_engine FD`. Its weights are the expert's name; with `keeps_weights` a reload is obeyed and
changes nothing, as vLLM's was seen to on the CPU. A prompt that contains `symoe_ray.testing.CRASH` kills the process,
as a poisonous prompt kills a real one. An answer to a `json_schema` is an object, whatever the schema says.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.orphans import die_with_parent, maker_of
from actors.protocol import (
    Abort,
    Beat,
    Delta,
    Finished,
    Frame,
    Generate,
    LoadEngine,
    Measure,
    Measured,
    Obeyed,
    Probe,
    Probed,
    Ready,
    Rejected,
    Reload,
    Sample,
    Sleep,
    Wake,
    receive,
    send,
)
from symoe_ray.testing import CRASH, fake_text, fake_tokens

MAX_NUM_SEQS = 32
_WORD = re.compile(r"\S+\s*")


@dataclass(slots=True)
class _Running:
    """A submission at work. `words` are those that are still to be streamed, with their sample."""

    answer: Finished
    started: float
    due: float
    tokens: int
    words: deque[tuple[int, str]]
    streamed: int = 0

    def written(self, now: float) -> list[tuple[int, str]]:
        """The words that have been written since the last time."""
        share = 1.0 if self.due <= now else (now - self.started) / (self.due - self.started)
        new = [self.words.popleft() for _ in range(min(int(share * self.tokens) - self.streamed, len(self.words)))]
        self.streamed += len(new)
        return new


class _FakeEngine:
    """Submissions that finish when their tokens would have been written; `MAX_NUM_SEQS` of them at once."""

    def __init__(self, load: LoadEngine) -> None:
        self._expert = str(load.fake.get("expert", ""))
        self._tokens_per_s = float(str(load.fake.get("tokens_per_s", 0.0)))
        self._max_model_len = int(str(load.args.get("max_model_len", 8192)))
        self._keeps_weights = bool(load.fake.get("keeps_weights"))
        self._queue: list[Generate] = []
        self._running: dict[str, _Running] = {}
        self.tokens = 0
        time.sleep(float(str(load.fake.get("load_s", 0.0))))  # the time that a load takes is what is simulated

    @property
    def max_model_len(self) -> int:
        """The context, in words."""
        return self._max_model_len

    def take(self, frame: Frame) -> list[Frame]:
        """Take a command; what must be answered at once."""
        if isinstance(frame, Abort):
            self._queue = [g for g in self._queue if g.tag not in frame.tags]
            for tag in frame.tags:
                self._running.pop(tag, None)
        elif isinstance(frame, Generate):
            prompt = _prompt(frame)
            if CRASH in prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            if fake_tokens(prompt) >= self._max_model_len:
                message = f"the prompt has {fake_tokens(prompt)} tokens, the context {self._max_model_len}"
                return [Rejected(tag=frame.tag, kind="prompt_too_long", message=message)]
            self._queue.append(frame)
        elif isinstance(frame, Measure):
            samples = [*(g.n for g in self._queue), *(len(r.answer.samples) for r in self._running.values())]
            return [Measured(running=sum(samples), families=[])]
        elif isinstance(frame, Probe):
            tokens = tuple(fake_text(self._expert, "canary", 0).encode())
            return [Probed(tokens=tokens, logprobs=(0.0,) * len(tokens))]
        elif isinstance(frame, Reload | Sleep | Wake):
            if self._queue or self._running:
                raise RuntimeError(f"the engine is busy: no {type(frame).__name__}")
            if isinstance(frame, Reload) and not self._keeps_weights:
                self._expert = frame.model
            return [Obeyed()]
        return []

    def step(self) -> list[Frame]:
        """Submissions that are finished by now, and what has been written for those that are streamed."""
        now = time.monotonic()
        while self._queue and len(self._running) < MAX_NUM_SEQS:
            self._start(self._queue.pop(0), now)
        new = [(tag, r.written(now)) for tag, r in self._running.items()]
        done = [r for r in self._running.values() if r.due <= now]
        for running in done:
            del self._running[running.answer.tag]
            self.tokens += running.tokens
        return [*(Delta(tag=tag, texts=texts) for tag, texts in new if texts), *(r.answer for r in done)]

    def pause_s(self) -> float | None:
        """How long nothing will happen: until the next word or submission is finished, or for ever."""
        if self._queue and len(self._running) < MAX_NUM_SEQS:
            return 0.0
        due = min((r.due for r in self._running.values()), default=None)
        if due is not None and any(r.words for r in self._running.values()):
            due = min(due, time.monotonic() + 1 / self._tokens_per_s)
        return None if due is None else max(0.0, due - time.monotonic())

    def _start(self, request: Generate, now: float) -> None:
        prompt = _prompt(request)
        seeds = [0 if request.temperature == 0 else request.seed + request.first_sample + i for i in range(request.n)]
        texts = [fake_text(self._expert, prompt, seed) for seed in seeds]
        if request.json_schema:
            texts = [json.dumps({"answer": text}) for text in texts]
        samples = [_sample(request.first_sample + i, text, request.max_tokens) for i, text in enumerate(texts)]
        answer = Finished(tag=request.tag, prompt_tokens=fake_tokens(prompt), samples=samples)
        tokens = sum(s.tokens for s in samples)
        seconds = tokens / self._tokens_per_s if self._tokens_per_s else 0.0
        words = deque((s.index, word) for s in samples if request.stream for word in _WORD.findall(s.text))
        self._running[request.tag] = _Running(answer, now, now + seconds, tokens, words)

    @property
    def running(self) -> int:
        """Submissions at work."""
        return len(self._running)


def _sample(index: int, text: str, max_tokens: int) -> Sample:
    """A sample of at most so many tokens, which are words."""
    if fake_tokens(text) <= max_tokens:
        return Sample(index=index, text=text, finish_reason="stop", tokens=fake_tokens(text))
    cut = "".join(_WORD.findall(text)[:max_tokens]).rstrip()
    return Sample(index=index, text=cut, finish_reason="length", tokens=max_tokens)


def _prompt(request: Generate) -> str:
    return "\n".join(m["content"] for m in request.messages)


def main() -> None:
    """Serve the socket whose file descriptor is the first argument."""
    started = time.monotonic()
    with suppress(OSError):  # as a real one: the kernel takes it before its slot
        Path("/proc/self/oom_score_adj").write_text("1000")
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        die_with_parent(maker_of(sock))
        try:
            _serve(sock, started)
        except (EOFError, ConnectionError):
            return


def _serve(sock: socket.socket, started: float) -> None:
    load = receive(sock)
    if not isinstance(load, LoadEngine):
        raise TypeError(f"the first frame must load an engine, not {type(load).__name__}")
    engine = _FakeEngine(load)
    seconds = time.monotonic() - started
    send(
        sock,
        Ready(
            pid=os.getpid(), seconds=seconds, max_num_seqs=MAX_NUM_SEQS, max_model_len=engine.max_model_len, modules=[]
        ),
    )
    while True:
        if select.select([sock], [], [], engine.pause_s())[0]:
            for answer in engine.take(receive(sock)):
                send(sock, answer)
        for answer in engine.step():
            send(sock, answer)
        send(sock, Beat(tokens=engine.tokens, running=engine.running))


if __name__ == "__main__":
    main()
