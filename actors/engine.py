"""The engine process: one synchronous vLLM `LLMEngine` in a step loop, spoken to over a socket. It ends whole.

Started by `os.fork` in the zygote, or spawned: `python -m actors.engine FD`.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from actors.orphans import die_with_parent, maker_of
from actors.protocol import (
    Abort,
    Beat,
    Delta,
    Fatal,
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
from actors.vllm_metrics import counted

BEAT_S = 1.0
TAKING_S = 0.01  # for frames between two steps: a GPU waits while their prompts are tokenized
SPACED = "one two\n three"


class PromptTooLongError(ValueError):
    """The prompt leaves no room for an answer."""


def serve(sock: socket.socket) -> None:
    """Build the engine that the first frame asks for, then work until the other side goes away."""
    _first_to_die()
    before = set(sys.modules)
    started = time.monotonic()
    try:
        frame = receive(sock)
        if not isinstance(frame, LoadEngine):
            raise TypeError(f"the first frame must load an engine, not {type(frame).__name__}")
        engine = _Engine(frame)
    except EOFError:
        return
    except Exception as error:  # any failure of vLLM's start is the slot's to judge
        _give_up(sock, "load_failed", error)
        return
    send(
        sock,
        Ready(
            pid=os.getpid(),
            seconds=time.monotonic() - started,
            max_num_seqs=engine.max_num_seqs,
            max_model_len=engine.max_model_len,
            kv_tokens=engine.kv_tokens,
            modules=sorted(m for m in sys.modules.keys() - before if "." not in m or m.startswith(("vllm.", "torch."))),
        ),
    )
    try:
        _work(sock, engine)
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # a broken engine ends with its process; the slot starts another
        _give_up(sock, "engine_failed", error)


def _work(sock: socket.socket, engine: _Engine) -> None:
    last_beat = time.monotonic()
    while True:
        _readable(sock, wait=not engine.busy)
        until = time.monotonic() + TAKING_S
        while (time.monotonic() < until or not engine.busy) and _readable(sock, wait=not engine.busy):
            for answer in engine.take(receive(sock)):
                send(sock, answer)
        for answer in engine.step():
            send(sock, answer)
        if time.monotonic() - last_beat > BEAT_S:
            last_beat = time.monotonic()
            send(sock, Beat(tokens=engine.tokens, running=len(engine.requests)))


def _readable(sock: socket.socket, *, wait: bool) -> bool:
    return bool(select.select([sock], [], [], None if wait else 0)[0])


def _give_up(sock: socket.socket, kind: str, error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)
    with suppress(OSError):
        send(sock, Fatal(kind=kind, message=f"{type(error).__name__}: {error}"[:2000]))


def _first_to_die() -> None:
    """Let the kernel's out-of-memory killer take this process before the slot or Ray."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


