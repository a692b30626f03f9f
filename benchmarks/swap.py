"""How long it takes to change experts: from "generate with B", with A resident, to B's first token.

`python -m benchmarks.swap [--json] [--repeats N] [--peers none|all|NAME...]`: two checkpoints of one shape
(SmolLM2-135M with output weights of its own, and a copy with other weights), alternately, on the CPU; requests of one
token, so that the first result is the first token. A's end is part of the time. Contenders:

- fork, reload: a pool that is up, through its client; the tier taken is read from the pool's events.
- default_vllm: `vllm.LLM(model=...)` in a fresh process, from the process's start, with vLLM's own caches warm.
- default_vllm_eager: the same with `enforce_eager=True`, which is no default but starts sooner on the CPU.
- ray_data_llm: a processor for each expert, on a Ray that is up, with the same engine arguments.
- in_process: shut down, clean up, collect, build again, with the engine arguments of our own engines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence

from actors.engine_plans import EnginePlans
from actors.platform import cores_of, engine_environment
from benchmarks.contenders.models import SWAP
from benchmarks.contenders.ours import Stage, running_pool
from benchmarks.contenders.peers import PEER_ARGS, Job, run_peer
from benchmarks.contenders.work import Counts, check_equal, expert_of, questions, requests_of, task_of
from symoe_ray.core import ExpertSpec
from symoe_ray.settings import EngineSettings

Times = dict[str, list[float]]
PEERS = ("default_vllm", "default_vllm_eager", "ray_data_llm", "in_process")
WARM_UP = 3  # each expert loaded once, and one change of experts
PEER_SWAPS = 3


def main() -> None:
    """Print seconds per contender and how many times longer than ours each takes, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--repeats", type=int, default=9, help="swaps of each tier that count")
    parser.add_argument("--peers", nargs="+", default=["all"], choices=("none", "all", *PEERS))
    options = parser.parse_args()
    peers = PEERS if "all" in options.peers else [p for p in options.peers if p != "none"]
    table = sys.stderr if options.json else sys.stdout
    experts = [expert_of(variant, max_tokens=1) for variant in SWAP]
    times: Times = {}
    load_s = {}
    for tier, reload in (("fork", False), ("reload", True)):
        stages = measure_pool(experts, options.repeats, reload=reload)
        for note in (f"{stage.tiers[0]}: {note}" for stage in stages for note in stage.notes):
            print(note, file=table)
        taken = [stage for stage in stages if stage.tiers == (tier,)]
        if not taken:
            raise RuntimeError(f"the pool never took the tier {tier}, but {[stage.tiers for stage in stages]}")
        times[tier] = [stage.seconds for stage in taken]
        load_s[tier] = round(statistics.median(stage.load_s for stage in taken), 3)
        expected = taken[0].counts
    for peer in peers:
        times[peer] = measure_peer(peer, experts, expected)
    print(f"{'contender':<20}{'median s':>10}{'/ fork':>9}{'/ reload':>10}  each", file=table)
    for name, seconds in times.items():
        print(_line(name, seconds, times), file=table)
    medians = {name: round(statistics.median(seconds), 3) for name, seconds in times.items()}
    counted = {name: len(seconds) for name, seconds in times.items()}
    print(json.dumps({"benchmark": "swap", "median_s": medians, "load_s": load_s, "swaps": counted}))


def measure_pool(experts: Sequence[ExpertSpec], repeats: int, *, reload: bool) -> list[Stage]:
    """Swaps of a pool that is up; each is a stage of one request to the expert that is not resident."""
    stages = []
    with running_pool(experts, reload=reload) as ours:
        for number in range(WARM_UP + repeats):
            spec = experts[number % len(experts)]
            stages.append(ours.generate(f"swap-{number}", {spec.name: requests_of(spec, questions(1))}))
            if len(stages[-1].tiers) != 1:
                raise RuntimeError(f"swap {number} is no single load: its events name the tiers {stages[-1].tiers}")
    return stages[WARM_UP:]


def measure_peer(peer: str, experts: Sequence[ExpertSpec], expected: Counts) -> list[float]:
    """Seconds of a peer's swaps. Where its tasks share a process, the first one only makes A resident."""
    specs = [experts[number % len(experts)] for number in range(PEER_SWAPS + 1)]
    tasks = tuple(task_of(spec, requests_of(spec, questions(1))) for spec in specs)
    if peer == "ray_data_llm":
        run = run_peer("ray_data_llm", Job(tasks=tasks, engine_args=PEER_ARGS))
        marks, seconds = run.marks, [mark.seconds for mark in run.marks[1:]]
    elif peer == "in_process":
        job = Job(tasks=tasks, engine_args=_our_engine_args(experts))
        run = run_peer("in_process", job, engine_environment(offline=True))
        marks, seconds = run.marks, [mark.seconds for mark in run.marks[1:]]
    else:
        engine_args = PEER_ARGS | ({"enforce_eager": True} if peer == "default_vllm_eager" else {})
        runs = [run_peer("default_vllm", Job(tasks=(t,), engine_args=engine_args)) for t in tasks[1:]]
        marks = tuple(mark for run in runs for mark in run.marks)
        seconds = [run.marks[0].finished - run.started for run in runs]
    for mark in marks:
        check_equal(peer, Counts(prompt=mark.prompt_tokens, completion=mark.completion_tokens), expected)
    return seconds


def _our_engine_args(experts: Sequence[ExpertSpec]) -> dict[str, object]:
    plans = EnginePlans(experts, EngineSettings(), cores=cores_of(0, 1), cuda=False)
    return {k: v for k, v in plans.plan(experts[0].name).frame.args.items() if k != "model"}


def _line(name: str, seconds: Sequence[float], times: Mapping[str, Sequence[float]]) -> str:
    median = statistics.median(seconds)
    ratios = [median / statistics.median(times[tier]) for tier in ("fork", "reload")]
    each = " ".join(f"{s:.2f}" for s in seconds)
    return f"{name:<20}{median:>10.2f}{ratios[0]:>9.1f}{ratios[1]:>10.1f}  {each}"


if __name__ == "__main__":
    main()
