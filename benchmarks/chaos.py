"""Real runs, disturbed at random moments: is anything lost, there twice, or different in the end?

Each run is the same command as an undisturbed one, in a folder of its own. Faults: SIGKILL of an engine, a zygote, a
slot actor, the pool actor, a Ray Data worker, the raylet, the head (GCS) or the driver; an engine or a slot actor that
hangs (SIGSTOP); an engine that the kernel kills for want of memory; a wall clock that jumps by up to a month; a disk
that is full until the command ends; a committed part that is cut short or deleted between two commands. Whatever ends
the command, it is started again, until it ends well. Then parts, commits and tables are compared with the undisturbed
run's. A full disk and a want of memory need root.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.faults import memory
from benchmarks.faults.checking import Verdict, verdict
from benchmarks.faults.injecting import COMMAND_S, Disturbance, Outcome, Plan, run_command

FAKE = Plan(
    arguments=(
        "run", "--run", "r", "pool=small", "engine.kind=fake", "engine.slots=3", "engine.chunk_rows=8",
        "engine.fake_tokens_per_s=8", "engine.fake_load_s=0.5", "engine.stall_timeout_s=5", "engine.load_timeout_s=30",
        "engine.max_attempts=8", "task.demo.validation=40", "task.demo.test=48", "baselines=minimal",
    ),
    weights={
        "engine": 8, "slot": 5, "hung_engine": 2, "hung_slot": 1, "pool": 1, "worker": 2, "raylet": 1, "head": 1,
        "driver": 2, "out_of_memory": 1, "clock": 1, "full_disk": 1, "damaged_part": 1,
    },
    faults=20, gap_s=2.0,
)  # fmt: skip
REAL = Plan(
    arguments=("run", "--run", "r", "pool=tiny", "engine.slots=2", "--limit", "12", "baselines=minimal"),
    weights={"engine": 4, "zygote": 2, "slot": 2, "pool": 1, "driver": 1},
    faults=5, gap_s=6.0, same_texts=False,
)  # fmt: skip
DISK_BYTES = 64 << 20


def undisturbed(plan: Plan, folder: Path) -> Path:
    """The run of the same command without faults; one that is there already is taken."""
    run = folder / "runs" / "r"
    if not (run / "results.json").exists():
        folder.mkdir(exist_ok=True)
        code = run_command(plan.arguments, folder).wait(COMMAND_S)
        assert code == 0, (folder / "said.txt").read_text()[-3000:]
    return run


def possible(plan: Plan) -> Plan:
    """The plan without the faults that need rights which we do not have."""
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder, "runs")) as mounted:
        lacks = set[str]() if mounted else {"full_disk"}
    if not memory.available():
        lacks.add("out_of_memory")
    weights = {kind: weight for kind, weight in plan.weights.items() if kind not in lacks}
    return replace(plan, weights=weights, kinds=tuple(kind for kind in plan.kinds if kind not in lacks))


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of its own for a folder, where we may mount one; whether we may."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def one_run(plan: Plan, seed: int, root: Path, base: Path) -> tuple[Outcome, Verdict]:
    """A disturbed run and what the checker finds."""
    folder = root / f"seed-{seed}-{os.getpid()}"
    with small_disk(folder / "runs"):
        outcome = Disturbance(plan, seed, folder).play()
        if not outcome.finished:
            return outcome, Verdict(lost=0, duplicated=0, different=("it did not end well",))
        return outcome, verdict(folder / "runs" / "r", base, same_texts=plan.same_texts)


def _line(seed: int, outcome: Outcome, found: Verdict) -> str:
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.faults.items()))
    codes = " ".join(map(str, outcome.codes))
    different = f"; different: {', '.join(found.different)}" if found.different else ""
    left = "".join(
        f"\n  left: {process.pid}, child of {process.parent}: {process.args}" for process in outcome.left_behind
    )
    return (
        f"seed {seed}: {outcome.seconds:.0f} s, {outcome.faults.total()} faults ({faults}); exit codes {codes}; "
        f"lost {found.lost}, duplicated {found.duplicated}, processes left {len(outcome.left_behind)}{different}{left}"
    )


@dataclass(slots=True)
class Totals:
    """What all runs come to."""

    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    duplicated: int = 0
    different: int = 0
    processes_left: int = 0

    def add(self, outcome: Outcome, found: Verdict) -> None:
        """Count a run."""
        self.runs += 1
        self.faults += outcome.faults
        self.lost += found.lost
        self.duplicated += found.duplicated
        self.different += bool(found.different)
        self.processes_left += len(outcome.left_behind)


def campaign(plan: Plan, faults: int, seed: int, root: Path, totals: Totals, say: Callable[[str], None]) -> None:
    """Disturbed runs of a plan until so many faults are injected."""
    base = undisturbed(plan, root / "undisturbed")
    wanted = totals.faults.total() + faults
    while totals.faults.total() < wanted:
        outcome, found = one_run(plan, seed, root, base)
        say(_line(seed, outcome, found) + ("" if outcome.finished else f"\n{outcome.said}"))
        totals.add(outcome, found)
        seed += 1


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20, help="inject so many into runs with fake engines")
    parser.add_argument("--real-faults", type=int, default=0, help="inject so many into runs with real vLLM engines")
    parser.add_argument("--per-run", type=int, default=0, help="faults of one run (default: 20, with real engines 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run; the next ones count on")
    parser.add_argument("--folder", type=Path, help="where the runs lie; an undisturbed one is used again")
    parser.add_argument("--json", action="store_true", help="the last line only")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    started, totals = time.monotonic(), Totals()
    for plan, faults, name in ((FAKE, options.faults, "fake"), (REAL, options.real_faults, "real")):
        if faults:
            (root / name).mkdir(parents=True, exist_ok=True)
            plan = possible(replace(plan, faults=options.per_run or plan.faults))
            campaign(plan, faults, options.seed, root / name, totals, _silent if options.json else _say)
    by_kind = dict(sorted(totals.faults.items()))
    result = asdict(totals) | {"faults": totals.faults.total(), "seconds": round(time.monotonic() - started)}
    print(json.dumps(result | {"by_kind": by_kind}))


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(_: str) -> None:
    pass


if __name__ == "__main__":
    main()
