"""How long a whole stage of eight experts takes: 256 requests in groups of very different sizes, on the CPU.

`python -m benchmarks.batch [--json] [--workload NAME...] [--peers none|all|NAME...] [--repeats N]`. Workloads:
`tiny`, two-layer models of six architectures and 32 tokens a request, where the changes of experts decide; `small`,
eight copies of SmolLM2-135M with different weights and 128 tokens a request, where decoding does. Contenders:

- symoe: from the first submit to the last commit on a pool that is up and holds a ninth expert, so that all eight must
  be loaded. The start of the pool is the row "cold start": from nothing to that ninth expert's first token.
- ideal: the same requests, expert by expert, on engines that are loaded, and a fork of each, without pool and cluster.
- reference_strategy: the way of the released code, a fresh default `vllm.LLM` process for each expert, one after the
  other. It sleeps ten seconds after each; those are not slept here but added in a row of their own.
- reference_eager, only if asked for: the same with `enforce_eager=True`, no default, but it starts sooner on the CPU.
- ray_data_llm: a default processor for each expert on a Ray that is up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.contenders.models import RESIDENTS, SMALL, TINY, Variant
from benchmarks.contenders.ours import measure_ideal, running_pool
from benchmarks.contenders.peers import PEER_ARGS, Job, Mark, run_peer
from benchmarks.contenders.work import Counts, Work, check_equal, expert_of, questions, requests_of, task_of
from symoe_ray.core import ExpertSpec

PEERS = ("reference_strategy", "reference_eager", "ray_data_llm")
DEFAULT_PEERS = ("reference_strategy", "ray_data_llm")
GROUPS = (91, 61, 41, 27, 16, 10, 6, 4)
SLEEP_S = 10
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Eight experts, the ninth that a pool holds before, and the length of an answer."""

    name: str
    variants: tuple[Variant, ...]
    resident: Variant
    max_tokens: int


WORKLOADS = {
    "tiny": Workload(name="tiny", variants=TINY, resident=RESIDENTS[0], max_tokens=32),
    "small": Workload(name="small", variants=SMALL, resident=RESIDENTS[1], max_tokens=128),
}


def main() -> None:
    """Print the seconds of each contender, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--workload", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--peers", nargs="+", default=list(DEFAULT_PEERS), choices=("none", "all", *PEERS))
    parser.add_argument("--repeats", type=int, default=3, help="of ours and the ideal; peers run once")
    options = parser.parse_args()
    peers = PEERS if "all" in options.peers else [p for p in options.peers if p != "none"]
    table = sys.stderr if options.json else sys.stdout
    results = {}
    for name in options.workload:
        results[name] = measure(WORKLOADS[name], options.repeats, peers)
        print("\n".join(_lines(name, results[name])), file=table, flush=True)
    print(json.dumps({"benchmark": "batch", "groups": GROUPS, "workloads": results}))


def measure(workload: Workload, repeats: int, peers: Sequence[str]) -> Row:
    """Seconds of all contenders on a workload; UnequalWorkError where one of them did other work."""
    experts = [expert_of(variant, workload.max_tokens) for variant in workload.variants]
    asked = questions(sum(GROUPS))
    groups = [asked[sum(GROUPS[:i]) : sum(GROUPS[: i + 1])] for i in range(len(GROUPS))]
    work = {e.name: requests_of(e, group) for e, group in zip(experts, groups, strict=True)}
    ideals = measure_ideal(experts, work, repeats)
    expected = Counts(prompt=ideals[0].counts.prompt, completion=sum(GROUPS) * workload.max_tokens)
    for ideal in ideals:
        check_equal("ideal", ideal.counts, expected)
    ours = measure_pool(experts, expert_of(workload.resident, 1), work, expected, repeats)
    wall_s = {
        "symoe": statistics.median(ours["each_s"]),
        "symoe_cold_start": ours["cold_start_s"],
        "ideal": statistics.median(i.seconds for i in ideals),
    }
    _tell(workload, wall_s)
    for peer in peers:
        measure_peer = ray_s if peer == "ray_data_llm" else partial(reference_s, eager=peer == "reference_eager")
        wall_s[peer] = measure_peer(experts, work, expected)
        _tell(workload, {peer: wall_s[peer]})
        if peer == "reference_strategy":
            wall_s["reference_strategy_sleeping"] = wall_s[peer] + SLEEP_S * len(experts)
    return {
        "wall_s": {name: round(seconds, 3) for name, seconds in wall_s.items()},
        "over_ideal": round(wall_s["symoe"] / wall_s["ideal"], 3),
        "times_faster": {p: round(wall_s[p] / wall_s["symoe"], 2) for p in wall_s if p.startswith(("ref", "ray"))},
        "symoe_each_s": [round(s, 3) for s in ours["each_s"]],
        "symoe_load_s": [round(s, 3) for s in ours["load_s"]],
        "symoe_tiers": ours["tiers"],
        "ideal_load_s": round(statistics.median(i.load_s for i in ideals), 3),
        "ideal_generate_s": round(statistics.median(i.generate_s for i in ideals), 3),
    }


def measure_pool(
    experts: Sequence[ExpertSpec], resident: ExpertSpec, work: Work, expected: Counts, repeats: int
) -> Row:
    """Seconds of each repeat through one pool and the tiers of its loads, and the seconds of the pool's cold start."""
    started = time.perf_counter()
    stages, first = [], {resident.name: requests_of(resident, questions(1))}
    with running_pool([*experts, resident]) as ours:
        ours.generate("cold-start", first)
        cold_start_s = time.perf_counter() - started
        for repeat in range(repeats):
            stages.append(ours.generate(f"stage-{repeat}", work))
            check_equal("symoe", stages[-1].counts, expected)
            ours.generate(f"resident-{repeat}", first)
    return {
        "cold_start_s": cold_start_s,
        "each_s": [stage.seconds for stage in stages],
        "load_s": [stage.load_s for stage in stages],
        "tiers": [dict(Counter(stage.tiers)) for stage in stages],
    }


