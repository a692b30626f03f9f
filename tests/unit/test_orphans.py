"""An engine that is stopped goes when its slot goes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors import orphans
from actors.orphans import _setpriv, with_parent

CHILD = """
import os, signal
from actors.orphans import die_with_parent
die_with_parent(os.getppid())
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {CHILD!r}])
"""
EARLY = """
import os, signal
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
CAREFUL = f"""
import subprocess, sys
from actors.orphans import with_parent
subprocess.run(with_parent([sys.executable, "-c", {EARLY!r}]))
"""


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "gone"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
@pytest.mark.parametrize(
    "program",
    [
        PARENT,
        pytest.param(CAREFUL, marks=pytest.mark.skipif(not _setpriv(), reason="no setpriv of util-linux is here")),
    ],
    ids=["one that asked for it", "one that had no time to"],
)
def test_a_stopped_process_is_killed_with_its_parent(program: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 60
    while state(child) != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    while state(child) not in ("gone", "Z"):
        assert time.monotonic() < deadline, "the stopped process is still there"
        time.sleep(0.01)


@pytest.mark.parametrize("there", ["", "/bin/false"])
def test_without_a_setpriv_that_can_do_it_the_command_is_started_as_it_is(
    there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans.shutil, "which", lambda _: there or None)
    _setpriv.cache_clear()
    try:
        assert with_parent(["true", "x"]) == ["true", "x"]
    finally:
        _setpriv.cache_clear()
