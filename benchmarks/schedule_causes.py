"""Simulated: how much of what `schedule_sim` loses to the bound comes from lengths that nobody knows beforehand.

`python -m benchmarks.schedule_causes [--json]`. Every figure is a makespan over the same bound, a median of the seeds:

- `symoe`: the policy, which knows nothing of a single row (as in `schedule_sim`);
- `guessed`, `known`: the same policy where rows come longest first by a guess of their lengths, which goes with the
  truth by 0.5 on a log scale, or by the truth itself; what starts at once is dealt evenly over the hosts;
- `even`: what is left to lose if everything is known but which row is long: each expert's rows are dealt evenly over
  the best number of hosts, the long ones first on each, and the hosts are packed without a gap or a second load;
- `free loads`: the policy where loads take no time, over the bound of that machine.

The second table is `symoe` for other spreads of the lengths.
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

from benchmarks.schedule_sim import SEATS, SEEDS, SIGMA, TASKS, experts_of
from symoe_ray.bounds import lower_bound_s
from symoe_ray.scheduling import Costs, GroupView
from symoe_ray.simulation import SimulatedGroup, simulate
from symoe_ray.water_filling import hosts_wanted

SLOTS = (1, 2, 4, 8, 64)
GUESS_CORRELATION = 0.5
SIGMAS = (0.3, 0.45, 0.8)
NO_LOAD_S = 1e-3
_HALVINGS = 40


def main() -> None:
    """Print both tables, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    table = sys.stderr if parser.parse_args().json else sys.stdout
    names = ("symoe", "guessed", "known", "even", "free_loads")
    print(f"simulated: over the bound\n{'task':<10}{'gpus':>6}" + "".join(f"{n:>12}" for n in names), file=table)
    cases = [
        _told(task, slots, causes(questions, slots), table) for task, questions in TASKS.items() for slots in SLOTS
    ]
    print(f"symoe by sigma of the lengths\n{'task':<10}{'gpus':>6}" + "".join(f"{s:>12}" for s in SIGMAS), file=table)
    by_sigma = [_told(task, n, spreads(questions, n), table) for task, questions in TASKS.items() for n in SLOTS]
    print(json.dumps({"benchmark": "schedule_causes", "simulated": True, "sigma": SIGMA, "cases": cases,
                      "by_sigma": by_sigma}))  # fmt: skip


def _told(task: str, slots: int, ratios: dict[str, float], table: TextIO) -> dict[str, object]:
    print(f"{task:<10}{slots:>6}" + "".join(f"{ratio:>12.3f}" for ratio in ratios.values()), file=table, flush=True)
    return {"gpus": slots, "task": task, **{name: round(ratio, 4) for name, ratio in ratios.items()}}


def causes(questions: int, slots: int) -> dict[str, float]:
    """The first table's figures of one cell."""
    found: dict[str, list[float]] = {name: [] for name in ("symoe", "guessed", "known", "even", "free_loads")}
    for seed in SEEDS:
        groups = experts_of(questions * SEATS, seed)
        bound_s = lower_bound_s(groups, slots)
        free = [replace(g, cost=replace(g.cost, load_s=NO_LOAD_S)) for g in groups]
        guessed, known = (dealt(groups, seed, slots, correlation) for correlation in (GUESS_CORRELATION, 1.0))
        for name, rows in (("symoe", groups), ("guessed", guessed), ("known", known)):
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


def dealt(groups: Sequence[SimulatedGroup], seed: int, slots: int, correlation: float) -> list[SimulatedGroup]:
    """The same rows, guessed longest first; those that fit into the first batches are dealt over the hosts wanted."""
    random = np.random.default_rng(seed)
    views = [
        GroupView(key=g.key, rows=g.rows, tokens=round(g.rows * g.mean_tokens), longest_tokens=g.longest_tokens,
                  capacity=g.capacity)
        for g in groups
    ]  # fmt: skip
    costs = Costs(by_key={g.key: g.cost for g in groups}, default=groups[0].cost)
    hosts = hosts_wanted(views, costs, slots=slots, capacity=groups[0].capacity)
    return [_longest_first(g, random, correlation, hosts.get(g.key, 1)) for g in groups]


def _longest_first(
    group: SimulatedGroup, random: np.random.Generator, correlation: float, hosts: int
) -> SimulatedGroup:
    logs = np.log([tokens for tokens, _ in group.cohorts])
    noise = random.normal(0.0, np.sqrt(1 - correlation**2), len(logs))
    guesses = correlation * (logs - logs.mean()) / max(logs.std(), 1e-9) + noise
    order = np.argsort(-guesses, kind="stable")
    first, rest = order[: hosts * group.capacity], order[hosts * group.capacity :]
    places = [*(place for host in range(hosts) for place in first[host::hosts]), *rest]
    return replace(group, cohorts=tuple(group.cohorts[place] for place in places))


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
