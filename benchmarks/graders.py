"""How often three graders read what a careful person reads, on the corpus of hard outputs in tests/data.

`python -m benchmarks.graders [--json]`. `symoe` is ours; `reference` the released code's extractor with its faults;
`lm_eval` the filters of lm-evaluation-harness as its own task files set them, run by its own classes: MMLU-Pro's on
questions with more than four options, GPQA's flexible ones (chain of thought, zero shot) on the others, and AIME's
`process_results` on integers. It gets texts cut at the last `</think>`, as its model classes cut them.

A reading is right if it is the expected letter or integer, or if nothing that the question offers is read where nothing
can be. The parts `held_out_1` and `held_out_2` were written after the extractor had been tuned to all before them; what
it read of them at first sight is in tests/data/README.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from symoe_ray.core import Question
from symoe_ray.grading import grade

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "data" / "grader_corpus.jsonl"
MANY_OPTIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One output: the question it answers (without a text), and what is to be read (None: nothing)."""

    question: Question
    text: str
    expected: str | None
    category: str
    part: str


Reader = Callable[[Item], str]


def main() -> None:
    """Print accuracies by category and part, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    options = parser.parse_args()
    items = read_corpus()
    readers: dict[str, Reader] = {"symoe": read_ours, "reference": read_reference, "lm_eval": lm_eval_reader()}
    right = {name: [agrees(item, reader(item)) for item in items] for name, reader in readers.items()}
    groups = {by: _table(items, right, by) for by in ("kind", "part", "category")}
    if not options.json:
        _print(groups)
    result = {
        "benchmark": "graders",
        "items": len(items),
        "accuracy": {name: round(sum(marks) / len(items), 4) for name, marks in right.items()},
        **{f"by_{by}": rows for by, rows in groups.items()},
        "lm_eval_version": importlib.metadata.version("lm_eval"),
    }
    print(json.dumps(result))


def read_corpus(path: Path = CORPUS) -> list[Item]:
    """All items, in the file's order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Item(
            question=Question(
                id=row["id"], text="", kind=row["kind"], choices=tuple(row["choices"]),
                task="MMLU_Pro" if len(row["choices"]) > MANY_OPTIONS else "other",
            ),
            text=row["text"], expected=row["expected"], category=row["category"], part=row["part"],
        )
        for row in rows
    ]  # fmt: skip


def read_ours(item: Item) -> str:
    """What our grader reads."""
    return grade(item.text, item.question).answer


def read_reference(item: Item) -> str:
    """What the released code's extractor reads."""
    return grade(item.text, item.question).reference_answer


def agrees(item: Item, reading: str) -> bool:
    """Whether a reading is right; one that is no letter offered, or no integer, is none."""
    if item.question.kind == "integer":
        readable = re.fullmatch(r"-?\d+", reading) is not None
    else:
        readable = len(reading) == 1 and reading in item.question.letters
    return (reading if readable else None) == item.expected


def lm_eval_reader() -> Reader:
    """lm-eval's rules, read from the task files of the installed package."""
    import lm_eval

    tasks = Path(lm_eval.__file__).parent / "tasks"
    wide = _filters(tasks / "mmlu_pro" / "_default_template_yaml", "custom-extract")
    narrow = _filters(tasks / "gpqa" / "cot_zeroshot" / "_gpqa_cot_zeroshot_yaml", "flexible-extract")
    score = _module(tasks / "aime" / "utils.py").process_results

    def read(item: Item) -> str:
        text = item.text.rsplit("</think>", 1)[-1].lstrip()
        if item.question.kind == "integer":
            named = [*(item.expected,) * (item.expected is not None), *re.findall(r"-?\d+", text)]
            return next((n for n in named if score({"answer": n}, [text])["exact_match"]), "")
        filters = wide if len(item.question.choices) > MANY_OPTIONS else narrow
        found: Any = [[text]]
        for one in filters:
            found = list(one.apply(found, [{"choices": list(item.question.choices)}]))
        return str(found[0]).strip("()").upper()

    return read


def _filters(path: Path, name: str) -> list[Any]:
    """The filters of a task file's list of that name, as lm-eval makes them."""
    from lm_eval.filters import get_filter  # importing the package registers them

    class Loader(yaml.SafeLoader):
        """Task files name Python functions, which no filter needs."""

    Loader.add_constructor("!function", lambda loader, node: None)
    task = yaml.load(path.read_text(), Loader)
    entries = next(entry["filter"] for entry in task["filter_list"] if entry["name"] == name)
    return [get_filter(e["function"])(**{k: v for k, v in e.items() if k != "function"}) for e in entries]


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("lm_eval_aime", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _table(items: Sequence[Item], right: Mapping[str, Iterable[bool]], by: str) -> dict[str, dict[str, float]]:
    """Group -> its number of items and each grader's accuracy there."""
    keys = [item.question.kind if by == "kind" else getattr(item, by) for item in items]
    sizes = Counter(keys)
    hits = {name: Counter(k for k, mark in zip(keys, marks, strict=True) if mark) for name, marks in right.items()}
    return {
        key: {"items": size} | {name: round(counts[key] / size, 4) for name, counts in hits.items()}
        for key, size in sizes.items()
    }


def _print(groups: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for by, rows in groups.items():
        names = [name for name in next(iter(rows.values())) if name != "items"]
        print(f"{by:<18}{'items':>6}" + "".join(f"{name:>12}" for name in names))
        for key, row in rows.items():
            print(f"{key:<18}{row['items']:>6}" + "".join(f"{100 * row[name]:>11.1f}%" for name in names))
        print()


if __name__ == "__main__":
    main()
