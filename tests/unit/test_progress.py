"""What the user sees while a stage runs."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest

from pipelines.progress import Display, describe
from symoe_ray.ports import Progress, SlotStatus

HALF = Progress(
    stage="answer", rows=5, total_rows=10, failed=0, tokens=1234, tokens_per_s=56.7, seconds=20.0, seconds_left=20.4,
    slots=(SlotStatus(slot="slot-0", state="generate", expert="A"), SlotStatus(slot="slot-1", state="idle")),
)  # fmt: skip


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


class Clock:
    """Stands for time.monotonic."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


class TestDescription:
    def test_names_stage_rows_speed_time_left_and_slots(self) -> None:
        assert describe(HALF) == (
            "answer: 5/10 requests, 1234 tokens, 57 tokens/s, about 20 s left [slot-0 generate A; slot-1 idle]"
        )

    def test_failures_are_named_where_there_are_any(self) -> None:
        assert ", 57 tokens/s, 2 failed, about" in describe(replace(HALF, failed=2))

    def test_an_unknown_end_is_left_out(self) -> None:
        assert "left" not in describe(replace(HALF, seconds_left=None))

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.2, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 0 s"),
            (61, "1 min 1 s"),
            (3599.6, "1 h 0 min"),
            (7325, "2 h 2 min"),
        ],
    )
    def test_time_left_is_told_in_the_units_of_people(self, seconds: float, text: str) -> None:
        assert f", about {text} left" in describe(replace(HALF, seconds_left=seconds))

    def test_four_slots_are_named_and_the_rest_counted(self) -> None:
        slots = tuple(SlotStatus(slot=f"s{i}", state="idle") for i in range(6))
        assert describe(replace(HALF, slots=slots)).endswith("[s0 idle; s1 idle; s2 idle; s3 idle; 2 more slots]")
        assert describe(replace(HALF, slots=slots[:4])).endswith("[s0 idle; s1 idle; s2 idle; s3 idle]")


class TestWithoutTerminal:
    def test_lines_are_plain_and_come_every_few_seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, stream = Clock(monkeypatch), io.StringIO()
        display = Display(stream)
        for second in range(25):
            clock.now = 100.0 + second
            display.progress(replace(HALF, rows=second))
        lines = stream.getvalue().splitlines()
        assert [line.split()[1] for line in lines] == ["11/10", "22/10"]
        assert "\x1b" not in stream.getvalue()

    def test_the_time_starts_again_with_each_stage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, stream = Clock(monkeypatch), io.StringIO()
        display = Display(stream)
        clock.now = 109.0
        display.end_stage()
        clock.now = 118.0
        display.progress(HALF)
        assert stream.getvalue() == ""
        clock.now = 119.5
        display.progress(HALF)
        assert stream.getvalue().count("\n") == 1

    def test_messages_are_printed_as_they_are_and_never_wrapped(self) -> None:
        stream = io.StringIO()
        message = "[bold]100%[/bold] of " + "words " * 60 + "end"
        Display(stream).say(message)
        assert stream.getvalue() == message + "\n"


class TestOnATerminal:
    def test_one_line_is_drawn_again_and_taken_away(self) -> None:
        stream = Terminal()
        display = Display(stream)
        display.progress(HALF)
        display.progress(replace(HALF, rows=6))
        display.end_stage()
        text = stream.getvalue()
        assert "5/10" in text
        assert "6/10" in text
        assert "\x1b[2K" in text  # the line is erased
        display.end_stage()
        assert stream.getvalue() == text

    def test_a_message_takes_the_live_line_away_first(self) -> None:
        stream = Terminal()
        display = Display(stream)
        display.progress(HALF)
        display.say("hello")
        assert stream.getvalue().endswith("hello\n")
        assert "\x1b[2K" in stream.getvalue()
