"""Starts a real `symoe run`, disturbs it at random moments, and starts the same command until it ends well."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.checking import committed_parts, stages_of
from benchmarks.faults.memory import out_of_memory
from benchmarks.faults.processes import MARK, Process, left_after, marked, with_role

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND_S = 400.0
LEFT_S = 90.0  # Ray's own processes look for a killed head for a minute before they end ("within 60 seconds")
KILLED = ("engine", "zygote", "slot", "pool", "worker", "raylet", "head", "driver")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A command, how its faults are drawn (kind -> weight), how many, and the mean seconds between two.

    With `kinds` exactly these are injected, in an order that is drawn. `same_texts`: the engines are deterministic, so
    that every row and table must be as in an undisturbed run.
    """

    arguments: tuple[str, ...]
    weights: Mapping[str, float]
    faults: int
    gap_s: float
    kinds: tuple[str, ...] = ()
    same_texts: bool = True

    def drawn(self, dice: random.Random) -> list[str]:
        """The kinds of a run's faults."""
        if self.kinds:
            return dice.sample(self.kinds, len(self.kinds))
        return dice.choices(list(self.weights), weights=list(self.weights.values()), k=self.faults)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a disturbed run went through: its faults by kind, the exit codes of its commands, what they said."""

    faults: Counter[str] = field(default_factory=Counter)
    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    left_behind: list[Process] = field(default_factory=list)
    said: str = ""

    @property
    def finished(self) -> bool:
        """Whether the last command ended well."""
        return self.codes[-1:] == [0]


def run_command(arguments: Sequence[str], folder: Path, token: str = "") -> subprocess.Popen[str]:
    """A `symoe` command under way in a folder, in a session of its own; its output is in `<folder>/said.txt`.

    Its wall clock is the one that `<folder>/clock` says.
    """
    clock = folder / "clock"
    if not clock.exists():
        clock.write_bytes(struct.pack("d", 0.0))
    paths = os.pathsep.join([str(REPOSITORY / "benchmarks" / "faults" / "clock"), str(REPOSITORY)])
    environment = {
        **os.environ, "PYTHONPATH": paths, "RAY_AUTH_MODE": "disabled", MARK: token, "SYMOE_FAULTS_CLOCK": str(clock),
    }  # fmt: skip
    with (folder / "said.txt").open("a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *arguments],
            cwd=folder, env=environment, text=True, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=said, stderr=said,
        )  # fmt: skip


class Disturbance:
    """One run in `folder`, disturbed by a seed's faults."""

    def __init__(self, plan: Plan, seed: int, folder: Path) -> None:
        self._plan, self._folder, self._dice = plan, folder, random.Random(seed)
        self._left = plan.drawn(self._dice)
        self._token = ""
        self._afterwards: list[Callable[[], None]] = []
        self._started = time.monotonic()
        self.outcome = Outcome()

    def play(self) -> Outcome:
        """Run the command under faults until it ends well, at most thrice more than there are faults."""
        outcome, tokens = self.outcome, list[str]()
        limit = len(self._left) + 3
        while not outcome.finished and len(outcome.codes) < limit:
            self._token = uuid.uuid4().hex
            tokens.append(self._token)
            outcome.codes.append(self._attempt())
            if outcome.codes[-1] == 124:
                break
        outcome.left_behind = [process for token in tokens for process in left_after(token, LEFT_S)]
        for token in tokens:
            end(token)
        outcome.seconds = time.monotonic() - self._started
        outcome.said = (self._folder / "said.txt").read_text()[-3000:]
        return outcome

    def _attempt(self) -> int:
        process = run_command(self._plan.arguments, self._folder, self._token)
        try:
            while self._left and self._moment(process) and self._inject(process, self._left[-1]):
                self._note(self._left[-1])
                self.outcome.faults[self._left.pop()] += 1
            code = process.wait(COMMAND_S)
            self._note(f"exit code {code}")
            return code
        except subprocess.TimeoutExpired:
            return 124
        finally:
            if process.poll() is None:
                end(self._token)
                process.wait()
            while self._afterwards:
                self._afterwards.pop()()

    def _note(self, what: str) -> None:
        """Write into `<folder>/faults.txt` what has happened, with seconds since the first command."""
        with (self._folder / "faults.txt").open("a") as notes:
            notes.write(f"{time.monotonic() - self._started:7.1f} {what}\n")

    def _moment(self, process: subprocess.Popen[str]) -> bool:
        """Wait for a random moment; False where the command has ended before."""
        try:
            process.wait(self._dice.uniform(0, 2 * self._plan.gap_s))
        except subprocess.TimeoutExpired:
            return True
        return False

    def _inject(self, process: subprocess.Popen[str], kind: str) -> bool:
        """Inject a fault as soon as there is what it is for; False where the command ended before."""
        while process.poll() is None:
            if self._injected(process, kind):
                return True
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        return False

    def _injected(self, process: subprocess.Popen[str], kind: str) -> bool:
        if kind == "driver":
            process.kill()
            return True
        if kind in KILLED:
            return self._signal(kind, signal.SIGKILL)
        if kind == "hung_engine":
            return self._signal("engine", signal.SIGSTOP)
        if kind in ("hung_slot", "out_of_memory"):
            return self._slot_at_work(kind)
        if kind == "clock":
            jump_s = self._dice.choice([-1, 1]) * self._dice.uniform(60, 30 * 86_400)
            (self._folder / "clock").write_bytes(struct.pack("d", jump_s))
            return True
        if kind == "full_disk":
            filler = self._folder / "runs" / "filler"
            self._afterwards.append(lambda: filler.unlink(missing_ok=True))
            return _fill(filler)
        assert kind == "damaged_part", kind
        if not any(committed_parts(self._run, stage) for stage in stages_of(self._run)):
            return False
        process.kill()
        self._afterwards.append(self._damage)
        return True

    def _slot_at_work(self, kind: str) -> bool:
        """Stop a slot that has an engine, or leave its next engine too little memory."""
        processes = marked(self._token)
        engines, slots = set(with_role(processes, "engine")), set(with_role(processes, "slot"))
        pairs = sorted((p.parent, p.pid) for p in processes if p.pid in engines and p.parent in slots)
        if not pairs:
            return False
        slot, engine = self._dice.choice(pairs)
        if kind == "out_of_memory":
            return out_of_memory(slot, engine)
        with suppress(ProcessLookupError):
            os.kill(slot, signal.SIGSTOP)
            return True
        return False

    @property
    def _run(self) -> Path:
        return self._folder / "runs" / "r"

    def _one_of(self, role: str) -> int | None:
        found = with_role(marked(self._token), role)
        return self._dice.choice(found) if found else None

    def _signal(self, role: str, number: int) -> bool:
        pid = self._one_of(role)
        try:
            if pid is not None:
                os.kill(pid, number)
        except ProcessLookupError:
            return False
        return pid is not None

    def _damage(self) -> None:
        """Cut a committed part short, or delete it, once nothing of the command is left."""
        left_after(self._token, LEFT_S)
        parts = [part for stage in stages_of(self._run) for part in committed_parts(self._run, stage)]
        whole = [file for part in parts if (file := self._run / part["path"]).exists() and file.stat().st_size]
        if not whole:  # all that was there was damaged before
            return
        file = self._dice.choice(whole)
        if self._dice.random() < 0.3:
            file.unlink()
        else:
            os.truncate(file, self._dice.randrange(file.stat().st_size))


def _fill(file: Path) -> bool:
    """Take all room on the disk that a file is to be on."""
    with file.open("wb", buffering=0) as sink, suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    sink.write(b"\0" * size)
    return True


def end(token: str) -> None:
    """Kill what is left of a command."""
    for process in marked(token):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
