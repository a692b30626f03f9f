"""Several Ray nodes on one machine: each in namespaces of its own where the kernel lets us, with an address, a disk and
a temporary folder of its own; or plain processes on 127.0.0.x.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import family, kill

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0
GCS_PORT = 26379


@dataclass
class Machine:
    """A node: what runs on it sees its address, an empty folder in place of each of `hidden`, and its own `folder`."""

    address: str
    folder: Path
    prefix: Sequence[str]
    env: Mapping[str, str]
    hidden: Sequence[Path]
    namespace: str = ""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str, folder: Path | None = None, sees_all: bool = False) -> subprocess.Popen[str]:
        """A command on this machine, in a session of its own; its output goes to a file in its folder."""
        hide = "".join(f"mount -t tmpfs none '{path}' && " for path in self.hidden) if self.namespace else ""
        line = ["sh", "-c", f'{"" if sees_all else hide}exec "$@"', "sh", *command]
        log = (self.folder / f"{len(self.started)}.log").open("w")
        process = subprocess.Popen(
            [*self.prefix, *line], cwd=folder or self.folder, env=dict(self.env), text=True,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def start_ray(self, *options: str) -> subprocess.Popen[str]:
        """Ray's processes on this machine."""
        (self.folder / "ray").mkdir(exist_ok=True)
        return self.start(
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={self.address}",
            f"--temp-dir={self.folder}/ray", "--object-store-memory=80000000", "--disable-usage-stats", *options,
        )  # fmt: skip

    def lose(self) -> None:
        """Kill all that runs on it at once, as when its power fails."""
        for _ in range(3):  # what a process has begun meanwhile
            kill(self.pids())
        for process in self.started:
            process.wait()

    def pids(self) -> list[int]:
        """The processes that run on it."""
        if self.namespace:
            listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
            return [int(pid) for pid in listed.stdout.split()]
        running = [process.pid for process in self.started if process.poll() is None]
        return [pid for pid, _, _ in family(*running)]

    def log(self) -> str:
        """What its commands have printed."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@dataclass
class Machines:
    """Machines that reach each other, and `gateway`: the address at which they reach this process."""

    gateway: str
    all: list[Machine]
    isolated: bool


def can_isolate() -> bool:
    """Whether network and mount namespaces may be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"sy{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    try:
        tried = ["ip", "netns", "exec", name, "unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"]
        links = ["ip", "link", "add", name, "type", "bridge"]
        return made and all(subprocess.run(c, capture_output=True).returncode == 0 for c in (tried, links))
    finally:
        subprocess.run(["ip", "link", "del", name], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextmanager
def machines(count: int, env: Mapping[str, str], hidden: Sequence[Path] = (), *, isolated: bool) -> Iterator[Machines]:
    """So many machines, ended and removed with all that they run, however this ends."""
    tag = uuid.uuid4().hex[:4]
    root = Path(tempfile.mkdtemp(prefix="sy", dir="/tmp"))  # Ray's sockets want short paths
    common = {**os.environ, **env, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled"}
    common.pop("RAY_ADDRESS", None)
    made: list[Machine] = []
    janitor = _janitor(tag, count, root)
    try:
        net = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        if isolated:
            _ip("link", "add", f"sy{tag}", "type", "bridge")
            _ip("addr", "add", f"{net}.254/24", "dev", f"sy{tag}")
            _ip("link", "set", f"sy{tag}", "up")
        for number in range(1, count + 1):
            folder = root / f"n{number}"
            folder.mkdir()
            if isolated:
                name = _namespace(tag, number, f"{net}.{number}")
                prefix = ["ip", "netns", "exec", name, "unshare", "-m", "--propagation", "private"]
                made.append(Machine(f"{net}.{number}", folder, prefix, common, hidden, name))
            else:
                made.append(Machine(f"127.0.0.{number}", folder, [], common, ()))
        yield Machines(f"{net}.254" if isolated else "127.0.0.1", made, isolated)
    finally:
        if not isolated:
            for machine in made:
                machine.lose()
        assert janitor.stdin is not None
        janitor.stdin.close()
        janitor.wait()


def _janitor(tag: str, count: int, root: Path) -> subprocess.Popen[str]:
    """Ends and removes all when its input ends: when we are through, and also when we are killed."""
    names = " ".join(f"sy{tag}n{number}" for number in range(1, count + 1))
    lines = f"""cat
    for n in {names}; do while pids=$(ip netns pids $n) && [ -n "$pids" ]; do kill -9 $pids; sleep 0.1; done; done
    for n in {names}; do ip netns del $n; done
    ip link del sy{tag}
    rm -rf {root}"""
    return subprocess.Popen(
        ["sh", "-c", lines], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip


def _namespace(tag: str, number: int, address: str) -> str:
    name, inside, outside = f"sy{tag}n{number}", f"sy{tag}i{number}", f"sy{tag}o{number}"
    _ip("netns", "add", name)
    _ip("link", "add", inside, "type", "veth", "peer", "name", outside)
    _ip("link", "set", inside, "netns", name)
    _ip("link", "set", outside, "master", f"sy{tag}", "up")
    _ip("-n", name, "addr", "add", f"{address}/24", "dev", inside)
    _ip("-n", name, "link", "set", inside, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    return name


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def wait_for(condition: object, what: str, timeout_s: float = START_TIMEOUT_S, tell: object = None) -> None:
    """Wait until a condition (a function) holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:.0f} s\n{tell() if tell else ''}")  # type: ignore[operator]
        time.sleep(0.2)
