"""Slots that are threads. Executor process.

The main thread reads what the kernel sends; each slot is a thread, started when it is first needed, that takes jobs.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from threading import get_ident

from kernel_worker.drivers import Call, Native, Runtime
from kernel_worker.executor import Executor, PlainNative
from kernel_worker.types import Job, Outcome
from kernel_worker.wire import ChannelClosed

from .interruption import Interruption

CONGESTED_S = 0.05
"""How often a thread asks whether the result backend is back, when it has been away for so long that none may go on."""
DRAIN_TICK_S = 0.02


class ThreadsRuntime(Runtime):
    """Runs each job in one of as many threads as there are slots."""

    reads_always = True

    def __init__(self) -> None:
        self._executor: Executor | None = None
        self._turns: SimpleQueue[bool] = SimpleQueue()
        """One entry for each job that came, at least; False ends a thread."""
        self._threads: list[threading.Thread] = []
        self._interruptions: dict[int, Interruption] = {}

    def prepare(self) -> None:
        """Nothing to patch."""

    def native(self) -> Native:
        return PlainNative()

    # -- the main thread

    def serve(self, executor: Executor) -> None:
        self._executor = executor
        while not executor.retiring:
            self._announce(executor.receive(wait=True))
        for _ in self._threads:
            self._turns.put(False)  # behind the jobs that are here
        fds = [executor.channel.fileno()]
        while any(thread.is_alive() for thread in self._threads):
            if executor.native.poll(fds, DRAIN_TICK_S):
                executor.receive()  # limits, and jobs to be given back
        executor.leave()

    def look(self) -> None:
        executor = self._executor
        if executor is not None:
            self._announce(executor.waiting)

    def _announce(self, count: int) -> None:
        for _ in range(count):
            self._turns.put(True)
        executor = self._executor
        assert executor is not None
        have = len(self._threads)
        if have < len(executor.slots):
            idle = have - sum(1 for slot in executor.slots[:have] if slot.tag)
            for slot in range(have, min(len(executor.slots), have + executor.waiting - idle)):
                thread = threading.Thread(target=self._work, args=(slot,), name=f"kw-slot-{slot}", daemon=True)
                self._threads.append(thread)
                thread.start()

    # -- the threads

    def _work(self, slot: int) -> None:
        self._interruptions[get_ident()] = Interruption(get_ident())
        try:
            self._run_jobs(slot)
        except ChannelClosed:
            # Nobody hears of any end. If a task has closed the descriptor the main thread does not learn it: it waits in
            # the system for what comes, and the kernel process sees nothing of it, either.
            os._exit(1)

    def _run_jobs(self, slot: int) -> None:
        executor = self._executor
        assert executor is not None
        while self._turns.get():
            while executor.reports.is_congested:
                executor.native.poll([], CONGESTED_S)
                executor.flush()
            job = executor.take()
            if job is not None:
                executor.execute(job, slot)
            if not executor.waiting:
                executor.flush()

    def around(self, run: Call) -> Call:
        interruptions = self._interruptions

        def guarded(job: Job) -> Outcome:
            interruption = interruptions[get_ident()]
            outcome = None
            try:
                interruption.open(job.tag)
                outcome = run(job)
                interruption.close()
            except BaseException:
                interruption.close()
                if outcome is None:
                    raise
            return outcome  # an error that came when the job had ended came too late

        return guarded

    # -- the minder, or the main thread

    def cancel(self, tag: int, error: BaseException) -> bool:
        return any(each.interrupt(tag, error) for each in list(self._interruptions.values()))

    def insist(self) -> bool:
        left = [each.insist() for each in list(self._interruptions.values())]  # all of them are tried
        return any(left)
