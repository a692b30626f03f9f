"""What happens to a live question, as events for whoever shows or sends it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from symoe_ray.core import Completion, Draft, Recruitment
from symoe_ray.serving.asking import Grown


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUsage:
    """What a stage has cost: tokens, and seconds from its begin to its end."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A stage has begun: annotate, answer or aggregate, by these experts."""

    stage: str
    experts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recruited:
    """The experts are drawn."""

    recruitment: Recruitment


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """An expert's answers, one for each of its seats, or why there are none."""

    expert: str
    drafts: tuple[Draft, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The end. `usage` is by stage; `warnings` say what went wrong on the way; `reasoning` is by sample."""

    completions: tuple[Completion, ...]
    usage: Mapping[str, StageUsage]
    recruitment: Recruitment | None = None
    drafts: tuple[Draft, ...] = ()
    aggregator: str = ""
    warnings: tuple[str, ...] = ()
    reasoning: Mapping[int, str] = field(default_factory=dict)


Event = Started | Recruited | Drafted | Grown | Answered


class QuestionFailedError(Exception):
    """A question has no answer. `kind`: prompt_too_long, timeout, experts_failed, or that of an engine's failure."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
