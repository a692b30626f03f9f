"""The released code's behaviour, written anew from its description, and a folder of made-up files in its formats."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Scores = Mapping[str, Mapping[str, int]]  # expert -> skill -> score
TOPICS = ("algebra", "law", "optics", "virology", "ethics")


def released_draws(profiles: Scores, keywords: Iterable[Sequence[str]], seed: int) -> list[list[str]]:
    """Three experts for each question's mapped keywords, `profiles` in file-name order; ZeroDivisionError as there."""
    draw = random.Random(seed)
    strength = [sum(scores.values()) for scores in profiles.values()]
    if min(strength) < 0:
        strength = [value - min(strength) + 1 for value in strength]
    squares = [value ** (1 / 0.5) for value in strength]
    gamma = {name: value / sum(squares) for name, value in zip(profiles, squares, strict=True)}
    drawn = []
    for own in keywords:
        totals: dict[str, int] = {}
        for keyword in own:
            ranked = sorted(((n, s[keyword]) for n, s in profiles.items() if keyword in s), key=lambda p: -p[1])
            for name, score in ranked:
                totals[name] = totals.get(name, 0) + score
        if not totals:
            drawn.append(draw.choices(list(profiles), k=3))
            draw.choices(list(profiles), k=1)
            continue
        order = dict(sorted(totals.items(), key=lambda pair: -pair[1]))
        allowed = {n: s for n, s in order.items() if s > 0} or {
            n: s - min(order.values()) + 1 for n, s in order.items()
        }
        products = [score * gamma[name] for name, score in allowed.items()]
        drawn.append(draw.choices(list(allowed), [p / sum(products) for p in products], k=3))
    return drawn


@dataclass
class ReleasedFolder:
    """What the released scripts would leave in `skills/<task>/` for a few experts; each part can be left out."""

    task: str = "MedMCQA"
    experts: tuple[str, ...] = ("Qwen", "LlamaR1", "Llama", "Exaone")
    seeds: tuple[int, ...] = (0, 1)
    aggregator: str = "Exaone"
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    files: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path, *, answers: bool = True) -> Path:
        """All files below `root`; without `answers` only keyword files and profiles. Returns skills/<task>."""
        place = root / "skills" / self.task
        place.mkdir(parents=True)
        train, test = (self._samples(split, count) for split, count in (("train", 12), ("test", 9)))
        test[4]["keywords"] = []
        mapped = [{**row, "keywords": [k.removesuffix("s") for k in row["keywords"]]} for row in test]
        self._json(place, "train_samples_with_keywords_Qwen.json", train)
        self._json(place, "test_samples_with_keywords_Qwen.json", test)
        self._json(place, "test_samples_with_keywords_Qwen_mapped.json", mapped)
        profiles = {expert: self._profile(place, expert, train, answers) for expert in self.experts}
        by_file = {name: profiles[name] for _, name in sorted((f"{name}_profile_", name) for name in profiles)}
        if answers:
            for seed in self.seeds:
                self._seed(place, seed, mapped, released_draws(by_file, [row["keywords"] for row in mapped], seed))
            for number, expert in enumerate(self.experts):
                rows = [{"question": "prompt", "gold_answer": r["gold_answer"], "aggr_output": "(A)"} for r in train]
                self._json(place, f"{expert}_as_aggr_{25.0 + number}.json", rows)
        return place

    def _samples(self, split: str, count: int) -> list[dict[str, Any]]:
        plural = "s" if split == "test" else ""
        return [
            {
                "question": f'A {split} question, "number" {i},\nwith a comma? The options are: '
                f"(A) {i} (B) {i + 1} (C) {i + 2} (D) neither",
                "gold_answer": "ABCD"[i % 4],
                "keywords": [t + plural for t in self.chance.sample(TOPICS if split == "train" else TOPICS[:4], 2)],
            }
            for i in range(count)
        ]

    def _answer(self, gold: str) -> str:
        letter = gold if self.chance.random() < 0.5 else self.chance.choice("ABCD")
        return f'Some "reasoning", at length.\nThe answer is ({letter}).'

    def _profile(self, place: Path, expert: str, train: list[dict[str, Any]], chains: bool) -> dict[str, int]:
        scores: dict[str, int] = {}
        rows = []
        for row in train:
            text = self._answer(row["gold_answer"])
            letter = text[-3]
            correct = int(letter == row["gold_answer"])
            for keyword in row["keywords"]:
                scores[keyword] = scores.get(keyword, 0) + (1 if correct else -1)
            made = {f"reasoning_{expert}": text, f"pred_{expert}": letter, f"is_correct_{expert}": correct}
            rows.append({**row, **made})
        right = sum(row[f"is_correct_{expert}"] for row in rows)
        self._json(place, f"{expert}_profile_{round(right / len(rows) * 100, 2)}.json", scores)
        if chains:
            self._json(place, f"{expert}_CoT.json", rows)
        return scores

    def _seed(self, place: Path, seed: int, mapped: list[dict[str, Any]], drawn: list[list[str]]) -> None:
        rows = [
            {**row, "keywords": str(row["keywords"]), "solvers": str(own)}
            for row, own in zip(mapped, drawn, strict=True)
        ]
        self._csv(place / f"test_samples_with_keywords_and_solvers_seed{seed}.csv", rows)
        for row, own in zip(rows, drawn, strict=True):
            left = Counter(own)
            for expert in own:
                row[f"{expert}_answer_{left[expert]}"] = self._answer(row["gold_answer"])
                left[expert] -= 1
        self._csv(place / f"round0_seed{seed}.csv", rows)
        texts = [self._answer(row["gold_answer"]) for row in mapped]
        right = sum(text[-3] == row["gold_answer"] for text, row in zip(texts, mapped, strict=True))
        accuracy = round(right / len(mapped) * 100, 2)
        self._json(place, f"fixed_{self.aggregator}_round1_seed{seed}_{accuracy}.json", texts)
        self.files[f"accuracy {seed}"] = right / len(mapped)

    def _json(self, place: Path, name: str, value: object) -> None:
        (place / name).write_text(json.dumps(value, indent=4), encoding="utf-8")

    def _csv(self, path: Path, rows: list[dict[str, Any]]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
