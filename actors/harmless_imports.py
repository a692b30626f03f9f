"""Imports into a process that must stay fit to fork: what would spoil it is found out in a child, and left out."""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder

from actors.trials import tried


def import_harmless(
    modules: Sequence[str], unfit: Callable[[], str], timeout_s: float, before: Collection[str] = ()
) -> dict[str, str]:
    """Import modules, but none after whose import `unfit` gives a reason, nor one that imports such a one, or one that
    was left out `before`.

    Those that were left out, with the reason. What is not tried after `timeout_s` is not imported. A module that cannot
    be imported is no spoiler: who needs it will see.
    """
    refused: dict[str, str] = {}
    left, deadline = list(modules), time.monotonic() + timeout_s
    while left and (rest_s := deadline - time.monotonic()) > 0:
        wire = _Tripwire({*refused, *before})
        fine, why = tried([functools.partial(_step_on, wire, name, unfit) for name in left], rest_s)
        for name in left[:fine]:
            _import(name)
        if why:
            refused[left[fine]] = why
        left = left[fine + 1 :]
    return refused


class _Tripwire(MetaPathFinder):
    """Hinders the import of some modules, and remembers it."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self.touched = ""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """None: it finds nothing; ImportError for a module that is not to be found."""
        if fullname in self._names:
            self.touched = fullname
            raise ImportError(f"{fullname} must not be imported here")


def _step_on(wire: _Tripwire, name: str, unfit: Callable[[], str]) -> str:
    """In the child: import a module; why it must not be imported, or ""."""
    if wire not in sys.meta_path:
        sys.meta_path.insert(0, wire)
    _import(name)
    return f"it imports {wire.touched}" if wire.touched else unfit()


def _import(name: str) -> None:
    with suppress(Exception):
        importlib.import_module(name)
