"""A wall clock that can be set: on PYTHONPATH, it adds the seconds in the file that SYMOE_FAULTS_CLOCK names.

It is imported at the start of every Python process of a disturbed run, Ray's workers and the engines included.
"""

import mmap
import os
import struct
import time

with open(os.environ["SYMOE_FAULTS_CLOCK"], "rb") as _file:
    _held = mmap.mmap(_file.fileno(), 8, prot=mmap.PROT_READ)
_time, _time_ns = time.time, time.time_ns


def _offset_s() -> float:
    (seconds,) = struct.unpack("d", _held[:8])
    return float(seconds)


def wall_s() -> float:
    """What `time.time` says then; a function of this module, so that it can be pickled."""
    return _time() + _offset_s()


def wall_ns() -> int:
    """What `time.time_ns` says then."""
    return _time_ns() + int(_offset_s() * 1e9)


time.time, time.time_ns = wall_s, wall_ns
