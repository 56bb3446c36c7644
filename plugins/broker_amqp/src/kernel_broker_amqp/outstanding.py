"""Which deliveries of one channel are not settled yet. Written by the fetch thread, settled by the settle thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection


class Outstanding:
    """Delivery tags of one channel, in order from 1. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[int, str] = {}
        self._lowest = 1  # no tag below it is outstanding
        self._next = 1

    def add(self, tag: int, queue: str) -> None:
        with self._lock:
            self._queues[tag] = queue
            self._next = tag + 1

    def __contains__(self, tag: int) -> bool:
        return tag in self._queues

    def settle(self, tags: Collection[int]) -> int:
        """Take these off; returns the lowest tag that is still outstanding or has not come yet.

        Everything below may be acknowledged with one `multiple`.
        """
        with self._lock:
            for tag in tags:
                self._queues.pop(tag, None)
            while self._lowest < self._next and self._lowest not in self._queues:
                self._lowest += 1
            return self._lowest

    def count(self) -> Counter[str]:
        """How many, by queue."""
        with self._lock:
            return Counter(self._queues.values())
