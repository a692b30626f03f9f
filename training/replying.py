"""Sampled replies of a trained expert, without an engine: as drafts, and for the accuracy that training reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from training.tokenizer import END, PAD, chat

_MAX_TOKENS = 128
_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Writer:
    """An expert that can be asked."""

    model: Any
    tokenizer: Tokenizer


def write_replies(writer: Writer, prompts: Sequence[str], *, seed: int, batch: int = 192) -> list[str]:
    """One sampled reply to each prompt, in order."""
    torch.manual_seed(seed)
    tokenizer = writer.tokenizer
    pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    encoded = [encoding.ids for encoding in tokenizer.encode_batch([chat(prompt) for prompt in prompts])]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    replies = [""] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(encoded[index]) for index in chosen)
        rows = torch.tensor([[pad] * (width - len(encoded[index])) + encoded[index] for index in chosen])
        with torch.inference_mode():
            made = writer.model.generate(
                rows, attention_mask=(rows != pad).long(), do_sample=True, temperature=_TEMPERATURE, top_k=0, top_p=1.0,
                max_new_tokens=_MAX_TOKENS, eos_token_id=end, pad_token_id=pad,
            )  # fmt: skip
        for index, row in zip(chosen, made[:, width:].tolist(), strict=True):
            replies[index] = tokenizer.decode(row, skip_special_tokens=True)
    return replies
