"""One expert's training on a small scale: the loss falls, and what is saved is what transformers loads."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.models import local_path
from symoe_ray.demo.items import Dice
from symoe_ray.demo_task import generate
from symoe_ray.grading import grade
from symoe_ray.settings import DemoTask
from training.__main__ import save
from training.drafting import Draft, Drafted, contested, editing_examples, made_up, recruited
from training.examples import answered, question_of, training_items, worked_answer
from training.experts import untrained
from training.learning import Course, batches, learn, loss_of
from training.tokenizer import END, PAD, chat


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(local_path("package:demo-generalist") / "tokenizer.json"))


def test_training_lowers_the_loss_and_the_saved_folder_gives_the_same_logits(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    examples = [answered(question_of(*pair), pair[1]) for pair in islice(training_items("test", ["capitals"]), 256)]
    model = untrained("travel", tokenizer.get_vocab_size(), tokenizer.token_to_id(END), tokenizer.token_to_id(PAD))
    tokens, wanted = next(batches(tokenizer, iter(examples), 8, seed=1))
    before = loss_of(model, tokens, wanted).item()
    said: list[str] = []
    learn(model, tokenizer, iter(examples), Course(steps=4, batch=8), said.append)
    assert loss_of(model, tokens, wanted).item() < 0.95 * before
    assert said[-1].startswith("step 4 of 4: loss ")

    save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": "user", "content": examples[0].prompt}], add_generation_prompt=True, return_dict=False
    )
    assert ids == tokenizer.encode(chat(examples[0].prompt)).ids
    with torch.inference_mode():
        row = torch.tensor([ids])
        assert torch.allclose(loaded(row).logits.float(), model(row).logits.float(), atol=0.02)


def test_an_editing_example_shows_three_drafts() -> None:
    ((family, item),) = islice(training_items("test", ["subtraction"]), 1)
    question = question_of(family, item)
    right, wrong = worked_answer(question, item), "The answer is 7."
    drafts = [Draft(text=wrong, right=False, insider=False) for _ in range(4)]
    drafts.append(Draft(text=right, right=True, insider=True))
    drafted = [Drafted(question=question, item=item, drafts=tuple(drafts))]
    for example in islice(editing_examples(drafted, "test"), 50):
        assert [f"### Response {number}\n" in example.prompt for number in (1, 2, 3, 4)] == [True, True, True, False]
        assert example.prompt.endswith("The answer is N.") or "where X is the letter" in example.prompt
    for (case,) in (recruited(drafted), contested(drafted)):
        assert (case.any_right, case.majority) == (True, False)
        assert case.example.prompt.count(right) == 1
        assert grade(case.example.reply, question).correct


def test_made_up_examples_show_right_drafts_or_none_and_ask_no_question_of_validation_or_test() -> None:
    dice = Dice("test")
    examples = [made_up(dice) for _ in range(200)]
    shown = sum(f"{example.reply}\n\n###" in example.prompt for example in examples)
    assert 100 < shown < 200
    asked = {question.text for split in generate(DemoTask(validation=600, test=600)) for question in split}
    assert not any(text in example.prompt for example in examples for text in asked)
