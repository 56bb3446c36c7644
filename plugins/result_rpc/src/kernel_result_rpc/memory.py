"""What has been read from the reply queue, by task. One lock's worth of state; the caller holds the lock."""

from __future__ import annotations

import time
from collections import OrderedDict

_READ_KEPT = 1_000  # results that were asked for already; those nobody has asked for yet are all kept


class Memory:
    """The latest state of each task, as long as it is kept."""

    def __init__(self) -> None:
        self._metas: dict[str, tuple[bytes, str, float]] = {}  # meta, its state, kept until
        self._read: OrderedDict[str, None] = OrderedDict()

    def put(self, task_id: str, meta: bytes, state: str, keep_s: float | None) -> None:
        """Note a state. A SUCCESS is replaced by no other state, a final state by no RETRY."""
        known = self._metas.get(task_id)
        kept = ("SUCCESS", "FAILURE", "REVOKED") if state == "RETRY" else ("SUCCESS",)
        if known is not None and state != "SUCCESS" and known[1] in kept and known[2] > time.monotonic():
            return
        self._metas[task_id] = meta, state, time.monotonic() + keep_s if keep_s else float("inf")

    def get(self, task_id: str) -> bytes | None:
        """The latest state of a task."""
        found = self._metas.get(task_id)
        if found is None:
            return None
        if found[2] <= time.monotonic():
            self.forget(task_id)
            return None
        self._read[task_id] = None
        self._read.move_to_end(task_id)
        if len(self._read) > _READ_KEPT:
            oldest, _ = self._read.popitem(last=False)
            self._metas.pop(oldest, None)
        return found[0]

    def forget(self, task_id: str) -> None:
        """Drop what is known of a task."""
        self._metas.pop(task_id, None)
        self._read.pop(task_id, None)
