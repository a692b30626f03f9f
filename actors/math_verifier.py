"""math-verify behind a port: in a process of its own that is killed when it takes too long.

It uses signals, raises outside the main thread, and can hang or eat memory on hostile input ("9^{9^{9^9}}"); none of
that may reach a run.
"""

from __future__ import annotations

import json
import resource
import select
import subprocess
import sys
from contextlib import suppress

TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
MAX_CHARACTERS = 300
MEMORY_BYTES = 2 << 30


class MathVerifier:
    """`verify(boxed content, gold)`: whether the content is mathematically the gold answer.

    Picklable; the process starts at the first call and may use `MEMORY_BYTES` of addresses. Content over
    `MAX_CHARACTERS`, a time-out and a crash are False, and what has ended one process is not given to another.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._fatal: set[str] = set()

    def __call__(self, content: str, gold: str) -> bool:
        if len(content) > MAX_CHARACTERS or content in self._fatal:
            return False
        process = self._started()
        if process is None or process.stdin is None:
            return False
        try:
            process.stdin.write(json.dumps([content, gold]) + "\n")
            process.stdin.flush()
            answer = self._line(process, TIMEOUT_S)
        except OSError:
            answer = ""
        if not answer:
            self._fatal.add(content)
            self.close()
        return answer == "true"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __getstate__(self) -> dict[str, object]:
        return {"_process": None, "_fatal": set(self._fatal)}

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _started(self) -> subprocess.Popen[str] | None:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "actors.math_verifier"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
            )  # fmt: skip
            if self._line(self._process, START_TIMEOUT_S) != "ready":
                self.close()
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[str], timeout_s: float) -> str:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], timeout_s)[0]:
            return ""
        return process.stdout.readline().strip()


def main() -> None:
    """Answer one JSON pair a line with true or false."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from math_verify import parse, verify

    print("ready", flush=True)
    for line in sys.stdin:
        content, gold = json.loads(line)
        try:
            right = bool(verify(parse(gold), parse(f"\\boxed{{{content}}}")))
        except Exception:  # whatever the library cannot read is not the gold answer
            right = False
        print(json.dumps(right), flush=True)


if __name__ == "__main__":
    main()
