"""The zygote: a single-threaded process that has imported vLLM and forks engines from it.

It touches neither CUDA nor OpenMP, because a child would inherit their broken state. `python -m actors.zygote FD`,
where FD is a SOCK_SEQPACKET socket: a frame is a packet, so that an engine's own socket can travel with the frame that
asks for it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors import engine
from actors.harmless_imports import import_harmless
from actors.orphans import die_with_parent, maker_of
from actors.protocol import MAX_PACKET, Exited, Fork, Forked, Frame, Learn, ZygoteReady, decode, encode_packet
from actors.trials import tried

TRIAL_S = 120.0
TRIED_AT_ONCE = 16
_left_out: set[str] = set()


@dataclass(slots=True)
class ToDo:
    """What the zygote was told to get ready for and has not: imports, as long as a `Learn` waits, then engines.

    Imports that are not done at the `deadline` (of `time.monotonic`) are left to the engines.
    """

    modules: deque[str] = field(default_factory=deque)
    engines: deque[dict[str, Any]] = field(default_factory=deque)
    asked: bool = False
    deadline: float = 0.0

    @property
    def is_left(self) -> bool:
        """Whether there is anything."""
        return self.asked or bool(self.engines)

    def next_modules(self) -> list[str]:
        """The imports to do before the next look at what has ended: all, or a few where each is tried in a child."""
        if time.monotonic() > self.deadline:
            self.modules.clear()
        count = min(TRIED_AT_ONCE, len(self.modules)) if _has_gpus() else len(self.modules)
        return [self.modules.popleft() for _ in range(count)]


def preload() -> str:
    """Import what engines need. The reason why forking is not safe here, or ""."""
    import vllm.engine.arg_utils
    import vllm.v1.engine.llm_engine
    import vllm.v1.executor.uniproc_executor  # noqa: F401  (imported for the children)
    from vllm.platforms import current_platform

    from actors.vllm_patches import patch_zygote

    worker = "cpu" if current_platform.is_cpu() else "gpu"
    for name in (f"vllm.v1.worker.{worker}_worker", f"vllm.v1.worker.{worker}_model_runner"):
        importlib.import_module(name)
    patch_zygote()
    return _unfit() or (gpu_in_a_fork(current_platform.device_type) if _has_gpus() else "")


def _unfit() -> str:
    """Why what is forked now would not be sound, or ""."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import has initialised CUDA"
    count = len(list(Path("/proc/self/task").iterdir()))
    return "" if count == 1 else f"the zygote has {count} threads"


def gpu_in_a_fork(device: str) -> str:
    """Why a forked process cannot use the GPU, which this one leaves alone; "" if it can, or the GPU is full now."""

    def use() -> str:
        import torch

        try:
            torch.ones(1, device=device).item()
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
        return ""

    _, why = tried([use], TRIAL_S)
    return f"a forked process cannot use the GPU: {why}" if why else ""


def learn(modules: list[str]) -> str:
    """Import modules that an engine needed, but for those that would spoil the zygote: engines import them as before.

    The reason why forking is no longer safe, or "".
    """
    if _has_gpus():
        for name, why in import_harmless(modules, _unfit, TRIAL_S, _left_out).items():
            _left_out.add(name)
            _leave(name, why)
    else:
        for name in modules:
            with contextlib.suppress(Exception):  # what cannot be imported here is imported by the engine as before
                importlib.import_module(name)
    return _settle()


def _has_gpus() -> bool:
    """Whether an import may initialise CUDA, so that it pays to try it in a child first."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


def _leave(name: object, why: str) -> None:
    print(f"zygote: {name} is left to the engines: {why}", file=sys.stderr, flush=True)


def prepare(args: dict[str, Any]) -> str:
    """Read the tokenizer and import the model class of an engine with these arguments, where vLLM keeps them.

    Not where that would spoil the zygote. The reason why forking is no longer safe, or "".
    """

    def attempt() -> str:
        _prepare(args)
        return _unfit()

    why = tried([attempt], TRIAL_S)[1] if _has_gpus() else ""
    if why:
        _leave(args.get("model"), why)
    else:
        _prepare(args)
    return _settle()


def _prepare(args: dict[str, Any]) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.tokenizers.registry import cached_tokenizer_from_config

    with contextlib.suppress(Exception):  # what is wrong with an engine is said when it starts
        config = EngineArgs(**args).create_model_config()
        cached_tokenizer_from_config(config)
        config.registry.resolve_model_cls(config.architectures, model_config=config)


def _settle() -> str:
    """Keep what there is out of the children's garbage collections. The reason why forking is not safe, or ""."""
    gc.collect()
    gc.freeze()
    return _unfit()


def serve(control: socket.socket) -> None:
    """Fork engines as asked until the other side goes away."""
    started = time.monotonic()
    unusable = preload()
    gc.collect()
    gc.freeze()
    wake, waker = socket.socketpair()
    for end in (wake, waker):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    _tell(control, ZygoteReady(seconds=time.monotonic() - started, unusable=unusable))
    todo = ToDo()
    while True:
        for ready in select.select([control, wake], [], [], 0 if todo.is_left else None)[0]:
            if ready is wake:
                wake.recv(4096)
                _reap(control)
            elif not _obey(control, todo, wake, waker):
                return
        if todo.is_left:
            _do_next(control, todo)


def _do_next(control: socket.socket, todo: ToDo) -> None:
    """A piece of the imports, or the next engine: engines that end meanwhile are reaped after that.

    Forks are asked for when all imports are done. The first engine follows these at once: it may be the next fork's.
    """
    unusable = ""
    if todo.asked:
        unusable = learn(todo.next_modules())
        todo.asked = bool(todo.modules) and not unusable
        if not todo.asked:
            _tell(control, ZygoteReady(seconds=0.0, unusable=unusable))
    if todo.engines and not (todo.asked or unusable):
        unusable = prepare(todo.engines.popleft())
        if unusable:
            _tell(control, ZygoteReady(seconds=0.0, unusable=unusable))
    if unusable:
        todo.modules.clear()
        todo.engines.clear()


def _obey(control: socket.socket, todo: ToDo, *private: socket.socket) -> bool:
    data, descriptors, _, _ = socket.recv_fds(control, MAX_PACKET, 1)
    if not data:
        return False
    frame = decode(data)
    if isinstance(frame, Learn):
        todo.modules.extend(frame.modules)
        todo.engines.extend(frame.engines)
        todo.asked, todo.deadline = True, time.monotonic() + TRIAL_S
    elif isinstance(frame, Fork):
        with socket.socket(fileno=descriptors[0]) as channel:
            zygote, pid = os.getpid(), os.fork()
            if pid == 0:
                _become_engine(channel, control, *private, zygote=zygote, log=frame.log)
        _tell(control, Forked(pid=pid))
    return True


def _tell(control: socket.socket, frame: Frame) -> None:
    control.send(encode_packet(frame))


def _become_engine(channel: socket.socket, *parents: socket.socket, zygote: int, log: str) -> None:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent(zygote)
        for parent in parents:
            parent.close()
        if log:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
        engine.serve(channel)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(control, Exited(pid=pid, status=os.waitstatus_to_exitcode(status)))


def main() -> None:
    """Serve the control socket whose file descriptor is the first argument."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        die_with_parent(maker_of(control))
        serve(control)


if __name__ == "__main__":
    main()
