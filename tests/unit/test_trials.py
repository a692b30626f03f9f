"""What is tried in a forked child; and modules that a process imports only if that leaves it fit to fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.trials import tried

FINE: Callable[[], str] = lambda: ""  # noqa: E731


def raising() -> str:
    raise OSError("no such device")


def stopping() -> str:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    return ""


class TestTried:
    def test_all_is_well_and_nothing_has_happened_here(self) -> None:
        changed: list[int] = []

        def change() -> str:
            changed.append(1)
            return ""

        assert tried([change, change], 60) == (2, "")
        assert changed == []
        assert tried([], 60) == (0, "")

    @pytest.mark.parametrize(
        ("step", "why"),
        [
            (lambda: "two threads", "two threads"),
            (raising, "OSError: no such device"),
            (lambda: os._exit(3), "it ended with 3"),
            (stopping, "it ended with -15"),
            (lambda: time.sleep(600), "it took more than 0 s"),
        ],
        ids=["refuses", "raises", "exits", "crashes", "hangs"],
    )
    def test_the_steps_before_one_that_fails_are_counted(self, step: Callable[[], str], why: str) -> None:
        timeout_s = 0.3 if "0 s" in why else 60
        assert tried([FINE, FINE, step, FINE], timeout_s) == (2, why)

    def test_a_child_can_try_something_itself(self) -> None:
        assert tried([lambda: tried([lambda: "deep"], 60)[1]], 60) == (0, "deep")


MODULES = {
    "plain": "",
    "spoiler": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n",
    "careless": "import spoiler\n",
    "careful": "try:\n    import spoiler\nexcept ImportError:\n    pass\n",
    "through": "import careful\n",
    "broken": "raise RuntimeError('not here')\n",
    "last": "",
}
SCRIPT = """
import json, sys
from pathlib import Path
from actors.harmless_imports import import_harmless
threads = lambda: "" if len(list(Path("/proc/self/task").iterdir())) == 1 else "it starts a thread"
names = sys.argv[1:]
refused = import_harmless([*names, "no_such_module"], threads, 60)
print(json.dumps([refused, sorted(set(names) & sys.modules.keys()), threads()]))
"""


def test_modules_that_spoil_a_process_are_left_out_and_so_are_those_that_import_them(tmp_path: Path) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *MODULES], env=environment, capture_output=True, text=True, check=True
    )
    reasons = dict.fromkeys(("careless", "careful"), "it imports spoiler")
    reasons |= {"spoiler": "it starts a thread", "through": "it imports careful"}
    assert json.loads(done.stdout) == [reasons, ["last", "plain"], ""]
