"""Slots that are greenlets: what gevent and eventlet have in common. Executor process.

Some greenlets run jobs, each in a slot while it does. Another one reads what the kernel sends, one reports, one obeys
what the minder, a native thread, asks for; the main greenlet waits for the end. Threads wake them by descriptors, the
one thing that works across threads in both libraries.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from os import pipe, read, set_blocking, write
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from kernel_worker.drivers import Call, Native, Runtime
from kernel_worker.executor import Executor
from kernel_worker.interrupting import Aim
from kernel_worker.types import Job, Outcome
from kernel_worker.wire import ChannelClosed

from .native import SystemNative

if TYPE_CHECKING:
    from .coroutines import CoroutineThread

TURN_S = 0.005
"""How long jobs that do not wait keep others from running."""
MOST_PARKED = 100
"""Greenlets kept for later at most: each holds some kilobytes of stack."""
FLUSH_PACE_S = 0.001, 0.004
"""Outcomes are reported at once, but not more often than this: the more there were, the longer the next ones may wait."""
PACE_PER_OUTCOME_S = 0.0005


class Signal:
    """A descriptor that any thread makes readable."""

    def __init__(self) -> None:
        self.fd, self._write = pipe()
        set_blocking(self.fd, False)
        set_blocking(self._write, False)

    def give(self) -> None:
        """Make it readable."""
        try:
            write(self._write, b"\0")
        except BlockingIOError:
            pass  # full: it is readable

    def take(self) -> None:
        """Make it unreadable."""
        try:
            read(self.fd, 4096)
        except BlockingIOError:
            pass


class GreenRuntime(Runtime):
    """Runs each job in a greenlet."""

    reads_always = True

    def __init__(self) -> None:
        self._executor: Executor | None = None
        self._free: list[int] = []
        self._running: dict[int, greenlet] = {}
        """The greenlet of each job, from the beginning to the end of its `LoadedApp.run`."""
        self._deferred: list[Aim] = []
        """What has to wait until its task waits elsewhere. Filled in the hub, taken by the minder."""
        self._orders: deque[Callable[[], object]] = deque()
        self._ordered = Signal()
        self._ended = Signal()
        self._failure: ChannelClosed | None = None
        self._coroutines: CoroutineThread | None = None
        self._parked: list[greenlet] = []
        """Those that run jobs and have none; the one parked last goes first."""
        self._is_starting = False
        """Whether the hub starts what waits, or is about to."""
        self._flusher: greenlet
        self._flushes = False
        """Whether it flushes, or is about to."""

    # -- what the library does

    @abstractmethod
    def spawn(self, function: Callable[..., object], *args: Any) -> greenlet:
        """Call the function soon, in a greenlet of its own. Thread of `serve`."""

    @abstractmethod
    def new(self, function: Callable[[], object]) -> greenlet:
        """A greenlet that calls the function when it is switched to. Hub."""

    @abstractmethod
    def call_in_hub(self, function: Callable[..., object], *args: Any) -> None:
        """Call the function soon, in the hub. Thread of `serve`."""

    @abstractmethod
    def wait_readable(self, fd: int) -> None:
        """Let others run until the descriptor can be read."""

    @abstractmethod
    def wait_for_switch(self) -> None:
        """Let others run until somebody switches to this greenlet."""

    # -- the runtime

    def native(self) -> Native:
        return SystemNative()

    def serve(self, executor: Executor) -> None:
        self._executor = executor
        self._free = list(range(len(executor.slots)))[::-1]
        self._flusher = self.spawn(self._flush)
        self.spawn(self._read)
        self.spawn(self._obey)
        self.wait_readable(self._ended.fd)
        if self._failure is not None:
            raise self._failure
        executor.leave()

    def look(self) -> None:
        executor = self._executor
        assert executor is not None
        if executor.waiting:
            self._start_soon(executor)
        elif executor.retiring and len(self._free) == len(executor.slots):
            self._ended.give()

    def _start_soon(self, executor: Executor) -> None:
        """Have what waits started, once those that are ready now have run."""
        if self._free and not self._is_starting and not executor.reports.is_congested:
            self._is_starting = True
            self.call_in_hub(self._start_what_waits, executor)

    def _start_what_waits(self, executor: Executor) -> None:
        """In the hub, to which a greenlet comes back when its job waits for something: then the next one starts. Each
        call of the hub costs as much as half a short job."""
        let_others_at = time.monotonic() + TURN_S
        try:
            while executor.waiting and self._free and not executor.reports.is_congested:
                (self._parked.pop() if self._parked else self.new(self._serve_slots)).switch()
                if time.monotonic() > let_others_at:
                    break
        finally:
            self._is_starting = False
        if executor.waiting:
            self._start_soon(executor)

    def _read(self) -> None:
        executor = self._executor
        assert executor is not None
        fd = executor.channel.fileno()
        try:
            while True:
                self.wait_readable(fd)
                executor.receive()
                self.look()
        except ChannelClosed as failure:
            self._failure = failure
            self._ended.give()

    def _serve_slots(self) -> None:
        """The life of one of the greenlets that run jobs. They are kept: to start one costs more than a short job."""
        this = getcurrent()
        self._work()
        while len(self._parked) < MOST_PARKED:
            self._parked.append(this)
            self.wait_for_switch()
            self._work()

    def _work(self) -> None:
        """Run jobs in one slot, one after the other as long as they do not wait for anything."""
        executor = self._executor
        assert executor is not None
        slot = self._free.pop()
        let_others_at = time.monotonic() + TURN_S
        while (job := executor.take()) is not None:
            if executor.waiting:
                self._start_soon(executor)
            executor.execute(job, slot)
            if not self._flushes:
                self._flushes = True
                self.call_in_hub(self._flusher.switch)
            if time.monotonic() > let_others_at:
                break
        self._free.append(slot)
        self.look()

    def _flush(self) -> None:
        """The greenlet that reports: after all that is ready to run then, so that what ends together is told together."""
        executor = self._executor
        assert executor is not None
        least_s, most_s = FLUSH_PACE_S
        flushed_at = pace_s = 0.0
        while True:
            self.wait_for_switch()
            pause_s = flushed_at + pace_s - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            pace_s = min(max(least_s, PACE_PER_OUTCOME_S * len(executor.reports.ended)), most_s)
            executor.flush()
            flushed_at = time.monotonic()
            self._flushes = False  # not before: it must not be switched to while it waits for the result backend
            self.look()

    def around(self, run: Call) -> Call:
        running = self._running

        def noted(job: Job) -> Outcome:
            running[job.tag] = getcurrent()
            try:
                return run(job)
            finally:
                del running[job.tag]

        return noted

    def run_coroutine(self, coroutine: Any) -> Any:
        if self._coroutines is None:
            from .coroutines import CoroutineThread  # asyncio is not loaded for nothing

            self._coroutines = CoroutineThread(self)
        return self._coroutines.run(coroutine)

    # -- from the minder's thread

    def soon(self, callback: Callable[[], object]) -> None:
        self._orders.append(callback)
        self._ordered.give()

    def cancel(self, tag: int, error: BaseException) -> bool:
        if tag not in self._running:
            return False
        aim = Aim(tag, error)
        self.soon(lambda: self.call_in_hub(self._throw_all, [aim]))
        return True

    def insist(self) -> bool:
        if not self._deferred:
            return False
        aims, self._deferred = self._deferred, []
        self.soon(lambda: self.call_in_hub(self._throw_all, aims))
        return True

    def _throw_all(self, aims: list[Aim]) -> None:
        """In the hub, so no task runs: those that have begun and not ended are all waiting for something."""
        for aim in aims:
            task = self._running.get(aim.tag)
            if task is not None and aim.must_wait(task.gr_frame):
                self._deferred.append(aim)
            elif task is not None:
                task.throw(aim.error)

    def _obey(self) -> None:
        while True:
            self.wait_readable(self._ordered.fd)
            self._ordered.take()
            while self._orders:
                self.spawn(self._carry_out, self._orders.popleft())

    def _carry_out(self, order: Callable[[], object]) -> None:
        order()
        self.look()
