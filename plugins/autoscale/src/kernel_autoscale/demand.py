"""How many slots the work needs: a pure policy over samples. Knows no pool and no broker."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil

CLEAR_S = 1.0
"""What waits shall be worked off within this time; as long as that is so, more slots would not be worth their start."""
MEASURE_S = 5.0
"""Run times are measured over this time."""


@dataclass(frozen=True, slots=True)
class Load:
    """What goes on at one moment (monotonic `now`, seconds)."""

    now: float
    slots: int
    running: int
    waiting: int
    """Tasks that wait for a slot, in the worker and in the broker."""
    completed: int
    """Tasks ended since the start of the worker."""


@dataclass(frozen=True, slots=True)
class Need:
    """How many slots the work needs, and why, for people."""

    slots: int
    reason: str


class Demand:
    """Turns samples into needs; remembers the last seconds for run times and the keepalive time for shrinking.

    :param keepalive_s: how long slots are kept that are not needed any more.
    """

    def __init__(self, keepalive_s: float) -> None:
        self._keepalive_s = keepalive_s
        self._busy_s = 0.0
        self._last = 0.0
        self._samples: deque[tuple[float, int, float]] = deque()
        self._needs: deque[tuple[float, int]] = deque()

    def measure(self, load: Load) -> Need:
        """The need of this moment. Samples must come in the order of their times."""
        mean_s = self._mean_s(load)
        need = _need(load, mean_s)
        self._needs.append((load.now, need.slots))
        while self._needs[0][0] < load.now - self._keepalive_s:
            self._needs.popleft()
        return need

    @property
    def peak(self) -> int:
        """The most slots that were needed within the keepalive time."""
        return max((slots for _, slots in self._needs), default=0)

    def _mean_s(self, load: Load) -> float | None:
        """Mean run time of the tasks that ended of late; None when none did: then they may be long."""
        if self._samples:
            self._busy_s += load.running * (load.now - self._last)
        self._last = load.now
        self._samples.append((load.now, load.completed, self._busy_s))
        while self._samples[0][0] < load.now - MEASURE_S and len(self._samples) > 2:
            self._samples.popleft()
        _, completed, busy_s = self._samples[0]
        ended = load.completed - completed
        return (self._busy_s - busy_s) / ended if ended else None


def _need(load: Load, mean_s: float | None) -> Need:
    if not load.waiting:
        return Need(load.running, f"{load.running} running, none waiting")
    if mean_s is None:
        return Need(load.running + load.waiting, f"{load.waiting} waiting, and none has ended of late")
    work_s = load.waiting * mean_s
    reason = f"{load.waiting} waiting, of {_seconds(mean_s)} each"
    if work_s <= CLEAR_S * load.slots:
        return Need(load.running, reason)
    return Need(load.running + min(load.waiting, ceil(work_s / CLEAR_S)), reason)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.3g} ms"
