"""What a zygote does with the frames that it gets, without vLLM: what it would import is replaced."""

from __future__ import annotations

import math
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import zygote
from actors.protocol import MAX_PACKET, Learn, ZygoteReady, decode, encode_packet
from actors.zygote import ToDo

ENGINES: list[dict[str, object]] = [{"model": "/models/a"}, {"model": "/models/b"}]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def test_learning_is_answered_before_any_tokenizer_is_read(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[list[str]] = []
    monkeypatch.setattr(zygote, "learn", lambda modules: imported.append(modules) or "")
    monkeypatch.setattr(zygote, "_has_gpus", lambda: False)
    ours, theirs = ends
    answers: list[object] = []
    monkeypatch.setattr(zygote, "prepare", lambda _: answers.append(decode(ours.recv(MAX_PACKET))) or "")
    todo = ToDo()
    ours.send(encode_packet(Learn(modules=["json"], engines=ENGINES)))
    assert zygote._obey(theirs, todo)
    assert todo.is_left
    zygote._do_next(theirs, todo)
    assert imported == [["json"]]
    assert answers == [ZygoteReady(seconds=0.0)]
    assert (todo.asked, list(todo.engines)) == (False, ENGINES[1:]), "the first one follows at once"


def test_one_engine_is_prepared_at_a_time_and_nothing_is_said_while_forking_stays_safe(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[dict[str, Any]] = []
    monkeypatch.setattr(zygote, "prepare", lambda args: prepared.append(args) or "")
    ours, theirs = ends
    todo = ToDo(engines=deque(ENGINES))
    zygote._do_next(theirs, todo)
    assert (prepared, list(todo.engines)) == (ENGINES[:1], ENGINES[1:])
    with pytest.raises(BlockingIOError):
        ours.recv(MAX_PACKET)


def test_a_zygote_that_must_not_fork_any_more_says_so_and_prepares_nothing_else(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote, "prepare", lambda args: "the zygote has 2 threads")
    ours, theirs = ends
    todo = ToDo(engines=deque(ENGINES))
    zygote._do_next(theirs, todo)
    assert decode(ours.recv(MAX_PACKET)) == ZygoteReady(seconds=0.0, unusable="the zygote has 2 threads")
    assert not todo.is_left


def test_a_zygote_ends_when_the_other_side_has_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    ours.close()
    assert not zygote._obey(theirs, ToDo())


class TestOnGpus:
    """What might initialise CUDA is tried in a child; here threads stand for CUDA."""

    SPOILS = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"

    @pytest.fixture(autouse=True)
    def gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zygote, "_has_gpus", lambda: True)
        monkeypatch.setattr(zygote, "_settle", lambda: "")
        monkeypatch.setattr(zygote, "_left_out", set())

    def test_a_module_that_spoils_is_left_to_the_engines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        for name, text in (("symoe_good", ""), ("symoe_spoils", self.SPOILS)):
            (tmp_path / f"{name}.py").write_text(text)
        assert zygote.learn(["symoe_good", "symoe_spoils"]) == ""
        assert "symoe_good" in sys.modules
        assert "symoe_spoils" not in sys.modules
        assert "zygote: symoe_spoils is left to the engines: the zygote has 2 threads" in capfd.readouterr().err

    def test_a_module_that_imports_one_left_out_before_is_left_out_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        for name, text in (("symoe_spoils_2", self.SPOILS), ("symoe_uses_2", "import symoe_spoils_2")):
            (tmp_path / f"{name}.py").write_text(text)
        assert zygote.learn(["symoe_spoils_2"]) == zygote.learn(["symoe_uses_2"]) == ""
        assert not {"symoe_spoils_2", "symoe_uses_2"} & sys.modules.keys()
        assert "symoe_uses_2 is left to the engines: it imports symoe_spoils_2" in capfd.readouterr().err

    def test_few_are_tried_before_the_next_look_at_what_is_asked_and_the_last_ones_are_answered(
        self, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[int] = []
        monkeypatch.setattr(zygote, "learn", lambda modules: tried.append(len(modules)) or "")
        ours, theirs = ends
        todo = ToDo(modules=deque(f"m{i}" for i in range(zygote.TRIED_AT_ONCE + 3)), asked=True, deadline=math.inf)
        zygote._do_next(theirs, todo)
        with pytest.raises(BlockingIOError):
            ours.recv(MAX_PACKET)
        zygote._do_next(theirs, todo)
        assert tried == [zygote.TRIED_AT_ONCE, 3]
        assert decode(ours.recv(MAX_PACKET)) == ZygoteReady(seconds=0.0)
        assert not todo.is_left

    def test_imports_that_take_too_long_are_left_to_the_engines(
        self, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[list[str]] = []
        monkeypatch.setattr(zygote, "learn", lambda modules: tried.append(modules) or "")
        ours, theirs = ends
        todo = ToDo(modules=deque(["m"]), asked=True, deadline=time.monotonic() - 1)
        zygote._do_next(theirs, todo)
        assert tried == [[]]
        assert decode(ours.recv(MAX_PACKET)) == ZygoteReady(seconds=0.0)

    @pytest.mark.parametrize("spoils", [False, True])
    def test_an_engine_is_prepared_where_that_does_no_harm(self, spoils: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        prepared: list[dict[str, Any]] = []

        def prepare(args: dict[str, Any]) -> None:
            prepared.append(args)
            if spoils:
                exec(self.SPOILS)

        monkeypatch.setattr(zygote, "_prepare", prepare)
        assert zygote.prepare(ENGINES[0]) == ""
        assert prepared == ([] if spoils else ENGINES[:1])

    def test_a_gpu_that_a_child_cannot_use_is_a_reason_to_fork_nothing(self) -> None:
        pytest.importorskip("torch")
        assert zygote.gpu_in_a_fork("cpu") == ""
        assert zygote.gpu_in_a_fork("no such device").startswith("a forked process cannot use the GPU: RuntimeError: ")
