"""Slots on an event loop. Executor process.

The main thread turns the loop: it reads what the kernel sends, and runs `async def` tasks. Plain functions run in
threads, as in the threads pool. One more thread stores and reports what has ended, so that a slow result backend never
holds the loop.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import get_ident
from types import FrameType
from typing import Any

from kernel_pool_threads.interruption import Interruption
from kernel_pool_threads.runtime import CONGESTED_S, ThreadsRuntime
from kernel_worker.executor import Executor
from kernel_worker.interrupting import Aim
from kernel_worker.types import Job, Outcome
from kernel_worker.wire import ChannelClosed

from .run import Run

End = tuple[Job, int, Outcome]


class AsyncioRuntime(ThreadsRuntime):
    """Runs each `async def` job as a task of one event loop, and each other job in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self._loop: asyncio.AbstractEventLoop
        self._main = 0
        self._over: asyncio.Future[None]
        self._free: list[int] = []
        self._runs: dict[int, Run] = {}
        """By tag: jobs that run on the loop, with those that a thread waits for."""
        self._ends: SimpleQueue[End | None] = SimpleQueue()
        self._thread_jobs: SimpleQueue[tuple[Job, int] | None] = SimpleQueue()
        self._idle_threads = 0
        self._thread_count = 0
        self._step_waits = False
        """Whether an error for the step that is under way had to wait."""
        self._tags: dict[int, int] = {}
        """The job that each thread runs."""

    # -- the main thread

    def serve(self, executor: Executor) -> None:
        self._executor = executor
        self._main = get_ident()
        self._loop = loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self._over = loop.create_future()
        self._free = list(range(len(executor.slots)))[::-1]
        signal.signal(signal.SIGUSR1, lambda number, frame: self._interrupt_step(frame))
        reporter = threading.Thread(target=self._report, name="kw-report", daemon=True)
        reporter.start()
        loop.add_reader(executor.channel.fileno(), self._readable)
        loop.call_soon(self._assign)
        loop.run_until_complete(self._over)  # raises ChannelClosed; tasks that are left end with the process
        for _ in range(self._thread_count):
            self._thread_jobs.put(None)
        self._ends.put(None)
        reporter.join()
        executor.leave()

    def _readable(self) -> None:
        assert self._executor is not None
        try:
            self._executor.receive()
        except ChannelClosed as error:
            self._loop.remove_reader(self._executor.channel.fileno())
            if not self._over.done():
                self._over.set_exception(error)
            return
        self._assign()

    def _assign(self) -> None:
        executor, free = self._executor, self._free
        assert executor is not None
        while free and (job := executor.take()) is not None:
            self._begin(executor, job, free.pop())
        is_idle = len(free) == len(executor.slots) and not executor.waiting
        if executor.retiring and is_idle and not self._over.done():
            self._over.set_result(None)

    def _begin(self, executor: Executor, job: Job, slot: int) -> None:
        coroutine = executor.app.run_async(job) if job.conclude is None else None
        if coroutine is None:
            self._begin_on_thread(job, slot)
            return
        run = self._runs[job.tag] = Run(job.tag, coroutine)
        executor.begin(job, slot)
        run.task = self._loop.create_task(self._live(executor, run, job, slot))

    async def _live(self, executor: Executor, run: Run, job: Job, slot: int) -> None:
        try:
            outcome: Outcome = await run.steps()
        except BaseException as error:  # a limit that came at the very end, or a bug
            outcome = executor.escaped(job, error)
        del self._runs[job.tag]
        self._ends.put((job, slot, outcome))

    def _freed(self, slots: list[int]) -> None:
        self._free += slots
        self._assign()

    # -- threads for plain functions

    def _begin_on_thread(self, job: Job, slot: int) -> None:
        self._thread_jobs.put((job, slot))
        if self._idle_threads:
            self._idle_threads -= 1
            return
        self._thread_count += 1
        threading.Thread(target=self._serve_thread, name=f"kw-thread-{self._thread_count}", daemon=True).start()

    def _serve_thread(self) -> None:
        executor = self._executor
        assert executor is not None
        me = get_ident()
        self._interruptions[me] = Interruption(me)
        while (work := self._thread_jobs.get()) is not None:
            job, slot = work
            self._tags[me] = job.tag
            executor.execute(job, slot)
            if not executor.waiting:
                executor.flush()
            self._loop.call_soon_threadsafe(self._thread_freed, slot)

    def _thread_freed(self, slot: int) -> None:
        self._idle_threads += 1
        self._freed([slot])

    def run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """A plain function's job needs a coroutine run: on the loop, while its thread waits.

        :raises RuntimeError: called on the loop itself, which cannot wait for it.
        """
        if get_ident() == self._main:
            coroutine.close()
            raise RuntimeError(
                "an async def task cannot be run in place by another one: await its function, or send it"
            )
        done: Future[Any] = Future()
        tag = self._tags.get(get_ident(), 0)
        self._loop.call_soon_threadsafe(self._adopt, Run(tag, coroutine), copy_context(), done)
        return done.result()

    def _adopt(self, run: Run, context: Any, done: Future[Any]) -> None:
        if run.tag:
            self._runs[run.tag] = run

        async def live() -> None:
            try:
                done.set_result(await run.steps())
            except BaseException as error:  # carried over to the thread
                done.set_exception(error)
            finally:
                self._runs.pop(run.tag, None)

        run.task = self._loop.create_task(live(), context=context)

    # -- the thread that reports

    def _report(self) -> None:
        executor = self._executor
        assert executor is not None
        while True:
            ends = self._take_ends(CONGESTED_S if executor.reports.is_congested else None)
            is_over = bool(ends) and ends[-1] is None
            slots = []
            for end in ends:
                if end is not None:
                    job, slot, outcome = end
                    executor.end(job, slot, outcome)
                    slots.append(slot)
            self._loop.call_soon_threadsafe(self._freed, slots)
            if is_over or self._ends.empty():
                executor.flush()
            if is_over:
                return

    def _take_ends(self, timeout: float | None) -> deque[End | None]:
        ends: deque[End | None] = deque()
        try:
            ends.append(self._ends.get(timeout=timeout))
            while ends[-1] is not None:
                ends.append(self._ends.get_nowait())
        except Empty:
            pass
        return ends

    # -- the minder, or the main thread

    def look(self) -> None:
        self._loop.call_soon_threadsafe(self._assign)

    def cancel(self, tag: int, error: BaseException) -> bool:
        run = self._runs.get(tag)
        if run is None:
            return super().cancel(tag, error)
        run.aim = Aim(tag, error)
        if run.is_stepping and get_ident() != self._main:
            signal.pthread_kill(self._main, signal.SIGUSR1)  # it may compute for long
        self._loop.call_soon_threadsafe(run.deliver)
        return True

    def insist(self) -> bool:
        threads_wait = super().insist()
        if not self._step_waits:
            return threads_wait
        self._step_waits = False
        signal.pthread_kill(self._main, signal.SIGUSR1)
        return True

    def _interrupt_step(self, frame: FrameType | None) -> None:
        for run in list(self._runs.values()):
            self._step_waits |= run.interrupt(frame)
