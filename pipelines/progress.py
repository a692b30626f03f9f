"""Live progress of a stage: a line that is redrawn on a terminal, plain lines every few seconds elsewhere."""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from symoe_ray.ports import Progress

PLAIN_EVERY_S = 10.0


class Display:
    """Where a command says what it does: standard output, or standard error beside `--json`."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last = time.monotonic()

    def say(self, message: str) -> None:
        """Print a line, below which the live line goes on."""
        self.end_stage()
        self._console.print(Text(message))

    def progress(self, progress: Progress) -> None:
        """Show how far a stage is."""
        text = describe(progress)
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, transient=True, auto_refresh=False)
                self._live.start()
            self._live.update(Text(text), refresh=True)
        elif time.monotonic() - self._last > PLAIN_EVERY_S:
            self._last = time.monotonic()
            self._console.print(Text(text))

    def end_stage(self) -> None:
        """Take the live line away."""
        self._last = time.monotonic()
        if self._live is not None:
            self._live.stop()
            self._live = None


def describe(progress: Progress) -> str:
    """A line for people: stage, rows, speed, time left, and what each slot does."""
    left = "" if progress.seconds_left is None else f", about {_duration(progress.seconds_left)} left"
    failed = f", {progress.failed} failed" if progress.failed else ""
    slots = "; ".join(f"{s.slot} {s.state} {s.expert}".strip() for s in progress.slots[:4])
    more = f"; {len(progress.slots) - 4} more slots" if len(progress.slots) > 4 else ""
    return (
        f"{progress.stage}: {progress.rows}/{progress.total_rows} requests, {progress.tokens} tokens, "
        f"{progress.tokens_per_s:.0f} tokens/s{failed}{left} [{slots}{more}]"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
