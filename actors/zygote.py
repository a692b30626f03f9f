"""The zygote: a single-threaded process that has imported vLLM and forks engines from it.

It touches neither CUDA nor OpenMP, because a child would inherit their broken state. `python -m actors.zygote FD`,
where FD is a SOCK_SEQPACKET socket: a frame is a packet, so that an engine's own socket can travel with the frame that
asks for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from actors import engine
from actors.protocol import MAX_PACKET, Exited, Fork, Forked, Frame, Learn, ZygoteReady, decode, encode_packet

PR_SET_PDEATHSIG = 1


def preload() -> str:
    """Import what engines need. The reason why forking is not safe here, or ""."""
    import torch
    import vllm.engine.arg_utils
    import vllm.v1.engine.llm_engine
    import vllm.v1.executor.uniproc_executor  # noqa: F401  (imported for the children)
    from vllm.platforms import current_platform

    from actors.vllm_patches import patch_zygote

    worker = "cpu" if current_platform.is_cpu() else "gpu"
    for name in (f"vllm.v1.worker.{worker}_worker", f"vllm.v1.worker.{worker}_model_runner"):
        importlib.import_module(name)
    patch_zygote()
    if torch.cuda.is_initialized():
        return "importing vLLM has initialised CUDA"
    return _threads()


def _threads() -> str:
    count = len(list(Path("/proc/self/task").iterdir()))
    return "" if count == 1 else f"the zygote has {count} threads"


def learn(modules: list[str]) -> str:
    """Import modules that an engine needed. The reason why forking is no longer safe, or ""."""
    for name in modules:
        with contextlib.suppress(Exception):  # what cannot be imported here is imported by the engine as before
            importlib.import_module(name)
    return _settle()


def prepare(args: dict[str, Any]) -> str:
    """Read the tokenizer and import the model class of an engine with these arguments, where vLLM keeps them.

    The reason why forking is no longer safe, or "".
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.tokenizers.registry import cached_tokenizer_from_config

    with contextlib.suppress(Exception):  # what is wrong with an engine is said when it starts
        config = EngineArgs(**args).create_model_config()
        cached_tokenizer_from_config(config)
        config.registry.resolve_model_cls(config.architectures, model_config=config)
    return _settle()


def _settle() -> str:
    """Keep what there is out of the children's garbage collections. The reason why forking is not safe, or ""."""
    gc.collect()
    gc.freeze()
    import torch

    return "an import has initialised CUDA" if torch.cuda.is_initialized() else _threads()


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
    expected: deque[dict[str, Any]] = deque()
    while True:
        for ready in select.select([control, wake], [], [], 0 if expected else None)[0]:
            if ready is wake:
                wake.recv(4096)
                _reap(control)
            elif not _obey(control, expected, wake, waker):
                return
        if expected:  # one at a time: a fork that is asked for meanwhile waits for no more than that
            _prepare_next(control, expected)


def _prepare_next(control: socket.socket, expected: deque[dict[str, Any]]) -> None:
    unusable = prepare(expected.popleft())
    if unusable:
        expected.clear()
        _tell(control, ZygoteReady(seconds=0.0, unusable=unusable))


def _obey(control: socket.socket, expected: deque[dict[str, Any]], *private: socket.socket) -> bool:
    data, descriptors, _, _ = socket.recv_fds(control, MAX_PACKET, 1)
    if not data:
        return False
    frame = decode(data)
    if isinstance(frame, Learn):
        _tell(control, ZygoteReady(seconds=0.0, unusable=learn(frame.modules)))
        expected.extend(frame.engines)
    elif isinstance(frame, Fork):
        with socket.socket(fileno=descriptors[0]) as channel:
            pid = os.fork()
            if pid == 0:
                _become_engine(channel, control, *private, log=frame.log)
        _tell(control, Forked(pid=pid))
    return True


def _tell(control: socket.socket, frame: Frame) -> None:
    control.send(encode_packet(frame))


def _become_engine(channel: socket.socket, *parents: socket.socket, log: str) -> None:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
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
        serve(control)


if __name__ == "__main__":
    main()
