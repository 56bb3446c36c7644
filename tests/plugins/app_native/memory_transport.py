"""A publisher and a result backend in memory, obeying the contracts of `kernel_worker.drivers`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class MemoryPublisher:
    """Keeps what is published. `outages`: how many of the next calls fail as if the broker were away."""

    made = 0

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self.options = options
        self.sent: list[Any] = []
        self.outages = 0
        self.attempts = 0

    def publish(self, message: Any) -> None:
        self.publish_many([message])

    def publish_many(self, messages: Sequence[Any]) -> None:
        self.attempts += 1
        if self.outages:
            self.outages -= 1
            raise ConnectionError(f"no route to {self.url}")
        self.sent += messages

    def close(self) -> None:
        pass


class MemoryResults:
    """Keeps what is stored, in order; a SUCCESS is never replaced."""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self.url = url
        self.settings = settings
        self.history: list[Any] = []
        self.outages = 0
        self._stored: dict[str, Any] = {}
        self._changed = threading.Condition()

    def store(self, results: Sequence[Any]) -> None:
        if self.outages:
            self.outages -= 1
            raise ConnectionError(f"no route to {self.url}")
        with self._changed:
            self.history += results
            for result in results:
                known = self._stored.get(result.task_id)
                if known is None or known.state != "SUCCESS":
                    self._stored[result.task_id] = result
            self._changed.notify_all()

    def fetch(self, task_id: str) -> bytes | None:
        if self.outages:
            self.outages -= 1
            raise ConnectionError(f"no route to {self.url}")
        stored = self._stored.get(task_id)
        return None if stored is None else stored.payload

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                payload = self.fetch(task_id)
                if payload is not None and is_final(payload):
                    return payload
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)

    def forget(self, task_id: str) -> None:
        self._stored.pop(task_id, None)

    def close(self) -> None:
        pass
