"""Simulated: how much of what `schedule_sim` loses to the bound comes from lengths that nobody knows beforehand.

`python -m benchmarks.schedule_causes [--json]`. Every figure is a makespan over the same bound, a median of the seeds:

- `unguessed`: the policy where nothing is known of a single row (as in `schedule_sim`);
- `guessed 0.3`, `0.5`, `0.7`, `known`: the same policy with rows in the order of guesses that go so well with the
  truth on a log scale (0.5 is `symoe` of `schedule_sim`), or in true order;
- `even`: what is left to lose if everything is known but which row is long: each expert's rows are dealt evenly over
  the best number of hosts, the long ones first on each, and the hosts are packed without a gap or a second load;
- `free loads`: the policy where loads take no time, over the bound of that machine.

The second table is `unguessed` for other spreads of the lengths.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TextIO

import numpy as np

from benchmarks.schedule_sim import SEATS, SEEDS, SIGMA, TASKS, experts_of, in_guessed_order
from symoe_ray.bounds import lower_bound_s
from symoe_ray.simulation import SimulatedGroup, simulate

SLOTS = (1, 2, 4, 8, 64)
ORDERS = {"guessed_0.3": 0.3, "guessed_0.5": 0.5, "guessed_0.7": 0.7, "known": 1.0}
CAUSES = ("unguessed", *ORDERS, "even", "free_loads")
SIGMAS = (0.3, 0.45, 0.8)
NO_LOAD_S = 1e-3
_HALVINGS = 40


def main() -> None:
    """Print both tables, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    table = sys.stderr if parser.parse_args().json else sys.stdout
    print(f"simulated: over the bound\n{'task':<10}{'gpus':>6}" + "".join(f"{n:>12}" for n in CAUSES), file=table)
    cases = [
        _told(task, slots, causes(questions, slots), table) for task, questions in TASKS.items() for slots in SLOTS
    ]
    print(f"unguessed, by sigma\n{'task':<10}{'gpus':>6}" + "".join(f"{s:>12}" for s in SIGMAS), file=table)
    by_sigma = [_told(task, n, spreads(questions, n), table) for task, questions in TASKS.items() for n in SLOTS]
    print(json.dumps({"benchmark": "schedule_causes", "simulated": True, "sigma": SIGMA, "cases": cases,
                      "by_sigma": by_sigma}))  # fmt: skip


def _told(task: str, slots: int, ratios: dict[str, float], table: TextIO) -> dict[str, object]:
    print(f"{task:<10}{slots:>6}" + "".join(f"{ratio:>12.3f}" for ratio in ratios.values()), file=table, flush=True)
    return {"gpus": slots, "task": task, **{name: round(ratio, 4) for name, ratio in ratios.items()}}


def causes(questions: int, slots: int) -> dict[str, float]:
    """The first table's figures of one cell."""
    found: dict[str, list[float]] = {name: [] for name in CAUSES}
    for seed in SEEDS:
        groups = experts_of(questions * SEATS, seed)
        bound_s = lower_bound_s(groups, slots)
        free = [replace(g, cost=replace(g.cost, load_s=NO_LOAD_S)) for g in groups]
        found["unguessed"].append(simulate(groups, slots=slots).makespan_s / bound_s)
        for name, correlation in ORDERS.items():
            rows = in_guessed_order(groups, slots, seed, questions, correlation)
            found[name].append(simulate(rows, slots=slots).makespan_s / bound_s)
        found["even"].append(max(1.0, even_s(groups, slots) / bound_s))
        found["free_loads"].append(simulate(free, slots=slots).makespan_s / lower_bound_s(free, slots))
    return {name: statistics.median(ratios) for name, ratios in found.items()}


def spreads(questions: int, slots: int) -> dict[str, float]:
    """The second table's figures of one cell."""
    found = {}
    for sigma in SIGMAS:
        stages = [experts_of(questions * SEATS, seed, sigma) for seed in SEEDS]
        ratios = [simulate(groups, slots=slots).makespan_s / lower_bound_s(groups, slots) for groups in stages]
        found[str(sigma)] = statistics.median(ratios)
    return found


def even_s(groups: Sequence[SimulatedGroup], slots: int) -> float:
    """The least makespan where each group's rows are dealt evenly, in their order, over as many hosts as is best.

    A host takes a step_s for each step of its longest row, or of full batches, and sequence_s for each token.
    """
    first_load = min(g.cost.load_s for g in groups)
    options = [[_hosted(g, hosts) for hosts in range(1, min(slots, g.rows) + 1)] for g in groups if g.rows]

    def fits(makespan_s: float) -> bool:
        possible = [[every_s for last_s, every_s in own if last_s <= makespan_s] for own in options]
        return all(possible) and sum(min(own) for own in possible) <= slots * (makespan_s - first_load)

    low, high = 0.0, first_load + sum(own[0][0] for own in options)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _hosted(group: SimulatedGroup, hosts: int) -> tuple[float, float]:
    """When the last of so many hosts ends, load included, and the seconds that all of them generate."""
    lengths = np.repeat(*np.array(group.cohorts).T).astype(float)
    seconds = [
        group.cost.step_s * max(own.max(), own.sum() / group.capacity) + group.cost.sequence_s * own.sum()
        for own in (lengths[host::hosts] for host in range(hosts))
    ]
    return float(max(seconds)) + group.cost.load_s, float(sum(seconds))


if __name__ == "__main__":
    main()