class _Engine:
    """vLLM's engine and the submissions it works on."""

    def __init__(self, load: LoadEngine) -> None:
        if load.cores:
            os.sched_setaffinity(0, load.cores)
        import torch

        if load.threads:
            torch.set_num_threads(load.threads)
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from actors.vllm_patches import patch_engine

        patch_engine()
        args: Any = load.args
        self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**args), enable_multiprocessing=False)
        self._tokenizer: Any = self._engine.get_tokenizer()
        _check_spaces(self._tokenizer)
        self._load = load
        config = self._engine.vllm_config
        self.max_num_seqs = int(config.scheduler_config.max_num_seqs)
        self.max_model_len = int(config.model_config.max_model_len)
        self.kv_tokens = int(getattr(config.cache_config, "kv_cache_size_tokens", 0) or 0)
        self.requests: dict[str, Generate] = {}
        self._partial: dict[str, _Partial] = {}
        self.tokens = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._engine.has_unfinished_requests())

    def take(self, frame: Frame) -> list[Frame]:
        """Take a command; what must be answered at once."""
        match frame:
            case Generate():
                return self._submit(frame)
            case Abort(tags=tags):
                self._engine.abort_request([t for t in tags if self._forget(t)])
                if not self.busy:
                    self._engine.step()  # only a step lets go of what the last requests held, and counts them out
                return []
            case Measure():
                return [Measured(running=sum(r.n for r in self.requests.values()), families=counted())]
            case Probe():
                return [self._probe()]
            case Reload(model=model):
                self._idle("reload weights")
                self._engine.collective_rpc("reload_weights", kwargs={"weights_path": model})
            case Sleep():
                self._idle("sleep")
                self._engine.sleep(level=1)
            case Wake():
                self._engine.wake_up()
            case _:
                raise TypeError(f"an engine does not understand {type(frame).__name__}")
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache, which belongs to the weights that made it, cannot be emptied")
        return [Obeyed()]

    def _submit(self, request: Generate) -> list[Frame]:
        try:
            prompt = self._prompt(request)
            self._engine.add_request(
                request.tag,
                {"prompt_token_ids": prompt},
                self._parameters(request, len(prompt)),
                lora_request=self._adapter(request.lora),
            )
            self.requests[request.tag] = request
        except PromptTooLongError as error:
            return [Rejected(tag=request.tag, kind="prompt_too_long", message=str(error))]
        except Exception as error:  # one bad request is a failed row, not a failed engine
            return [Rejected(tag=request.tag, kind="bad_request", message=f"{type(error).__name__}: {error}"[:500])]
        return []

    def _idle(self, purpose: str) -> None:
        if self.busy:
            raise RuntimeError(f"the engine cannot {purpose}: {len(self.requests)} requests are running")

    def _adapter(self, name: str) -> Any:
        """vLLM's handle of an adapter; None where requests need none."""
        if name not in self._load.loras and not name:
            return None
        from vllm.lora.request import LoRARequest

        number = list(self._load.loras).index(name) + 1
        return LoRARequest(name or "no adapter", number, self._load.loras[name])

    def _probe(self) -> Probed:
        """What the engine, left alone, answers to the canary."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        from actors.canary import NUM_TOKENS, PROMPT

        self._idle("be probed")
        prompt = list(self._tokenizer.encode(PROMPT))[: self.max_model_len - NUM_TOKENS]
        parameters = SamplingParams(
            temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self._engine.add_request("canary", {"prompt_token_ids": prompt}, parameters, lora_request=self._adapter(""))
        outputs: list[Any] = []
        while self.busy:
            outputs += self._engine.step()
        self._engine.reset_prefix_cache()
        (answer,) = outputs[0].outputs
        chosen = zip(answer.token_ids, answer.logprobs, strict=True)
        return Probed(tokens=tuple(answer.token_ids), logprobs=tuple(at[token].logprob for token, at in chosen))

    def step(self) -> list[Frame]:
        """One step of the engine: the submissions that it finished, and what it added to those that are streamed."""
        if not self.busy:
            return []
        frames: list[Frame] = []
        for output in self._engine.step():
            request = self.requests.get(output.request_id)
            if request is None:
                continue
            outputs = output.outputs
            if request.stream:
                frames += self._streamed(request, outputs)
                outputs = self._partial[request.tag].samples()
            if output.finished:
                self._forget(request.tag)
                samples = _samples(request, outputs)
                self.tokens += sum(s.tokens for s in samples)
                frames.append(
                    Finished(tag=request.tag, prompt_tokens=len(output.prompt_token_ids or ()), samples=samples)
                )
        return frames

    def _streamed(self, request: Generate, outputs: Any) -> list[Frame]:
        self._partial.setdefault(request.tag, _Partial()).add(outputs)
        texts = [(request.first_sample + o.index, o.text) for o in outputs if o.text]
        return [Delta(tag=request.tag, texts=texts)] if texts else []

    def _forget(self, tag: str) -> bool:
        self._partial.pop(tag, None)
        return self.requests.pop(tag, None) is not None

    def _prompt(self, request: Generate) -> list[int]:
        encoded = self._tokenizer.apply_chat_template(
            request.messages,
            chat_template=self._load.chat_template or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,  # a list from every tokenizer, Mistral's own included
            **self._load.chat_template_kwargs,
        )
        ids = list(encoded)
        bos = self._tokenizer.bos_token_id
        if self._load.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        if len(ids) >= self.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens, and the context of {self.max_model_len} leaves no room to answer"
            )
        return ids

    def _parameters(self, request: Generate, prompt_tokens: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        return SamplingParams(
            n=_distinct(request),
            seed=request.seed + request.first_sample,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=min(request.max_tokens, self.max_model_len - prompt_tokens),
            repetition_penalty=request.repetition_penalty,
            min_p=request.min_p,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            stop=list(request.stop),
            output_kind=RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(json=request.json_schema) if request.json_schema else None,
        )


@dataclass(slots=True)
class _Written:
    """One sample of a streamed submission, in the fields of vLLM's own outputs."""

    index: int
    text: str = ""
    finish_reason: str | None = None
    token_ids: list[int] = field(default_factory=list)


class _Partial:
    """What a streamed submission has come to: vLLM's deltas added up."""

    def __init__(self) -> None:
        self._samples: dict[int, _Written] = {}

    def add(self, outputs: Any) -> None:
        """Take the deltas of one step."""
        for output in outputs:
            sample = self._samples.setdefault(output.index, _Written(output.index))
            sample.text += output.text
            sample.token_ids += output.token_ids
            sample.finish_reason = output.finish_reason or sample.finish_reason

    def samples(self) -> list[_Written]:
        """The samples so far."""
        return [self._samples[index] for index in sorted(self._samples)]


def _distinct(request: Generate) -> int:
    """How many samples must be generated: one where greedy decoding makes them all alike (vLLM refuses n > 1 there)."""
    return 1 if request.temperature == 0 else request.n


def _samples(request: Generate, outputs: Any) -> list[Sample]:
    """A submission's samples. Copies of a greedy one cost no tokens."""
    made = [
        Sample(
            index=request.first_sample + o.index,
            text=o.text,
            finish_reason=o.finish_reason or "",
            tokens=len(o.token_ids),
        )
        for o in outputs
    ]
    copies = range(request.first_sample + len(made), request.first_sample + request.n)
    return made + [msgspec.structs.replace(made[0], index=i, tokens=0) for i in copies]


def _check_spaces(tokenizer: Any) -> None:
    """ValueError for a tokenizer that loses the spaces of a text: all answers would be to another question."""
    ids = tokenizer.encode(SPACED, add_special_tokens=False)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if len(text.split()) < len(SPACED.split()):
        raise ValueError(f"the tokenizer ({type(tokenizer).__name__}) reads {SPACED!r} as {text!r}")


def main() -> None:
    """Serve the socket whose file descriptor is the first argument."""
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        die_with_parent(maker_of(sock))
        serve(sock)


if __name__ == "__main__":
    main()
