"""The minder: a thread of the executor that acts while tasks run, whatever they do.

It uses thread primitives that no monkey-patching has replaced. It raises soft limits, reads frames while nobody else
does, gives back jobs that wait behind long tasks, has outcomes reported that would otherwise wait for them, and ends
the process when the kernel is gone.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from functools import partial
from os import pipe, read, set_blocking, write  # these, whatever is put in their place later
from typing import TYPE_CHECKING

from . import memory
from .interrupting import INSIST_S
from .wire import ChannelClosed

if TYPE_CHECKING:
    from .executor import Executor

log = logging.getLogger("kernel_worker.executor")

LONG_TASK_S = 0.05
"""A task that runs longer lets nobody wait behind it: the minder reads frames and gives back jobs."""
MINDER_TICK_S = 0.02
MINDER_IDLE_S = 1.0
"""The minder sleeps for good when nothing has run for this long; the next job wakes it."""
SLOW_TICK_S = 0.25
"""How often it looks when nothing has begun for a second."""
NEVER_S = 1e9


class Minder:
    """The minder of one executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.asleep = True
        """Whether it must be woken by whatever job begins."""
        self.limited = False
        """Whether a job that began may have a soft limit. Set by slots after their deadline."""
        self._over = False
        self._deadline_s = NEVER_S
        """Seconds from the last look to the next soft limit."""
        self._waited = 0
        """The job that waited first at the last tick."""
        self._unread_at = -1
        """How many reads there were when frames were found unread, at the last tick."""
        self._wake_r, self._wake_w = pipe()
        set_blocking(self._wake_r, False)
        set_blocking(self._wake_w, False)

    def start(self) -> None:
        """Start the thread. After any fork, before the first job."""
        self._executor.native.start_thread(self._mind)

    def stop(self) -> None:
        """End the thread: an inline executor's process goes on without it."""
        self._over = True
        self.wake()

    def wake(self) -> None:
        """A job begins, and the minder sleeps, or would look too late."""
        self.asleep = False
        try:
            write(self._wake_w, b"\0")
        except OSError:
            pass  # full: it is awake; closed: it has ended

    def _mind(self) -> None:
        executor = self._executor
        idle_since = time.monotonic()
        while not self._over:
            now = time.monotonic()
            if executor.is_busy or executor.reports.ended:
                idle_since = now
            try:
                if now - idle_since > MINDER_IDLE_S:
                    idle_since = now
                    if executor.begun_at:
                        memory.give_back()
                    self.asleep = True
                    if not executor.is_busy:  # a job that started in between has seen the flag, or is seen here
                        self._rest(3600.0)
                    self.asleep = False
                    idle_since = time.monotonic()
                else:
                    self._tick(now)
            except ChannelClosed as error:
                # The kernel is gone while a task runs. Its lease runs out and the message is
                # delivered again: ending now is what keeps it from running twice at once.
                if self._over:
                    break
                # On a thread: who reads that may have stopped reading.
                executor.native.start_thread(partial(write, 2, f"executor {os.getpid()} ends: {error}\n".encode()))
                executor.native.poll([], 0.05)
                os._exit(1)
            except Exception:  # the minder must go on whatever one tick meets
                executor.runtime.soon(lambda: log.exception("minder", extra={"action": "minder_failed"}))
        os.close(self._wake_r)
        os.close(self._wake_w)

    def _rest(self, wait_s: float, *fds: int) -> list[int]:
        ready = self._executor.native.poll([self._wake_r, *fds], wait_s)
        # Not read for nothing: each call gives up the interpreter, and is in the way of the task to get it back.
        with suppress(OSError):
            if self._wake_r not in ready or read(self._wake_r, 64):
                return ready
        # What else it has closed may be somebody else's by now, or never be noticed.
        raise ChannelClosed("a task has closed descriptors that are not its own")

    def _tick(self, now: float) -> None:
        executor = self._executor
        self._deadline_s = NEVER_S
        if self.limited:
            self._raise_soft_limits(now)
        if executor.runtime.insist():
            self._deadline_s = INSIST_S
        if executor.reports.is_overdue(now):
            executor.runtime.soon(executor.reports.flush)
            took_s = time.monotonic() - now  # a store that is away takes seconds to say so
            now, self._deadline_s = now + took_s, max(0.0, self._deadline_s - took_s)
        since = now - executor.begun_at
        if since < LONG_TASK_S or not executor.is_busy:
            self._rest(min(max(LONG_TASK_S - since, MINDER_TICK_S), self._deadline_s))
            return
        self._give_back_what_waits()
        wait_s = min(SLOW_TICK_S if since > 1.0 else MINDER_TICK_S, self._deadline_s)
        if executor.runtime.reads_always:
            self._read_if_nobody_does(wait_s)
        else:
            self._read_behind_task(wait_s)

    def _give_back_what_waits(self) -> None:
        """Jobs that wait behind long ones. With many slots only if none was taken since the last tick: a slot may be free,
        and its thread or greenlet about to come to run."""
        executor = self._executor
        first = executor.first_waiting
        if first and (first == self._waited or not executor.runtime.reads_always):
            executor.give_back()
        self._waited = first

    def _read_behind_task(self, wait_s: float) -> None:
        """One slot: who reads between tasks runs one now."""
        executor = self._executor
        tag, channel = executor.slots[0].tag, executor.channel.fileno()
        if channel in self._rest(wait_s, channel) and tag and executor.slots[0].tag == tag:
            executor.receive()

    def _read_if_nobody_does(self, wait_s: float) -> None:
        """Frames that lie there for two ticks: a task holds the loop that should read them."""
        executor = self._executor
        if self._executor.native.poll([executor.channel.fileno()], 0.0):
            if self._unread_at == executor.reads:
                executor.receive()
                executor.runtime.soon(executor.runtime.look)
            self._unread_at = executor.reads
            wait_s = min(wait_s, MINDER_TICK_S)
        else:
            self._unread_at = -1
        self._rest(wait_s)

    def _raise_soft_limits(self, now: float) -> None:
        self.limited = False  # first: a slot that begins a limited job after our look at it sets this again
        next_at = 0.0
        for slot in self._executor.slots:
            tag, deadline = slot.tag, slot.deadline  # in this order: a deadline is set before its tag
            if not tag or not deadline or slot.limit_raised == deadline:
                continue
            if deadline > now:
                next_at = min(next_at, deadline) if next_at else deadline
            else:
                slot.limit_raised = deadline
                self._executor.runtime.cancel(tag, self._executor.app.soft_limit_error())
        if next_at:
            self.limited, self._deadline_s = True, next_at - now
