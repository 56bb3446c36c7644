"""Requests whose last run may have ended whoever ran them: which of them may start now, and where.

Runs on the loop thread; knows requests and executors. A message that kills its worker leaves nobody to report it: it
comes back `recovered`, together with all that the worker only held. So what is recovered is counted before it runs
(marked), at the moment a slot is free for it, and never while it waits. Those that came back more than once run one at
a time, so that the innocent are not counted with the guilty again and again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING

from .types import Delivery

if TYPE_CHECKING:
    from .request import Request
    from .supervisor import Handle

MAX_BLOCKED = 1000
"""Requests that wait for others to end, and take no room of the prefetch."""


class Suspicion(IntEnum):
    """How far a request is kept from others."""

    RECOVERED = 0
    """To be counted before it runs; beside any others."""
    IN_EXECUTOR = 1
    """It was counted before: alone among its like in one executor, which the others would die with."""
    IN_WORKER = 2
    """It was counted and came back from a dead worker again: alone among its like in this worker."""


class Suspects:
    """The suspects of one worker that wait for a slot, in a line for each degree.

    :param can_mark: the broker counts a delivery in place.
    """

    def __init__(self, can_mark: bool) -> None:
        self.can_mark = can_mark
        self.waiting = 0
        self._lines: tuple[deque[Request], ...] = tuple(deque() for _ in Suspicion)
        self._in_worker: Request | None = None
        self._in_executor: dict[int, Request] = {}

    def suspicion(self, delivery: Delivery, several_slots: bool) -> Suspicion | None:
        """What is to be feared of a delivery; None = it is run like any other.

        :param several_slots: executors run more than one request at once.
        """
        if delivery.recovered:
            return Suspicion.IN_WORKER if delivery.attempts else Suspicion.RECOVERED
        if delivery.attempts > 1 and not self.can_mark:
            return Suspicion.IN_WORKER  # counted by going back, so nothing tells any more who has lost it
        # What has gone back to be counted starts before the next one goes: that could not be told from a victim.
        return Suspicion.IN_EXECUTOR if delivery.attempts and (several_slots or not self.can_mark) else None

    def add(self, request: Request, *, first: bool = False) -> None:
        """Line up a request, which has its `suspicion`."""
        assert request.suspicion is not None
        line = self._lines[request.suspicion]
        (line.appendleft if first else line.append)(request)
        self.waiting += 1

    def take(self, handle: Handle) -> Request | None:
        """The next one that may start in this executor, which has a free slot."""
        for degree in reversed(Suspicion):
            line = self._lines[degree]
            if line and self._may_start(degree, handle):
                self.waiting -= 1
                request = line.popleft()
                if degree is Suspicion.IN_WORKER:
                    self._in_worker = request
                if degree is not Suspicion.RECOVERED:
                    self._in_executor[handle.key] = request
                return request
        return None

    def want(self, handle: Handle) -> bool:
        """Whether one of them may start in this executor when a slot is free: then nothing else waits for it there."""
        return any(
            line and self._may_start(degree, handle) for degree, line in zip(Suspicion, self._lines, strict=True)
        )

    def _may_start(self, degree: Suspicion, handle: Handle) -> bool:
        if degree is Suspicion.RECOVERED:
            return True
        if degree is Suspicion.IN_WORKER and _runs(self._in_worker):
            return False
        return handle.slots == 1 or not _runs(self._in_executor.get(handle.key))

    @property
    def blocked(self) -> int:
        """How many wait for others of their kind to end."""
        return min(MAX_BLOCKED, self.waiting - len(self._lines[Suspicion.RECOVERED]))

    def surplus(self) -> Request | None:
        """The youngest of those that only wait for a slot, taken out; None when there is none."""
        line = self._lines[Suspicion.RECOVERED]
        if not line:
            return None
        self.waiting -= 1
        return line.pop()

    def forget_fenced(self) -> None:
        """Take out those that became another worker's."""
        for request in self.drain():
            if not request.is_fenced:
                self.add(request)

    def drain(self) -> list[Request]:
        """All that wait, taken out."""
        requests = list(self)
        for line in self._lines:
            line.clear()
        self.waiting = 0
        return requests

    def gone(self, handle: Handle) -> None:
        """An executor has ended."""
        self._in_executor.pop(handle.key, None)

    def __iter__(self) -> Iterator[Request]:
        for line in self._lines:
            yield from list(line)  # copied in one step: the settle thread asks, too


def _runs(request: Request | None) -> bool:
    """Whether a request is with an executor, or about to be. Asked instead of being told: there are many ways to end."""
    if request is None or request.executor is None:
        return False
    return request.is_marking or request.executor.outstanding.get(request.tag) is request
