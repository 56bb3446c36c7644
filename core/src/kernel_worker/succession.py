"""Replace executors without a gap: the heir comes up first, and takes over as the one before it empties.

Runs on the loop thread only. An heir gets no work (`Handle.limit` 0) until the executor it replaces is retired, and then
as much room as that one has left: so at no time run more tasks than the pool has slots, and as few slots as
possible stand empty.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .supervisor import Handle, Supervisor

log = logging.getLogger("kernel_worker.supervisor")

AHEAD = 2.0
"""An heir is asked for this many of the slowest start-ups before it is needed."""


class Succession:
    """Who follows whom among the executors of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.max_tasks = 0
        """Tasks an executor is given in its life at most; 0 = no bound."""
        self.startup_s = 0.0
        """How long executors take from being asked for to being up, of late."""
        self.replaced = 0
        """How many were replaced on purpose."""

    # -- asked for

    def replace(self, handle: Handle, reason: str, *, at_once: bool = False) -> bool:
        """Have another executor take the place of this one, which then finishes what it holds and ends.

        :param reason: for the log.
        :param at_once: give it no more work from now on, although the other one is not up.
        :return: False when that is under way already, or the executor is no longer in the pool.
        """
        if handle.retiring or (handle.replaced and not at_once) or handle.key not in self.supervisor.executors:
            return False
        handle.replaced = handle.replaced or reason
        heir = self.prepare(handle)
        if heir is None or heir.up or at_once:
            self._abdicate(handle)
        return True

    def prepare(self, handle: Handle) -> Handle | None:
        """Have an heir come up: it will be needed soon. None where none can be started now."""
        if handle.heir is None:
            handle.heir = self.supervisor.add_heir(handle)
        return handle.heir

    def given(self, handle: Handle) -> None:
        """The executor was given one more task (`Handle.given`). Called only when there is a bound."""
        left = self.max_tasks - handle.given
        if left <= 0:
            handle.replaced = handle.replaced or f"after {handle.given} tasks"
            self.prepare(handle)
            self._abdicate(handle)
        elif handle.heir is None:
            alive_s = time.monotonic() - handle.up_at
            if left * alive_s <= AHEAD * self.startup_s * handle.given:
                self.prepare(handle)

    # -- what happens

    def up(self, handle: Handle) -> None:
        """An executor came up."""
        handle.up_at = time.monotonic()
        self.startup_s = max(handle.up_at - handle.asked_at, 0.7 * self.startup_s)
        before = handle.heir_of
        if before is not None and before.replaced and not before.retiring:
            self._abdicate(before)
        if handle.heir_of is not None:
            self.emptied(handle.heir_of)

    def emptied(self, handle: Handle) -> None:
        """An executor that has an heir holds less than before: its room goes over."""
        heir = handle.heir
        if heir is not None and handle.retiring and not heir.retiring:
            heir.limit = max(0, min(heir.slots, self.supervisor.layout.slots) - len(handle.outstanding))

    def gone(self, handle: Handle) -> None:
        """An executor has ended, whatever for."""
        heir, before = handle.heir, handle.heir_of
        if heir is not None:
            heir.heir_of = handle.heir = None
            if not heir.retiring:
                heir.limit = min(heir.slots, self.supervisor.layout.slots)
        if before is not None:
            before.heir = handle.heir_of = None

    def dismiss(self, handle: Handle) -> None:
        """The pool became smaller: neither the executor nor its heir is needed."""
        if handle.heir is not None:
            self.supervisor.retire(handle.heir)
        self.supervisor.retire(handle)

    # -- within

    def _abdicate(self, handle: Handle) -> None:
        self.replaced += 1
        log.info(
            "executor %d is replaced: %s",
            handle.pid,
            handle.replaced,
            extra={"action": "executor_replaced", "pid": handle.pid, "reason": handle.replaced},
        )
        self.supervisor.retire(handle)
        self.emptied(handle)
