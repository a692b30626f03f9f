"""Simulated: how eight GPUs are best cut into slots where two reasoning experts need two GPUs each.

`python -m benchmarks.slot_sizes [--json]`. The experts, tasks and costs of `schedule_sim`, the two reasoning experts on
two GPUs each (with the all-reduces of `symoe_ray/engine_costs.py`). Each figure is the makespan of the policy, seconds,
a median of the seeds. `ours` is the cut that a run makes (`symoe_ray/slot_places.py`), `by_engines` the one by how many
engines there are of each size, and `one_gpu` what the same experts would take on one GPU each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.schedule_sim import (
    EXPERTS,
    KV_BYTES_PER_TOKEN,
    KV_TOKENS,
    MAX_TOKENS,
    MEAN_TOKENS,
    REASONING,
    SEATS,
    SEEDS,
    TASKS,
    WEIGHT_BYTES,
    experts_of,
)  # fmt: skip
from symoe_ray.engine_costs import prior_cost
from symoe_ray.engine_room import PROMPT_TOKENS, Room, running_tokens
from symoe_ray.length_estimates import unseen_tokens
from symoe_ray.simulation import SimulatedGroup, simulate
from symoe_ray.slot_places import Node, SlotRule

GPUS, EACH = 8, 2
CUTS = ((2, 1, 1, 1, 1, 1, 1), (2, 2, 1, 1, 1, 1), (2, 2, 2, 1, 1), (2, 2, 2, 2))


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    table = sys.stderr if parser.parse_args().json else sys.stdout
    ours, by_engines = cut(unseen_tokens(MAX_TOKENS[True]), unseen_tokens(MAX_TOKENS[False])), cut(1, 1)
    print(f"simulated, seconds on {GPUS} GPUs; a run cuts them into {name(ours)}, by engines it was {name(by_engines)}",
          file=table)  # fmt: skip
    columns = ["one_gpu", *map(name, CUTS)]
    print(f"{'task':<10}" + "".join(f"{column:>16}" for column in columns), file=table)
    cases = []
    for task, questions in TASKS.items():
        found = [seconds(questions, (1,) * GPUS, wide=False), *(seconds(questions, slots) for slots in CUTS)]
        print(f"{task:<10}" + "".join(f"{s:>16.1f}" for s in found), file=table, flush=True)
        cases.append({"task": task, **{c: round(s, 1) for c, s in zip(columns, found, strict=True)}})
    print(json.dumps({"benchmark": "slot_sizes", "simulated": True, "ours": name(ours),
                      "by_engines": name(by_engines), "cases": cases}))  # fmt: skip


def name(slots: Sequence[int]) -> str:
    """A cut as a column is called: 2+2+2+1+1."""
    return "+".join(map(str, slots))


def cut(reasoning: float, plain: float) -> tuple[int, ...]:
    """The slots of one node, by what each reasoning and each plain expert counts."""
    rule = SlotRule(demand={(EACH, ""): REASONING * reasoning, (1, ""): (EXPERTS - REASONING) * plain})
    return tuple(sorted((place.gpus for place in rule.places([Node(id="node", gpus=GPUS)])), reverse=True))


def seconds(questions: int, slots: Sequence[int], *, wide: bool = True) -> float:
    """The median makespan of a task's stage."""
    stages = (experts_of(questions * SEATS, seed) for seed in SEEDS)
    return statistics.median(
        simulate([_wide(g) for g in groups] if wide else groups, slots=slots).makespan_s for groups in stages
    )


def _wide(group: SimulatedGroup) -> SimulatedGroup:
    """A reasoning expert on `EACH` GPUs, whose KV cache has what the weights leave of them."""
    if not group.key.startswith("reasoning"):
        return group
    mean = MEAN_TOKENS[True]
    cost = prior_cost(
        WEIGHT_BYTES, KV_BYTES_PER_TOKEN, cuda=True, context_tokens=running_tokens(PROMPT_TOKENS, mean),
        prompt_tokens=PROMPT_TOKENS, answer_tokens=mean, gpus=EACH,
    )  # fmt: skip
    room = Room(256, EACH * KV_TOKENS + (EACH - 1) * WEIGHT_BYTES // KV_BYTES_PER_TOKEN)
    return replace(group, cost=cost, capacity=room.sequences(PROMPT_TOKENS, mean), tensor_parallel_size=EACH)


if __name__ == "__main__":
    main()
