"""Simulated: the makespan of the scheduling policy over a bound that no schedule can beat, against simpler policies.

`python -m benchmarks.schedule_sim [--json]`. Nothing runs on a GPU: engines are simulated (a step of n sequences takes
a + b n seconds), lengths are drawn, and the policy sees estimates of them: of each group's mean and longest row, and of
each row against the others of its group, by which the rows are put in order as in a run. Sixteen 8B-class experts, the
published task sizes with three seats a question. Every number of the machine follows from the constants below.

`unguessed` is the same policy where nothing is known of single rows. `no_overlap` is the policy where no GPU has room
for a second engine, so that none loads beside the one before it: so it is with vLLM's usual gpu_memory_utilization of
0.9.

The bound knows every length beforehand. The second table says where our slot-seconds go: `work` is what always full
batches would take, `tails` what the engines generate beyond that, `idle` the rest, first loads included. What part of
the loss comes from lengths that nobody knows is measured by `benchmarks.schedule_causes`.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

import numpy as np

from pipelines.sharding import SHARD_ROWS
from symoe_ray.bounds import lower_bound_s
from symoe_ray.engine_costs import prior_cost
from symoe_ray.engine_room import PROMPT_TOKENS, gpu_sequences, running_tokens
from symoe_ray.fixed_schedules import data_parallel, longest_first, round_robin
from symoe_ray.length_guesses import ordered_rows, piece_rows, started_alike
from symoe_ray.scheduling import Costs, GroupView
from symoe_ray.simulation import Outcome, SimulatedGroup, simulate
from symoe_ray.water_filling import hosts_wanted

TASKS = {"mmlu_pro": 2100, "medmcqa": 4183, "gpqa": 198}
SLOTS = (1, 2, 4, 8, 64, 512)
SEEDS = (0, 1, 2, 3, 4)
SEATS = 3
EXPERTS, REASONING = 16, 2
SKEW = 20.0  # the most recruited expert has so many times the seats of the least recruited one

# Llama 3.1 8B: 8.03e9 parameters in bf16, 32 layers x 8 KV heads x 128 x 2 (K and V) x 2 bytes a token.
WEIGHT_BYTES = 16_060_000_000
KV_BYTES_PER_TOKEN = 131_072
# Lengths: the means are 13x apart, cut where conf/pool/paper16.yaml cuts them. Lognormal, as answers' lengths have
# heavy tails (arXiv 2604.00499 fits a log-t distribution). SIGMA is an assumption: three evaluations of MMLU-Pro have
# 0.38 to 0.53 (huggingface.co/datasets/beiningwu7/SER-eval, from mean and deviation of the answers' characters); the
# README shows what other values do.
MEAN_TOKENS = {False: 400, True: 5200}
MAX_TOKENS = {False: 4096, True: 32768}
SIGMA = 0.6
# An 80 GB GPU at 0.9 less the weights and 4 GB of activations and graphs leaves 52 GB, 396,000 tokens of KV cache: room
# for 675 plain sequences at a time, of which an engine takes 512, and for 98 of the reasoning ones.
GPU_BYTES = 80 * 10**9
KV_TOKENS = 396_000
# The policy's estimates. 250 to 500 profile answers tell a mean to sigma / sqrt(n), 3 to 4 percent; other questions may
# differ, so it is off by a lognormal factor of three times that. The longest follows from the mean and the row count
# (the ninth decile), and is off by as much.
ESTIMATE_SIGMA = 0.1
# How well the guess of a row goes with its length, on a log scale; benchmarks/README.md says what that rests on.
CORRELATION = 0.5
TEN_MILLION = 10_000_000
TEN_MILLION_SLOTS = 512
GUESSING: dict[str, Callable[[Sequence[SimulatedGroup], int], Outcome]] = {
    "symoe": lambda groups, slots: simulate(groups, slots=slots),
    "no_overlap": lambda groups, slots: simulate(groups, slots=slots, beside=False),
}
POLICIES = GUESSING | {
    "unguessed": lambda groups, slots: simulate(groups, slots=slots),
    "round_robin": round_robin,
    "longest_first": longest_first,
    "data_parallel": data_parallel,
}


def main() -> None:
    """Print the table and the cost of planning, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--ten-million", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ten_million:
        print(json.dumps(plan_ten_million()))
        return
    table = sys.stderr if options.json else sys.stdout
    print("simulated, not measured: makespan over the lower bound, median of seeds", file=table)
    print(f"{'task':<10}{'gpus':>6}{'bound s':>10}" + "".join(f"{name:>15}" for name in POLICIES), file=table)
    cases: list[dict[str, Any]] = []
    for task, questions in TASKS.items():
        for slots in SLOTS:
            case = measure(questions, slots)
            cases.append({"gpus": slots, "task": task, **case})
            ratios = "".join(f"{case[f'{name}_over_bound']:>15.3f}" for name in POLICIES)
            print(f"{task:<10}{slots:>6}{case['bound_s']:>10.1f}{ratios}", file=table, flush=True)
    print_shares(cases, table)
    scaling = scaling_1_to_4(cases, list(TASKS))
    planned = in_a_process_of_its_own()
    by_task = {task: scaling_1_to_4(cases, [task]) for task in TASKS}
    told = ", ".join(f"{task} {times:.2f}x" for task, times in by_task.items())
    print(f"1 -> 4 GPUs: {scaling:.2f}x for the three tasks together ({told}; published: 2.37x)", file=table)
    print(
        f"10 million requests on {TEN_MILLION_SLOTS} GPUs planned in {planned['seconds']:.1f} s, "
        f"{planned['rss_bytes'] / 1e9:.2f} GB",
        file=table,
    )
    print(json.dumps({"benchmark": "schedule_sim", "simulated": True, "cases": cases, "scaling_1_to_4": scaling,
                      "scaling_by_task": by_task, "planned_10m": planned}))  # fmt: skip


