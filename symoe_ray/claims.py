"""One driver per run where there are no file locks: each keeps a claim, and a claim that changes belongs to the living.

An object store has no locks, and pyarrow no conditional write; but a listing shows whatever was written before it. So a
driver first writes a claim of its own, and then looks for others: of two that start at once, one at least sees the
other. Claims are renewed every few seconds. One that does not change for long enough, by the reader's own clock, is
dead and is removed; no two clocks are ever compared. A driver that was paused for so long finds its claim gone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from symoe_ray.core import ResourceError
from symoe_ray.storage import Storage

FOLDER = "drivers"
BEAT_S = 10.0
DEAD_S = 60.0


def awake_s() -> float:
    """A clock that nobody can set, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(slots=True)
class Claim:
    """A driver's claim to a run. `about` says to people who it is; `token` is its own, and unlike any other.

    `say` is told why it waits.
    """

    storage: Storage
    token: str
    about: str
    clock: Callable[[], float] = awake_s
    pause: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda _: None
    _beats: int = 0
    _held: bool = False
    _renewed: float = 0.0
    _seen: dict[str, tuple[bytes, float]] = field(default_factory=dict)

    def take(self) -> None:
        """Return once the run is ours; ResourceError where another driver works on it.

        Where a driver has ended without a word, this takes `DEAD_S`.
        """
        try:
            self._write()
            while self._others() or self.clock() - self._renewed > DEAD_S / 2:  # paused so long, we are dead to others
                self.pause(BEAT_S / 10)
                if self.clock() - self._renewed > BEAT_S:
                    self._write()
            self._held = True
            self._write()
        except BaseException:
            self.release()
            raise

    def renew(self) -> None:
        """Show that we live, every `BEAT_S`; ResourceError where another driver has taken the run over."""
        if not self.storage.exists(self._name):
            self._held = False
            raise ResourceError(f"run {self.storage.uri} has been taken over by another driver")
        self._write()

    def check(self) -> None:
        """Before something is written that only the run's driver may write: ResourceError where we may not be it."""
        if self.clock() - self._renewed > DEAD_S / 2:
            self.renew()
        if not self._held:
            raise ResourceError(f"run {self.storage.uri} has been taken over by another driver")

    def release(self) -> None:
        """Leave the run to others."""
        self._held = False
        with suppress(OSError):
            self.storage.delete(self._name)

    @property
    def _name(self) -> str:
        return f"{FOLDER}/{self.token}.json"

    def _write(self) -> None:
        self._beats += 1
        state = {"state": "works" if self._held else "waits", "driver": self.about, "beats": self._beats}
        self.storage.write_json(self._name, state)
        self._renewed = self.clock()

    def _others(self) -> bool:
        """Whether other claims are left. Dead ones are removed; a living one ends our waiting, unless it gives way."""
        now, left = self.clock(), False
        for name in self.storage.names(FOLDER, ".json"):
            if name == self._name:
                continue
            try:
                content = self.storage.read_bytes(name)
            except FileNotFoundError:
                continue
            left = True
            if name not in self._seen:
                self.say(f"waiting for at most {DEAD_S:.0f} s to see whether {_driver(content)} still works on the run")
            before, since = self._seen.setdefault(name, (content, now))
            if content != before:
                if b'"works"' in content or name < self._name:
                    raise ResourceError(
                        f"run {self.storage.uri} is being worked on by another process: {_driver(content)}"
                    )
                self._seen[name] = content, now
            elif now - since > DEAD_S:
                self.storage.delete(name)
        return left


def _driver(content: bytes) -> str:
    return str(json.loads(content)["driver"])
