"""Hard time limits: what runs for longer is ended by the kernel, whatever it does. Loop thread."""

from __future__ import annotations

import time

from .loop import Loop
from .supervisor import Handle, Supervisor

SLACK_S = 0.05
"""A limit is looked at this much later than it would be over had the task begun at once."""
CANCEL_GRACE_S = 0.9
"""How long after its hard limit, or after it was terminated, a task may live that shares its process: it is cancelled
first, the process killed then."""


class HardLimits:
    """Watches what executors run.

    :param can_kill: whether an executor can be killed and replaced.
    """

    def __init__(self, loop: Loop, supervisor: Supervisor, can_kill: bool) -> None:
        self._loop = loop
        self._supervisor = supervisor
        self._can_kill = can_kill

    def given(self, executor: Handle, limit_s: float) -> None:
        """An executor was given a request with this limit."""
        self._watch(executor, limit_s + SLACK_S)

    def _watch(self, executor: Handle, delay_s: float) -> None:
        """Look at the limits of an executor's requests in `delay_s` seconds at the latest. One timer for each executor:
        those of requests that ended long ago would keep them all in memory until their limit."""
        pending = executor.limit_check
        if pending is not None:
            if pending.when <= time.monotonic() + delay_s:
                return
            pending.cancel()
        executor.limit_check = self._loop.call_later(delay_s, self._check, executor)

    def _check(self, executor: Handle) -> None:
        executor.limit_check = None
        limited = [request for request in executor.outstanding.values() if request.hard]
        if not limited:
            return  # or it has ended, and its board with it
        records = (executor.board.read(slot) for slot in range(executor.slots))
        started = {tag: at for tag, at, _ in records}
        now, wait_s = time.monotonic(), 1e9
        for request in limited:
            left_s = request.hard - (now - started.get(request.tag, now))
            if left_s > 0:
                wait_s = min(wait_s, left_s + 0.001)
            elif self._can_kill and (executor.slots == 1 or left_s < -CANCEL_GRACE_S):
                self._supervisor.kill(executor, f"hard time limit of {request.hard:g} s", request.tag)
                return
            else:
                self._supervisor.cancel(executor, request.tag, "time_limit", request.hard)
                wait_s = min(wait_s, 1.0)  # a task may catch it: say it again
        self._watch(executor, wait_s)
