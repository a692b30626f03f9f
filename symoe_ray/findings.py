"""What a look at the machine has found, for `symoe doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `advice` says what to do where it is not fine."""

    what: str
    value: str
    fine: bool = True
    advice: str = ""
