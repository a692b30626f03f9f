"""Make the experts of the demo pool: `python -m training [NAME ...] [--out FOLDER] [--share S]`.

Without names, all of them, the generalist first, from which the others start. The result depends on nothing but this
folder, the task's code and the versions of torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from symoe_ray.core import Question
from symoe_ray.demo.items import Dice, Item, draw
from symoe_ray.demo_task import FAMILIES
from symoe_ray.grading import grade
from training.examples import Example, aggregated, annotated, answered, question_of, training_items, worked_answer
from training.experts import CONTEXT, EXPERTS, Expert, start_from, untrained
from training.learning import Course, learn
from training.replying import write_replies
from training.tokenizer import END, PAD, make_tokenizer, save_tokenizer

_OUT = Path(__file__).resolve().parent.parent / "actors" / "demo_models"
_DRAFTED_QUESTIONS = 600


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the named experts and say how many validation questions of each family they get right."""
    parser = argparse.ArgumentParser(prog="python -m training", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERTS))
    parser.add_argument("--out", type=Path, default=_OUT, help="where the model folders go")
    parser.add_argument("--share", type=float, default=1.0, help="of the training steps, to try things out")
    parser.add_argument("--threads", type=int, default=0, help="of torch (0: its own choice)")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in EXPERTS]:
        parser.error(f"no such expert: {', '.join(unknown)}; there are {', '.join(EXPERTS)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    started = time.monotonic()
    for name in given.names or EXPERTS:
        train(name, given.out, given.share)
    print(f"all done in {time.monotonic() - started:.0f} s")
    return 0


def train(name: str, out: Path, share: float) -> None:
    """Train one expert, with the tokenizer of the one that it starts from, and write its folder."""
    expert = EXPERTS[name]
    tokenizer = Tokenizer.from_file(str(out / expert.base / "tokenizer.json")) if expert.base else make_tokenizer()
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    examples = _editing(name) if expert.aggregates else _examples(name, expert)
    model = untrained(name, tokenizer.get_vocab_size(), end, pad)
    if expert.base:
        start_from(model, _trained(out / expert.base))
    print(f"{name}: {expert.model_type}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million weights")
    course = Course(steps=max(1, round(share * expert.steps)), batch=expert.batch)
    learn(model, tokenizer, examples, course, lambda line: print(f"{name}: {line}", flush=True))
    save(model, tokenizer, out / name)
    if not expert.aggregates:
        report(name, model, tokenizer)


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write an ordinary model folder, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.name_or_path = ""
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, CONTEXT)


def report(name: str, model: Any, tokenizer: Tokenizer, questions: int = 24) -> None:
    """Print the accuracy on validation contents by family."""
    asked = _asked("validation", questions * len(FAMILIES))
    replies = write_replies(model, tokenizer, [answered(*pair).prompt for pair in asked], seed=0)
    right = Counter(q.category for (q, _), reply in zip(asked, replies, strict=True) if grade(reply, q).correct)
    print(f"{name}: right of {questions}: " + ", ".join(f"{family} {right[family]}" for family in FAMILIES), flush=True)


def _examples(name: str, expert: Expert) -> Iterator[Example]:
    dice = Dice("examples", name)
    for family, item in training_items(name, expert.families):
        question = question_of(family, item)
        yield annotated(question, item) if expert.annotates and dice.chance(0.2) else answered(question, item)


def _editing(name: str) -> Iterator[Example]:
    """Aggregations of simulated drafts: right ones, and worked answers to other questions for wrong ones."""
    dice = Dice("editing", name)
    for family, item in training_items(name, list(FAMILIES)):
        question = question_of(family, item)
        drafts = [worked_answer(question, item)] * dice.pick((0, 1, 1, 1, 2, 2, 2, 3, 3))
        while len(drafts) < 3:
            other = family if dice.chance(0.6) else dice.pick(list(FAMILIES))
            wrong = draw(FAMILIES[other], dice, "training")
            drafts.append(worked_answer(question_of(other, wrong), wrong))
        yield aggregated(question, item, dice.shuffled(drafts))


def _trained(folder: Path) -> Any:
    """A trained expert in float32."""
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


def _asked(split: Any, count: int) -> list[tuple[Question, Item]]:
    """Questions of all families in turn."""
    dice = Dice("asked", split)
    families = itertools.islice(itertools.cycle(FAMILIES), count)
    return [(question_of(family, item), item) for family in families for item in [draw(FAMILIES[family], dice, split)]]


if __name__ == "__main__":
    sys.exit(main())
