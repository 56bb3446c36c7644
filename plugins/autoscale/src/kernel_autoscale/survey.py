"""Ask the broker how much waits, on a thread of its own: the loop never waits for a broker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from kernel_worker import KernelWorkerError

log = logging.getLogger("kernel_autoscale")

EVERY_S = 2.0
"""The broker is asked this often at most."""
FRESH_S = 3 * EVERY_S


class Survey:
    """How many messages wait in the queues of this worker. Loop thread, but for `_serve`.

    :param count: blocking; how many wait. Called on the thread.
    """

    def __init__(self, loop: Any, count: Callable[[], int]) -> None:
        self._loop = loop
        self._count = count
        self._asked_at = float("-inf")
        self._answered_at = float("-inf")
        self._waiting = 0
        self._is_asking = False
        self._question = threading.Event()
        self._over = False
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """What the last answer said, 0 when that is too long ago."""
        return self._waiting if time.monotonic() - self._answered_at < FRESH_S else 0

    def ask(self) -> None:
        """Have it counted again, unless that was done just now. Does not wait."""
        now = time.monotonic()
        if self._is_asking or self._over or now - self._asked_at < EVERY_S:
            return
        self._asked_at, self._is_asking = now, True
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="kw-autoscale", daemon=True)
            self._thread.start()
        self._question.set()

    def forget(self) -> None:
        """Nothing waits: a slot is free."""
        self._waiting = 0

    def stop(self, deadline: float) -> None:
        """End the thread. One that waits for the broker is left behind: it dies with the process."""
        self._over = True
        self._question.set()
        if self._thread is not None:
            self._thread.join(min(0.2, max(0.0, deadline - time.monotonic())))

    def _serve(self) -> None:
        while True:
            self._question.wait()
            self._question.clear()
            if self._over:
                return
            waiting = 0
            try:
                waiting = self._count()
            except KernelWorkerError:
                pass  # away: told by who fetches
            except Exception:  # a driver's bug must not end scaling: what the worker itself holds still counts
                log.exception("the queues cannot be counted", extra={"action": "survey_failed"})
            if self._over:
                return
            self._loop.post(self._answer, waiting)

    def _answer(self, waiting: int) -> None:
        self._is_asking = False
        self._waiting, self._answered_at = waiting, time.monotonic()
