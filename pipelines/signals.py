"""SIGINT and SIGTERM, and the exit code of whatever ends a command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from pipelines.run import RunFailed
from symoe_ray.core import InputError, ResourceError

DONE, FAILED, USAGE, TOO_MANY_FAILURES, MISSING, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143

T = TypeVar("T")


class Terminated(BaseException):
    """SIGTERM: end cleanly, like an interrupt."""


INTERRUPTIONS = (KeyboardInterrupt, Terminated)


class Signals:
    """SIGINT and SIGTERM: raised where they come, and again at the next safe point.

    A call into Ray that a signal meets may swallow what the handler raises, and then the run would go on to its end. Or
    it turns it into an error of its own: Cython makes it a SystemError. So, once a signal has come, it is the reason
    for whatever is raised after it (`reason_of`).
    """

    def __init__(self) -> None:
        self._received: BaseException | None = None
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def close(self) -> None:
        """Put back what handled the signals before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        self._received = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        raise self._received

    def reason_of(self, error: BaseException) -> BaseException:
        """The signal that an error comes from, else the error itself."""
        if self._received is not None:
            return self._received
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # ray.init has put up its own handler
            return Terminated()
        return error

    def checked(self, function: Callable[[T], None]) -> Callable[[T], None]:
        """The function, which first raises what was received."""

        def call(value: T) -> None:
            if self._received is not None:
                raise self._received
            function(value)

        return call


def code_of(reason: BaseException) -> int:
    """The exit code that a reason to end stands for."""
    match reason:
        case InputError():
            return USAGE
        case ResourceError():
            return MISSING
        case KeyboardInterrupt():
            return INTERRUPTED
        case Terminated():
            return TERMINATED
    return FAILED


def exit_code(reason: BaseException) -> int:
    """Say on standard error why a command ended; its exit code. What nobody expects is raised again."""
    match reason:
        case InputError() | ResourceError() | RunFailed():
            message = str(reason)
        case KeyboardInterrupt():
            message = "interrupted; the same command goes on where it stopped"
        case Terminated():
            message = "terminated; the same command goes on where it stopped"
        case _:
            raise reason
    print(f"symoe: {message}", file=sys.stderr)
    return code_of(reason)
