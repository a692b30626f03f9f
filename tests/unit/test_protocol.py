"""Frames over socket pairs: every kind there and back, in pieces, and at the end of a connection."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from actors.protocol import (
    MAX_PACKET,
    Abort,
    Beat,
    Delta,
    Exited,
    Fatal,
    Finished,
    Fork,
    Forked,
    Frame,
    Generate,
    Learn,
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
    ZygoteReady,
    decode,
    encode,
    encode_packet,
    read_frame,
    receive,
    send,
)
from symoe_ray.serving.engine_metrics import Family

FRAMES: list[Frame] = [
    LoadEngine(args={"model": "/m", "max_model_len": 8, "x": None, "y": [1.5, {"z": True}]}, cores=(0, 3), cuda=True),
    LoadEngine(args={}, loras={"A": "/a", "": "/zero"}, chat_template="{{ é }}", add_bos=True, fake={"load_s": 0.5}),
    LoadEngine(args={}, chat_template_kwargs={"enable_thinking": False, "documents": [{"text": "é"}]}),
    Generate(
        tag="t1", messages=[{"role": "user", "content": "why?\n∑"}], n=2, first_sample=1, seed=2**31 - 1,
        temperature=0.7, top_p=1.0, top_k=0, max_tokens=5, repetition_penalty=1.0, stop=("\n", "</s>"),
        min_p=0.05, presence_penalty=1.5, frequency_penalty=-0.5,
    ),
    Abort(tags=["t1", "t2"]),
    Ready(pid=7, seconds=0.5, max_num_seqs=32, max_model_len=2048, modules=["json"]),
    Delta(tag="t1", texts=[(0, "so "), (1, "é")]),
    Finished(
        tag="t1", prompt_tokens=3,
        samples=[Sample(index=i, text="x" * i, finish_reason="stop", tokens=i) for i in range(3)],
    ),
    Rejected(tag="t1", kind="prompt_too_long", message="9 > 8"),
    Beat(tokens=2**40, running=0),
    Reload(model="/m"),
    Sleep(),
    Wake(),
    Probe(),
    Obeyed(),
    Measure(),
    Measured(running=2, families=[Family(name="x", kind="gauge", help="h", samples=(("x", {"a": "b"}, 1.5),))]),
    Probed(tokens=(1, 2**17), logprobs=(-0.5, float("-inf"))),
    Fatal(kind="load_failed", message="no such model"),
    Fork(log="/tmp/slot.log"),
    Learn(modules=[]),
    Forked(pid=8),
    Exited(pid=8, status=-9),
    ZygoteReady(seconds=2.5, unusable="two threads"),
]  # fmt: skip


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    for end in (left, right):
        end.settimeout(10.0)
    with left, right:
        yield left, right


def test_every_kind_of_frame_is_tried() -> None:
    assert {type(frame) for frame in FRAMES} == set(Frame.__args__)


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_comes_back_equal(frame: Frame, pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    send(left, frame)
    back = receive(right)
    assert back == frame
    assert type(back) is type(frame)
    assert decode(encode_packet(frame)) == frame


def test_frames_come_in_order_whatever_pieces_they_travel_in(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    data = b"".join(encode(frame) for frame in FRAMES)

    def trickle() -> None:
        for start in range(0, len(data), 7):
            left.sendall(data[start : start + 7])

    thread = threading.Thread(target=trickle)
    thread.start()
    assert [receive(right) for _ in FRAMES] == FRAMES
    thread.join()


def test_a_frame_larger_than_any_buffer_arrives_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    frame = Fatal(kind="long", message="x" * (4 * MAX_PACKET))
    thread = threading.Thread(target=send, args=(left, frame))
    thread.start()
    assert receive(right) == frame
    thread.join()


@pytest.mark.parametrize("sent", [0, 2, 4, -1], ids=["nothing", "half a length", "a length", "all but a byte"])
def test_the_end_of_the_connection_is_an_eof_error(sent: int, pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.sendall(encode(Beat(tokens=1, running=1))[:sent])
    left.close()
    with pytest.raises(EOFError, match="closed the connection"):
        receive(right)


def test_what_was_sent_before_the_end_is_still_read(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    send(left, Fatal(kind="last", message="words"))
    left.close()
    assert receive(right) == Fatal(kind="last", message="words")
    with pytest.raises(EOFError):
        receive(right)


def test_sending_to_nobody_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    right.close()
    with pytest.raises(ConnectionError):
        send(left, Beat(tokens=0, running=0))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa4type\xa7Unknown", msgspec.msgpack.encode({"type": "Beat"})])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(data)


def test_a_stream_gives_frames_and_then_its_end() -> None:
    async def read() -> list[Frame]:
        reader = asyncio.StreamReader()
        reader.feed_data(b"".join(encode(frame) for frame in FRAMES) + encode(FRAMES[0])[:-1])
        reader.feed_eof()
        found = [await read_frame(reader) for _ in FRAMES]
        with pytest.raises(asyncio.IncompleteReadError):
            await read_frame(reader)
        return found

    assert asyncio.run(read()) == FRAMES