def print_shares(cases: Sequence[Mapping[str, Any]], table: TextIO) -> None:
    """The second table."""
    names = ("work_share", "tails_share", "idle_share")
    print("symoe: shares of all slot-seconds", file=table)
    print(f"{'task':<10}{'gpus':>6}" + "".join(f"{name:>20}" for name in names), file=table)
    for case in cases:
        told = "".join(f"{case[name]:>20.3f}" for name in names)
        print(f"{case['task']:<10}{case['gpus']:>6}{told}", file=table)


def experts_of(requests: int, seed: int, sigma: float = SIGMA) -> list[SimulatedGroup]:
    """Sixteen groups: seats skewed geometrically by `SKEW`, in an order that the seed shuffles over the experts."""
    random = np.random.default_rng(seed)
    weights = SKEW ** (-np.arange(EXPERTS) / (EXPERTS - 1))
    counts = random.multinomial(requests, random.permutation(weights / weights.sum()))
    return [_group(index, int(count), random, sigma) for index, count in enumerate(counts)]


def _group(index: int, rows: int, random: np.random.Generator, sigma: float = SIGMA) -> SimulatedGroup:
    reasoning = index < REASONING
    mean, most = MEAN_TOKENS[reasoning], MAX_TOKENS[reasoning]
    lengths = np.clip(random.lognormal(np.log(mean) - sigma**2 / 2, sigma, rows).round(), 1, most)
    context = running_tokens(PROMPT_TOKENS, mean, sigma)
    cost = prior_cost(
        WEIGHT_BYTES, KV_BYTES_PER_TOKEN, cuda=True, context_tokens=context, prompt_tokens=PROMPT_TOKENS,
        answer_tokens=mean,
    )  # fmt: skip
    wrong = random.lognormal(0.0, ESTIMATE_SIGMA, 2)
    return SimulatedGroup(
        key=f"{'reasoning' if reasoning else 'plain'}-{index}", cohorts=tuple((int(t), 1) for t in lengths), cost=cost,
        mean_tokens=float(mean * wrong[0]), longest_tokens=int(min(most, _longest(mean, rows, sigma) * wrong[1])),
        capacity=min(gpu_sequences(GPU_BYTES), int(KV_TOKENS / context)),
    )  # fmt: skip


def in_guessed_order(
    groups: Sequence[SimulatedGroup], slots: int, seed: int, questions: int, correlation: float
) -> list[SimulatedGroup]:
    """The same rows in the order that a run puts them in by guesses of their lengths which are so good: longest first
    in each file, the chunks of all files likewise, but those that start at once the same on all slots.
    """
    random = np.random.default_rng(seed)
    views = [
        GroupView(key=g.key, rows=g.rows, tokens=round(g.rows * g.mean_tokens), longest_tokens=g.longest_tokens,
                  capacity=g.capacity)
        for g in groups
    ]  # fmt: skip
    costs = Costs(by_key={g.key: g.cost for g in groups}, default=groups[0].cost)
    hosts = hosts_wanted(views, costs, slots=slots, capacity=groups[0].capacity)
    files = math.ceil(questions / SHARD_ROWS)
    return [_in_order(g, random, correlation, files, hosts.get(g.key, 1)) for g in groups]


