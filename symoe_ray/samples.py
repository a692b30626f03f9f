"""samples_<task>.jsonl in lm-eval's keys: one line per question with its final answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from symoe_ray.core import Draft, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question with its final answer, as a line of samples_<task>.jsonl needs it.

    `prompt` is what the aggregator was asked, `text` what it wrote, `value` the answer read from that ("" if none).
    """

    question: Question
    prompt: str
    text: str
    value: str
    correct: bool
    correct_reference: bool
    drafts: tuple[Draft, ...] = ()


def sample_lines(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    """The lines of samples_<task>.jsonl in lm-eval's keys, one per sample, numbered in the order given."""
    for number, sample in enumerate(samples):
        question = sample.question
        doc = {
            "id": question.id,
            "question": question.text,
            "choices": list(question.choices),
            "gold": list(question.gold),
            "category": question.category,
        }
        target = " or ".join(question.gold)
        yield {
            "doc_id": number,
            "doc": doc,
            "target": target,
            "arguments": {"gen_args_0": {"arg_0": sample.prompt}},
            "resps": [[sample.text]],
            "filtered_resps": [sample.value],
            "filter": "none",
            "metrics": ["acc"],
            "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _sha256(sample.prompt),
            "target_hash": _sha256(target),
            "acc": float(sample.correct),
            "symoe": {
                "correct_reference": sample.correct_reference,
                "drafts": [_draft_entry(draft) for draft in sample.drafts],
            },
        }


def _draft_entry(draft: Draft) -> dict[str, Any]:
    return {
        "expert": draft.expert,
        "sample": draft.sample,
        "answer": draft.answer,
        "truncated": draft.truncated,
        "failure": draft.failure.kind if draft.failure else "",
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
