"""The records that cross process lines: frozen, keyword-only, and plain enough for Arrow and msgpack.

One life of a question: `Question` -> `Recruitment` -> one `Request` per expert -> `Completion` per sample -> `Draft`
per seat -> `Answer`. An identifier keeps its name and value on the whole way; failure is data on the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from symoe_ray.fingerprints import digest

Kind = Literal["choice", "integer"]
Role = Literal["system", "user", "assistant"]
_LATER = ("min_p", "presence_penalty", "frequency_penalty")


class InputError(ValueError):
    """What the user gave is wrong: settings, a file or a question. The message names what and where (exit code 2)."""


class ResourceError(RuntimeError):
    """Something the run needs is not here: a model, memory, a GPU, a package (exit code 4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a row has no result.

    `boundary` is where it was met (engine, slot, grading, ...), `kind` a short stable word (prompt_too_long,
    engine_died, bad_request, ...), `message` one line for people, `retryable` whether another attempt may succeed,
    `attempt` how many there had been.
    """

    boundary: str
    kind: str
    message: str
    retryable: bool = False
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a task. `choices` are option texts in letter order (empty unless `kind` is choice).

    `text` is the question without its options. `gold` holds every accepted answer (letters or integers as text); it is
    empty where the answer is not known, which is allowed for test questions only.
    """

    id: str
    text: str
    kind: Kind
    task: str
    choices: tuple[str, ...] = ()
    gold: tuple[str, ...] = ()
    category: str = ""

    @property
    def letters(self) -> str:
        """The letters this question offers: "ABCD" for four options, "" for an integer question."""
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(self.choices)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters in vLLM's spelling; `None` leaves vLLM's own default.

    `max_tokens` is an upper bound: an engine lowers it to what the context leaves.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 4096
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def facts(self) -> dict[str, object]:
        """All of it, less what runs did not know at first where it is off: what they have made keeps its identity."""
        return {key: value for key, value in asdict(self).items() if value or key not in _LATER}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat message."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteServer:
    """Where an expert lives that is served elsewhere, by OpenAI's API; without a `base_url` it is an engine of ours.

    `base_url` is what `/chat/completions` follows, `api_key_env` the environment variable that holds the key ("": none
    is sent). At most `max_concurrency` requests are under way. One that is silent for `timeout_s` has failed; what may
    succeed later is asked `retries` times more. `token_limit` is the field that bounds an answer. `extra_body` are
    further fields of the request; null leaves one out.
    """

    base_url: str = ""
    api_key_env: str = ""
    max_concurrency: int = 8
    timeout_s: float = 300.0
    retries: int = 4
    token_limit: str = "max_tokens"
    extra_body: Mapping[str, object] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, object]:
        """What an expert's answers follow from: which server it is and what it is told, not how often or how fast."""
        return {"base_url": self.base_url, "extra_body": dict(self.extra_body)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSpec:
    """One expert of the pool, as data: nothing is ever decided by the look of its name.

    `model` is a Hugging Face id, a local folder, an address that each node makes a copy of (s3://BUCKET/FOLDER), or
    `package:NAME` for a model that `symoe` prepares itself.
    `think_end_token` ends a reasoning block that must be cut before an answer is read. `chat_template` is Jinja text
    for a base model whose tokenizer has none (in a pool file also the path of a file with it), `chat_template_kwargs`
    what any template is rendered with beside the messages. `add_bos` prepends BOS where a converted tokenizer forgets
    it. `lora` is a PEFT adapter over `model`, found as a model is ("": none). `accelerator_type` is the kind of GPU
    that its engine must have, by Ray's name for it, such as H100 ("": any). With a `server`, `model` is its name there,
    and `max_model_len` the context that the server gives it.
    """

    name: str
    model: str
    revision: str = ""
    max_model_len: int = 8192
    sampling: Sampling = field(default_factory=Sampling)
    tensor_parallel_size: int = 1
    engine_args: Mapping[str, object] = field(default_factory=dict)
    think_end_token: str = ""
    chat_template: str = ""
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    add_bos: bool = False
    trust_remote_code: bool = False
    lora: str = ""
    accelerator_type: str = ""
    server: RemoteServer = field(default_factory=RemoteServer)

    @property
    def is_remote(self) -> bool:
        """Whether a server elsewhere answers for it: it needs no slot, no weights and no memory here."""
        return bool(self.server.base_url)

    @property
    def facts(self) -> dict[str, object]:
        """All that its answers follow from: its fields, of its server the identity alone, if it has one."""
        fields = {key: value for key, value in asdict(self).items() if key not in ("server", "accelerator_type")}
        if not self.chat_template_kwargs:  # a run from before there were any had none
            del fields["chat_template_kwargs"]
        fields["sampling"] = self.sampling.facts
        return fields | ({"server": self.server.identity} if self.is_remote else {})

    @property
    def engine_key(self) -> str:
        """What must be equal for two experts to share one engine: model, revision, template and engine arguments.

        Not `lora`: one engine serves a base model and all adapters over it. Of a remote expert: model and server, with
        all limits, so that each limit holds for those that share it.
        """
        base = self.model.rstrip("/").rsplit("/", 1)[-1].removeprefix("package:")
        if self.is_remote:
            return base + "-" + digest(self.model, asdict(self.server), size=4)
        return base + "-" + digest(
            self.model, self.revision, self.max_model_len, self.tensor_parallel_size,
            dict(self.engine_args), self.trust_remote_code, self.chat_template, self.add_bos,
            *filter(None, [self.accelerator_type, dict(self.chat_template_kwargs)]), size=4,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one expert is asked: `n` samples, numbered from `first_sample`.

    Sample i is generated with seed `seed + i`, so that a missing sample can be made alone.
    """

    id: str
    question_id: str
    expert: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    n: int = 1
    first_sample: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One generated sample, or the reason that there is none. `index` is the sample's number in its request."""

    request_id: str
    index: int
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What an expert is good at on one task: skill -> (right answers - wrong answers), over `graded` questions.

    `failed` questions have no answer; they count against its accuracy alone.
    """

    expert: str
    task: str
    scores: Mapping[str, float]
    graded: int
    correct: int = 0
    failed: int = 0

    @property
    def accuracy(self) -> float:
        """The share of all questions that it was asked and got right; 0 where it was asked none."""
        asked = self.graded + self.failed
        return self.correct / asked if asked else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recruitment:
    """Who answers a question and why.

    `skills` as annotated, `mapped` the validation skill of each, `cosines` of each mapping (None: not known);
    `candidates` in order of weight with their `weights` (summing to 1); `experts` as drawn, k long; `fallback` names
    the rule that was needed where the usual one could not decide ("" if none).
    """

    question_id: str
    skills: tuple[str, ...]
    mapped: tuple[str, ...]
    cosines: tuple[float | None, ...]
    suitability: Mapping[str, float]
    competence: Mapping[str, float]
    candidates: tuple[str, ...]
    weights: tuple[float, ...]
    experts: tuple[str, ...]
    fallback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One seat's answer: the sample's text, and the answer read from it ("" where none could be read)."""

    question_id: str
    expert: str
    sample: int
    text: str
    answer: str = ""
    truncated: bool = False
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The pool's final answer to a question."""

    question_id: str
    text: str
    value: str
    recruitment: Recruitment
    drafts: tuple[Draft, ...]
    usage: Mapping[str, int]
    failure: Failure | None = None
