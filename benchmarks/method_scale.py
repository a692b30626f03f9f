"""Whether the method's own arithmetic keeps up: recruiting up to a million questions, evaluating 20,000, on one core.

`python -m benchmarks.method_scale [--json] [--questions 10000 100000 1000000] [--embed]`: sixteen experts with scores
on 1,500 validation skills; each question has four of 20,000 test skills. "map" embeds each distinct skill once (by a
made-up embedding, with --embed by the method's own) and finds its nearest; "recruit" scores, weighs, draws, trims and
redraws; "table" makes the rows that are written, with the random baseline's draws. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from symoe_ray.core import Profile
from symoe_ray.outcomes import MethodOutcomes
from symoe_ray.recruit_tables import recruits_table
from symoe_ray.results import build_results
from symoe_ray.routing import Recruits, RoutingRules, random_seats, recruit
from symoe_ray.skills import Embed, map_skills

EXPERTS, KNOWN, SKILLS, PER_QUESTION, PART_ROWS = 16, 1500, 20_000, 4, 10_000
EVALUATED, METHODS = 20_000, 22
T = TypeVar("T")


def main() -> None:
    """Print seconds and peak memory for each number of questions, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--questions", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--embed", action="store_true", help="embed with all-MiniLM-L6-v2")
    options = parser.parse_args()
    table, cases = sys.stderr if options.json else sys.stdout, []
    embed = real_embedder() if options.embed else made_up_embedding
    print(f"{'questions':>11}{'map s':>9}{'recruit s':>11}{'table s':>9}{'peak GiB':>10}", file=table)
    for questions in options.questions:
        case = measure(questions, embed)
        print(
            f"{questions:>11,}{case['map_s']:>9.2f}{case['recruit_s']:>11.2f}{case['table_s']:>9.2f}"
            f"{case['peak_bytes'] / 2**30:>10.2f}",
            file=table,
            flush=True,
        )
        cases.append(case)
    seconds = timed(evaluate)[1]
    print(f"evaluation of {METHODS} methods x {EVALUATED:,} questions: {seconds:.2f} s", file=table)
    evaluated = {"questions": EVALUATED, "methods": METHODS, "seconds": round(seconds, 3)}
    embedding = "MiniLM" if options.embed else "made-up"
    found = {"experts": EXPERTS, "embedding": embedding, "cases": cases, "evaluate": evaluated}
    print(json.dumps({"benchmark": "method_scale", **found}))


def measure(questions: int, embed: Embed) -> Mapping[str, float]:
    """One size, from skills to rows."""
    rng = np.random.default_rng(0)
    known = [f"validation skill {n}" for n in range(KNOWN)]
    skills = [f"test skill {n}" for n in range(SKILLS)]
    profiles = [
        Profile(expert=f"expert{n:02}", task="t", graded=KNOWN, scores=dict(zip(known, row.tolist(), strict=True)))
        for n, row in enumerate(rng.integers(-3, 6, (EXPERTS, KNOWN)))
    ]
    chosen = rng.integers(0, SKILLS, (questions, PER_QUESTION)).tolist()
    asked = [(f"q{n}", [skills[i] for i in row]) for n, row in enumerate(chosen)]
    rules = RoutingRules(
        k=3, router="reference", sampler="hash", replacement=True, trim_threshold=0.05, no_skills="competence", seed=0
    )
    mapping, map_s = timed(lambda: map_skills((s for _, own in asked for s in own), known, embed))
    made, recruit_s = timed(lambda: recruit(asked, mapping, profiles, rules))
    _, table_s = timed(lambda: write(made))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "questions": questions, "map_s": round(map_s, 3), "recruit_s": round(recruit_s, 3),
        "table_s": round(table_s, 3), "peak_bytes": peak, "redrawn_seats": made.counts.get("redrawn_seats", 0),
    }  # fmt: skip


def write(made: Recruits) -> None:
    """Every row of the table, in parts as a run has them."""
    for start in range(0, len(made.questions), PART_ROWS):
        rows = range(start, min(start + PART_ROWS, len(made.questions)))
        ids = [question_id for question_id, _ in made.questions[start : rows.stop]]
        recruits_table(made, rows, [0] * len(rows), random_seats(ids, EXPERTS, 3, 0))


def evaluate() -> None:
    """results.json of many methods: intervals, paired differences, tests."""
    rng = np.random.default_rng(1)
    names = ["symoe", "best_single", "majority", "oracle", *(f"expert:expert{n:02}" for n in range(EXPERTS))]
    names += [f"baseline{n}" for n in range(METHODS - len(names))]
    build_results(
        task="t", methods=[made_up_outcomes(name, rng) for name in names], grading={}, engine={}, config={},
        versions={}, counts={}, notes={}, date=0.0,
    )  # fmt: skip


def made_up_outcomes(name: str, rng: np.random.Generator) -> MethodOutcomes:
    """A method that is right on four questions in ten."""
    no, cost = np.zeros(EVALUATED, dtype=bool), np.ones(EVALUATED, dtype=np.int64)
    correct = rng.random(EVALUATED) < 0.4
    return MethodOutcomes(
        method=name, seed=0, answer=np.full(EVALUATED, "A"), correct=correct, correct_default=correct,
        correct_reference=correct, unparsed=no, truncated=no, failed=no, calls=cost, prompt_tokens=cost,
        completion_tokens=cost, seconds=cost.astype(float),
    )  # fmt: skip


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """What a function returns and the processor seconds that it took."""
    started = time.process_time()
    value = function()
    return value, time.process_time() - started


def made_up_embedding(texts: Sequence[str]) -> np.ndarray:
    """Vectors of MiniLM's width."""
    return np.random.default_rng(0).standard_normal((len(texts), 384))


def real_embedder() -> Embed:
    """The method's embedding model."""
    from actors.embedding import MINILM_IDS, embedder

    return embedder(MINILM_IDS[0])


if __name__ == "__main__":
    main()
