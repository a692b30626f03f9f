"""One expert's training: batches of examples of like length, AdamW for vectors and Muon for matrices, on a CPU."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from training.examples import Example
from training.tokenizer import END, PAD, chat

_SORTED_TOGETHER = 16  # batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How long and how fast an expert learns."""

    steps: int
    batch: int = 24
    peak_rate: float = 0.02  # of Muon
    vector_rate: float = 0.003  # of AdamW, which learns embeddings and norms
    warm_up: float = 0.03  # share of the steps


def learn(
    model: Any, tokenizer: Tokenizer, examples: Iterator[Example], course: Course, say: Callable[[str], None],
    seed: int = 0,
) -> None:  # fmt: skip
    """Train the model in place: the next token of the replies, in bfloat16 where torch holds that to be safe."""
    optimizers = _optimizers(model, course)
    started, losses = time.monotonic(), []
    model.train()
    ready = itertools.islice(batches(tokenizer, examples, course.batch, seed), course.steps)
    for step, (tokens, wanted) in enumerate(ready, 1):
        loss = loss_of(model, tokens, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * _schedule(step / course.steps, course.warm_up)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0 or step == course.steps:
            mean, seconds = sum(losses) / len(losses), time.monotonic() - started
            say(f"step {step} of {course.steps}: loss {mean:.4f}, {seconds:.0f} s")
            losses.clear()
    model.eval()


def loss_of(model: Any, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean over the wanted tokens; -1 wants none."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=tokens).last_hidden_state
        places = wanted >= 0
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[places]).float(), wanted[places])


def _optimizers(model: Any, course: Course) -> list[tuple[Any, float]]:
    """Each with its peak rate. Muon is made for the matrices inside the layers."""
    inside = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    known = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        (torch.optim.Muon(inside, lr=course.peak_rate, weight_decay=0.0, adjust_lr_fn="original"), course.peak_rate),
        (torch.optim.AdamW(rest, lr=course.vector_rate, betas=(0.9, 0.98), weight_decay=0.0), course.vector_rate),
    ]


def _schedule(done: float, warm_up: float) -> float:
    """Up in a line, then down along half a cosine to nothing."""
    if done < warm_up:
        return done / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def batches(
    tokenizer: Tokenizer, examples: Iterator[Example], size: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and wanted next tokens (-1: not learned), padded on the right; rows of a batch are of like length."""
    order = torch.Generator().manual_seed(seed)
    pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    while True:
        chunk = list(itertools.islice(examples, _SORTED_TOGETHER * size))
        prompts = tokenizer.encode_batch([chat(example.prompt) for example in chunk])
        replies = tokenizer.encode_batch([example.reply for example in chunk])
        rows = sorted(
            ((prompt.ids, [*reply.ids, end]) for prompt, reply in zip(prompts, replies, strict=True)),
            key=lambda row: len(row[0]) + len(row[1]),
        )
        for index in torch.randperm(_SORTED_TOGETHER, generator=order).tolist():
            yield _padded(rows[index * size : (index + 1) * size], pad)


def _padded(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) + len(reply) for prompt, reply in rows) - 1
    tokens = torch.full((len(rows), width), pad)
    wanted = torch.full((len(rows), width), -1)
    for index, (prompt, reply) in enumerate(rows):
        tokens[index, : len(prompt) + len(reply) - 1] = torch.tensor((prompt + reply)[:-1])
        wanted[index, len(prompt) - 1 : len(prompt) + len(reply) - 1] = torch.tensor(reply)
    return tokens, wanted
