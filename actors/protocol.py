"""Frames between a slot, its zygote and its engine: msgpack with a length in front, over inherited socket pairs."""

from __future__ import annotations

import asyncio
import socket
import struct

import msgspec

from symoe_ray.serving.engine_metrics import Family

MAX_PACKET = 1 << 20
_LENGTH = struct.Struct("<I")


class LoadEngine(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Build an engine. `args` are vLLM's engine arguments; the rest is what the engine process itself needs.

    `loras` are the folders of LoRA adapters by name; the one named "" is what a request without an adapter gets.
    """

    args: dict[str, object]
    loras: dict[str, str] = msgspec.field(default_factory=dict)
    chat_template: str = ""
    chat_template_kwargs: dict[str, object] = msgspec.field(default_factory=dict)
    add_bos: bool = False
    threads: int = 0
    cores: tuple[int, ...] = ()
    cuda: bool = False
    fake: dict[str, object] = msgspec.field(default_factory=dict)


class Generate(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Generate samples `first_sample`.. of a request; `tag` names this submission and comes back with its results.

    With `stream` a `Delta` comes after every step that wrote text. `json_schema` is what the answer must follow, as
    JSON text ("": nothing).
    """

    tag: str
    messages: list[dict[str, str]]
    n: int
    first_sample: int
    seed: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    repetition_penalty: float
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    lora: str = ""
    stream: bool = False
    json_schema: str = ""


class Abort(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Stop working on submissions; nothing comes back for them."""

    tags: list[str]


class Ready(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The engine accepts requests. `modules` were imported on the way, which a zygote can do beforehand next time.

    `kv_tokens` fit into its KV cache (0: not known).
    """

    pid: int
    seconds: float
    max_num_seqs: int
    max_model_len: int
    modules: list[str]
    kv_tokens: int = 0


class Sample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One finished sample."""

    index: int
    text: str
    finish_reason: str
    tokens: int


class Delta(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What a step has added to a streamed submission: (sample, text), in order."""

    tag: str
    texts: list[tuple[int, str]]


class Finished(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """All samples of a submission, whole, also where they were streamed."""

    tag: str
    prompt_tokens: int
    samples: list[Sample]


class Rejected(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A submission that the engine cannot work on; the engine goes on."""

    tag: str
    kind: str
    message: str


class Beat(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Sign of life while the engine works: tokens generated since it started, and sequences that are running."""

    tokens: int
    running: int


class Reload(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Take the weights of another checkpoint of the same shape; only while nothing is generated."""

    model: str


class Sleep(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Give the GPU's memory back but for a residue; the weights wait in host memory."""


class Wake(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Come back from sleep."""


class Probe(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Answer the canary: a fixed prompt, greedily, alone."""


class Measure(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Say what is being generated, and what vLLM has counted."""


class Measured(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Samples that are being generated, and vLLM's metrics since the process began."""

    running: int
    families: list[Family]


class Obeyed(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A `Reload`, `Sleep` or `Wake` is done."""


class Probed(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The answer to the canary: token ids and their log probabilities."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class Fatal(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The process gives up."""

    kind: str
    message: str


class Fork(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """To a zygote, with the engine's socket attached: fork one engine process. `log` is the file for its output."""

    log: str


class Learn(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """To a zygote: import these modules, so that the next engine finds them.

    `engines` are vLLM's arguments of engines that will be asked for: the zygote reads their tokenizers when it is idle.
    """

    modules: list[str]
    engines: list[dict[str, object]] = msgspec.field(default_factory=list)


class Forked(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """From a zygote: the engine's process id."""

    pid: int


class Exited(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """From a zygote: an engine process has ended; `status` as of `subprocess.Popen.returncode`."""

    pid: int
    status: int


class ZygoteReady(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """From a zygote: it can fork, or why it must not (then engines are spawned)."""

    seconds: float
    unusable: str = ""


Frame = (
    LoadEngine | Generate | Abort | Ready | Delta | Finished | Rejected | Beat | Fatal
    | Reload | Sleep | Wake | Probe | Obeyed | Probed | Measure | Measured
    | Fork | Learn | Forked | Exited | ZygoteReady
)  # fmt: skip
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    """A frame as it goes over the wire."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def encode_packet(frame: Frame) -> bytes:
    """A frame for a socket that keeps packets apart."""
    return _encoder.encode(frame)


def decode(data: bytes) -> Frame:
    """The frame of a packet."""
    return _decoder.decode(data)


def send(sock: socket.socket, frame: Frame) -> None:
    """Send a frame on a blocking socket."""
    sock.sendall(encode(frame))


def receive(sock: socket.socket) -> Frame:
    """The next frame of a blocking socket; EOFError when the other side has gone."""
    return _decoder.decode(_exactly(sock, _LENGTH.unpack(_exactly(sock, _LENGTH.size))[0]))


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise EOFError("the other side has closed the connection")
        data += piece
    return bytes(data)


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """The next frame of a stream; `asyncio.IncompleteReadError` when the other side has gone."""
    header = await reader.readexactly(_LENGTH.size)
    return _decoder.decode(await reader.readexactly(_LENGTH.unpack(header)[0]))