def _in_order(
    group: SimulatedGroup, random: np.random.Generator, correlation: float, files: int, hosts: int
) -> SimulatedGroup:
    logs = np.log([tokens for tokens, _ in group.cohorts])
    noise = random.normal(0.0, np.sqrt(1 - correlation**2), len(logs))
    guesses = correlation * (logs - logs.mean()) / max(logs.std(), 1e-9) + noise
    file_of, chunks = random.integers(files, size=len(logs)), list[np.ndarray]()
    for file in range(files):
        own = np.flatnonzero(file_of == file)
        own = own[np.argsort(-guesses[own], kind="stable")]
        rows = ordered_rows(len(own), files)
        chunks += [own[start : start + rows] for start in range(0, len(own), rows)]
    chunks.sort(key=lambda own: -float(guesses[own].mean()))
    if hosts > 1:
        if len(logs) <= hosts * group.capacity:
            rows = piece_rows(len(logs), hosts)
            chunks = [own[start : start + rows] for own in chunks for start in range(0, len(own), rows)]
        chunks = started_alike(chunks, hosts * group.capacity, len)
    return replace(group, cohorts=tuple(group.cohorts[place] for own in chunks for place in own))


def _longest(mean: float, rows: int, sigma: float) -> float:
    """What the longest of so many lognormal lengths stays below nine times in ten."""
    quantile = statistics.NormalDist().inv_cdf(0.9 ** (1 / max(rows, 1)))
    return float(np.exp(np.log(mean) - sigma**2 / 2 + sigma * quantile))


def measure(questions: int, slots: int) -> dict[str, float]:
    """Medians over the seeds: the bound, and each policy's makespan over it."""
    bounds, seconds = [], []
    shares: dict[str, list[float]] = {"work_share": [], "tails_share": [], "idle_share": []}
    ratios: dict[str, list[float]] = {name: [] for name in POLICIES}
    for seed in SEEDS:
        groups = experts_of(questions * SEATS, seed)
        bounds.append(lower_bound_s(groups, slots))
        ordered = in_guessed_order(groups, slots, seed, questions, CORRELATION)
        for name, policy in POLICIES.items():
            outcome = policy(ordered if name in GUESSING else groups, slots)
            ratios[name].append(outcome.makespan_s / bounds[-1])
            if name == "symoe":
                seconds.append(outcome.makespan_s)
                for share, value in shares_of(groups, outcome, slots).items():
                    shares[share].append(value)
    medians = {f"{name}_over_bound": round(statistics.median(own), 4) for name, own in ratios.items()}
    medians |= {name: round(statistics.median(own), 4) for name, own in shares.items()}
    return {
        "bound_s": round(statistics.median(bounds), 2), "symoe_s": round(statistics.median(seconds), 2),
        "symoe_worst_over_bound": round(max(ratios["symoe"]), 4), **medians,
    }  # fmt: skip


def shares_of(groups: Sequence[SimulatedGroup], outcome: Outcome, slots: int) -> dict[str, float]:
    """What part of all slot-seconds full batches would have taken, what tails took, and what was not generated in."""
    every_s = slots * outcome.makespan_s
    work_s = sum((g.cost.step_s / g.capacity + g.cost.sequence_s) * g.tokens for g in groups)
    generated_s = sum(s.end_s - s.begin_s for s in outcome.spans if s.kind == "generate")
    return {
        "work_share": work_s / every_s, "tails_share": (generated_s - work_s) / every_s,
        "idle_share": 1 - generated_s / every_s,
    }  # fmt: skip


def scaling_1_to_4(cases: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> float:
    """How many times faster these tasks, one after another, are on four GPUs than on one."""
    seconds = {n: sum(c["symoe_s"] for c in cases if c["task"] in tasks and c["gpus"] == n) for n in (1, 4)}
    return float(round(seconds[1] / seconds[4], 3))


def plan_ten_million() -> dict[str, float]:
    """Seconds and peak memory to plan ten million requests of estimated (equal) lengths per expert."""
    started = time.perf_counter()
    weights = SKEW ** (-np.arange(EXPERTS) / (EXPERTS - 1))
    counts = (weights / weights.sum() * TEN_MILLION).astype(int)
    counts[0] += TEN_MILLION - counts.sum()
    random = np.random.default_rng(0)
    groups = []
    for index, count in enumerate(counts):
        one = _group(index, 1, random)
        mean = MEAN_TOKENS[index < REASONING]
        groups.append(
            SimulatedGroup(
                key=one.key,
                cohorts=((mean, int(count)),),
                cost=one.cost,
                mean_tokens=mean,
                longest_tokens=mean,
                capacity=one.capacity,
            )
        )
    outcome = simulate(groups, slots=TEN_MILLION_SLOTS)
    assert outcome.rows == TEN_MILLION
    return {
        "seconds": round(time.perf_counter() - started, 2), "leases": outcome.leases,
        "makespan_s": round(outcome.makespan_s, 1),
        "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def in_a_process_of_its_own() -> dict[str, float]:
    """`plan_ten_million`, so that its peak of memory is its own."""
    command = [sys.executable, "-m", "benchmarks.schedule_sim", "--ten-million"]
    result: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


if __name__ == "__main__":
    main()