def reference_s(experts: Sequence[ExpertSpec], work: Work, expected: Counts, *, eager: bool) -> float:
    """Seconds of engines in processes one after the other, to the last one's last result."""
    seconds, marks = 0.0, list[Mark]()
    engine_args = PEER_ARGS | ({"enforce_eager": True} if eager else {})
    for spec in experts:
        job = Job(tasks=(task_of(spec, work[spec.name]),), engine_args=engine_args)
        run = run_peer("default_vllm", job)
        seconds += (run.marks[-1].finished if spec is experts[-1] else run.exited) - run.started
        marks += run.marks
    _check_marks("reference", marks, expected)
    return seconds


def ray_s(experts: Sequence[ExpertSpec], work: Work, expected: Counts) -> float:
    """Seconds of `ray.data.llm` processors one after the other, from the first's building to the last row."""
    tasks = tuple(task_of(spec, work[spec.name]) for spec in experts)
    run = run_peer("ray_data_llm", Job(tasks=tasks, engine_args=PEER_ARGS))
    _check_marks("ray_data_llm", run.marks, expected)
    return run.marks[-1].finished - run.marks[0].started


def _check_marks(who: str, marks: Sequence[Mark], expected: Counts) -> None:
    counts = Counts(prompt=sum(m.prompt_tokens for m in marks), completion=sum(m.completion_tokens for m in marks))
    check_equal(who, counts, expected)


def _tell(workload: Workload, wall_s: Mapping[str, float]) -> None:
    """Say what is measured already: a peer takes a quarter of an hour."""
    for contender, seconds in wall_s.items():
        print(f"{workload.name} {contender}: {seconds:.1f} s", file=sys.stderr, flush=True)


def _lines(name: str, result: Row) -> list[str]:
    ours = result["wall_s"]["symoe"]
    rows = [f"{contender:<30}{s:>10.2f}{s / ours:>10.2f}" for contender, s in result["wall_s"].items()]
    each = " ".join(f"{s:.2f}" for s in result["symoe_each_s"])
    return [
        f"{name:<30}{'seconds':>10}{'/ symoe':>10}", *rows,
        f"symoe each: {each}; of that for loads {result['symoe_load_s']}; tiers {result['symoe_tiers']}",
        f"ideal: {result['ideal_load_s']:.2f} s of loads, {result['ideal_generate_s']:.2f} s of generation; "
        f"symoe / ideal {result['over_ideal']:.3f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
