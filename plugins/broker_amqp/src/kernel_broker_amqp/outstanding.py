"""Which deliveries of one channel are not settled yet. Written by the fetch thread, settled by the settle thread."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Generic, TypeVar

T = TypeVar("T")


class Outstanding(Generic[T]):
    """Delivery tags of one channel, in order from 1, each with what was delivered. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, T] = {}
        self._lowest = 1  # no tag below it is outstanding
        self._next = 1

    def add(self, tag: int, delivered: T) -> None:
        with self._lock:
            self._held[tag] = delivered
            self._next = tag + 1

    def __contains__(self, tag: int) -> bool:
        return tag in self._held

    def __len__(self) -> int:
        return len(self._held)

    def settle(self, tags: Collection[int]) -> int:
        """Take these off; returns the lowest tag that is still outstanding or has not come yet.

        Everything below may be acknowledged with one `multiple`.
        """
        with self._lock:
            for tag in tags:
                self._held.pop(tag, None)
            while self._lowest < self._next and self._lowest not in self._held:
                self._lowest += 1
            return self._lowest

    def all(self) -> list[T]:
        """What is held, in the order of delivery."""
        with self._lock:
            return list(self._held.values())
