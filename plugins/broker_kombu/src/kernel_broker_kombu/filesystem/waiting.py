"""Finding what waits: the oldest messages of each queue, kept so that not every fetch lists the whole folder.

Fetch thread, but for `forget`.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import deque

from .names import SUFFIX, order

KEEP = 5_000
"""Names to keep of each queue: listing a folder of a million takes a second, and their names 100 MB."""
RECHECK_S = 0.2
"""While one queue has messages, another is looked at again after this time, or ten times what a look costs."""
UNSETTLED_S = 0.05
"""Folders' times have steps of a few milliseconds: one that changed just before it was listed may hold more."""
DISTRUST_S = 1.0
"""Longest time between two listings: network file systems tell late that a folder has changed."""


class Waiting:
    """The waiting messages of some queues in one folder."""

    def __init__(self, folder: str, queues: tuple[str, ...]) -> None:
        self._folder = folder
        self._turn = 0
        self._names: dict[str, deque[str]] = {queue: deque() for queue in queues}
        self._tails = {f"{queue}{SUFFIX}": queue for queue in queues}
        self._stale = True
        self._changed = 0
        self._listed_at = self._cost_s = 0.0

    def forget(self) -> None:
        """Something older may wait by now: list the folder at the next look. Any thread."""
        self._stale = True

    def take(self, limit: int) -> list[str]:
        """File names of up to `limit` messages to try, each queue giving in turn. They may be gone by now.

        :raises OSError: the folder cannot be read.
        """
        if self._is_time_to_list():
            self._list()
        queues = list(self._names.values())
        self._turn += 1
        start = self._turn % max(1, len(queues))
        queues = queues[start:] + queues[:start]
        found: list[str] = []
        while len(found) < limit and (queues := [queue for queue in queues if queue]):
            found += [queue.popleft() for queue in queues[: limit - len(found)]]
        return found

    def _is_time_to_list(self) -> bool:
        if self._stale:
            return True
        age_s = time.monotonic() - self._listed_at
        if any(self._names.values()):
            return not all(self._names.values()) and age_s > max(RECHECK_S, 10 * self._cost_s)
        return age_s > DISTRUST_S or age_s < UNSETTLED_S or os.stat(self._folder).st_mtime_ns != self._changed

    def _list(self) -> None:
        self._stale = False  # first: what is said from now on is not forgotten
        began = time.monotonic()
        self._changed = os.stat(self._folder).st_mtime_ns
        found: dict[str, list[str]] = {queue: [] for queue in self._names}
        pruned: set[str] = set()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                queue = self._tails.get(entry.name.partition(".")[2])
                if queue is not None:
                    names = found[queue]
                    names.append(entry.name)
                    if len(names) >= 2 * KEEP:
                        pruned.add(queue)
                        names[:] = heapq.nsmallest(KEEP, names, order)
        for queue, names in found.items():
            names.sort(key=order)
            # Once something was left out, only the first are known to be the oldest.
            self._names[queue] = deque(names[:KEEP] if queue in pruned else names)
        self._listed_at = time.monotonic()
        self._cost_s = self._listed_at - began
