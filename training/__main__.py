"""Make the experts of the demo pool: `python -m training [NAME ...] [--out FOLDER] [--share S]`.

Without names, all of them: the generalist first, from which the others start, and the editor last, as it learns from
the others' drafts. The result depends on nothing but this folder, the task's code and the versions of torch,
transformers and tokenizers.
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
from training.drafting import Drafted, contested, editing_examples, recruited, write_drafts
from training.examples import Example, annotated, answered, question_of, recited, training_items
from training.experts import CONTEXT, EXPERTS, Expert, start_from, untrained
from training.learning import Course, learn
from training.replying import Writer, write_replies
from training.tokenizer import END, PAD, make_tokenizer, save_tokenizer

_OUT = Path(__file__).resolve().parent.parent / "actors" / "demo_models"
_DRAFTED_QUESTIONS = 6000


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
    started = time.monotonic()
    expert = EXPERTS[name]
    tokenizer = Tokenizer.from_file(str(out / expert.base / "tokenizer.json")) if expert.base else make_tokenizer()
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    examples = _editing(name, out, share) if expert.aggregates else _examples(name, expert, share)
    model = untrained(name, tokenizer.get_vocab_size(), end, pad)
    if expert.base:
        start_from(model, _trained(out / expert.base).model)
    print(f"{name}: {expert.model_type}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million weights")
    course = Course(steps=max(1, round(share * expert.steps)), batch=expert.batch)
    learn(model, tokenizer, examples, course, lambda line: print(f"{name}: {line}", flush=True))
    save(model, tokenizer, out / name)
    print(f"{name}: made in {time.monotonic() - started:.0f} s", flush=True)
    (report_editing if expert.aggregates else report)(name, out)


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write an ordinary model folder, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.name_or_path = ""
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, CONTEXT)


def report(name: str, out: Path, questions: int = 24) -> None:
    """Print the accuracy on validation contents by family."""
    asked = _asked("validation", questions * len(FAMILIES))
    replies = write_replies(_trained(out / name), [answered(*pair).prompt for pair in asked], seed=0)
    right = Counter(q.category for (q, _), reply in zip(asked, replies, strict=True) if grade(reply, q).correct)
    print(f"{name}: right of {questions}: " + ", ".join(f"{family} {right[family]}" for family in FAMILIES), flush=True)


def report_editing(name: str, out: Path, questions: int = 240) -> None:
    """Print how often the editor is right on validation contents, beside what can be had without it."""
    drafted = _drafted(out, _asked("validation", questions))
    for what, cases in (("as recruited", recruited(drafted)), ("one right of three", contested(drafted))):
        replies = write_replies(_trained(out / name), [case.example.prompt for case in cases], seed=0)
        right = sum(grade(reply, case.question).correct for case, reply in zip(cases, replies, strict=True))
        print(
            f"{name}: {what}: right {right} of {len(cases)}; majority {sum(case.majority for case in cases)}; "
            f"some draft {sum(case.any_right for case in cases)}", flush=True,
        )  # fmt: skip


def _examples(name: str, expert: Expert, share: float) -> Iterator[Example]:
    dice = Dice("examples", name)
    yield from (recited(dice) for _ in range(round(share * expert.recites) * expert.batch))
    for family, item in training_items(name, expert.families):
        question = question_of(family, item)
        yield annotated(question, item) if expert.annotates and dice.chance(0.2) else answered(question, item)


def _editing(name: str, out: Path, share: float) -> Iterator[Example]:
    """What the editor learns from: drafts of the experts that lie in `out` already, and made-up ones."""
    return editing_examples(_drafted(out, _asked("training", max(12, round(share * _DRAFTED_QUESTIONS)))), name)


def _drafted(out: Path, asked: Sequence[tuple[Question, Item]]) -> list[Drafted]:
    writers = {name: _trained(out / name) for name, expert in EXPERTS.items() if not expert.aggregates}
    return write_drafts(writers, {name: EXPERTS[name].families for name in writers}, asked)


def _trained(folder: Path) -> Writer:
    """A trained expert in float32."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="sdpa")
    return Writer(model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json")))


def _asked(split: Any, count: int) -> list[tuple[Question, Item]]:
    """Questions of all families in turn."""
    dice = Dice("asked", split)
    families = itertools.islice(itertools.cycle(FAMILIES), count)
    return [(question_of(family, item), item) for family in families for item in [draw(FAMILIES[family], dice, split)]]


if __name__ == "__main__":
    sys.exit(main())
