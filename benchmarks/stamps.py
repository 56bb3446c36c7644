"""The record of finished tasks: the body of every benchmarked task appends the time to one file, the same way in
every system, so start-up is left out and no system is asked how fast it was. Standard library only.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # applications import this module, and their start is measured
    from pathlib import Path

_stamp = struct.Struct("<q")
_descriptor: dict[int, int] = {}  # by process id: a fork must not share the offset of its parent


def append() -> None:
    """One task is done: 8 bytes, `time.monotonic_ns()`, which is one clock for all processes of a machine."""
    process = os.getpid()
    if process not in _descriptor:
        _descriptor[process] = os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_descriptor[process], _stamp.pack(time.monotonic_ns()))


def count(path: Path) -> int:
    """How many tasks are done."""
    return path.stat().st_size // _stamp.size


def read(path: Path) -> list[int]:
    """All stamps in order of time, in nanoseconds."""
    return sorted(stamp for (stamp,) in _stamp.iter_unpack(path.read_bytes()))


def middle_rate(times: list[int]) -> float:
    """Tasks per second between the first and the last 5 %: neither the start nor the last stragglers count."""
    low, high = len(times) // 20, len(times) - len(times) // 20 - 1
    return (high - low) / ((times[high] - times[low]) / 1e9)
