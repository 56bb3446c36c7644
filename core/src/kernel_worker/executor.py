"""The executor's side: run jobs in slots and report how they end.

Runs in an executor process (or, for inline pools, on the worker's main thread). Imports of the kernel only
what an executor needs: its memory is paid once per child.

The runtime runs jobs, on one thread, several, or in greenlets; beside it runs the minder, a thread that needs nobody's
cooperation. Locks are never held while something waits that is not the system: a greenlet that holds one while it is
switched out would stop its whole process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from .board import Board
from .drivers import LoadedApp, Native, Runtime
from .interrupting import Aim
from .minder import SLOW_TICK_S, Minder
from .process_state import ProcessState, watch
from .reporting import ASK_AGAIN_S, Reports
from .types import Job, Outcome, OutcomeKind
from .wire import CONCLUDE_HEAD, FLAG_PAYLOAD, FLAG_REDELIVERED, RUN_HEAD, Channel, ChannelClosed, Frame, pack_json

log = logging.getLogger("kernel_worker.executor")

READ_AHEAD = 16
"""Jobs of one slot that are read together at most."""


class PlainNative:
    """Thread primitives of an unpatched process."""

    def start_thread(self, target: Callable[[], object]) -> None:
        threading.Thread(target=target, name="kw-minder", daemon=True).start()

    def lock(self) -> Any:
        return threading.Lock()

    def poll(self, fds: Sequence[int], timeout: float) -> list[int]:
        waiting = select.poll()
        for fd in fds:
            waiting.register(fd, select.POLLIN)
        return [fd for fd, _ in waiting.poll(timeout * 1000)]


class BlockingRuntime(Runtime):
    """One slot: jobs run one after the other on the main thread. Prefork and solo."""

    def __init__(self) -> None:
        self._aim: Aim | None = None
        self._slot = Slot()

    def prepare(self) -> None:
        watch()

    def native(self) -> Native:
        return PlainNative()

    def serve(self, executor: Executor) -> None:
        self._slot = executor.slots[0]
        signal.signal(signal.SIGUSR1, self._raise_in_task)
        state = ProcessState()
        while (job := executor.next()) is not None:
            executor.execute(job, 0)
            del job  # what the task left in its request ends with it
            state.restore_after(executor.begun_at, is_last=not executor.waiting)

    def cancel(self, tag: int, error: BaseException) -> bool:
        if self._slot.tag != tag:
            return False
        self._aim = Aim(tag, error)
        self.insist()
        return True

    def insist(self) -> bool:
        if self._aim is None:
            return False
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        return True

    def _raise_in_task(self, signum: int, frame: FrameType | None) -> None:
        aim = self._aim
        if aim is None or (self._slot.tag == aim.tag and aim.must_wait(frame)):
            return
        self._aim = None
        if self._slot.tag == aim.tag:
            raise aim.error


class Slot:
    """What one slot runs now. Written by whoever runs the slot, read by the minder."""

    __slots__ = ("begun", "deadline", "limit_raised", "tag", "timed_out")

    def __init__(self) -> None:
        self.tag = 0
        """Of the job that runs, 0 between jobs. Written last when it begins, first when it ends."""
        self.begun = 0.0
        self.deadline = 0.0
        """Monotonic time of its soft limit, 0 = none."""
        self.limit_raised = 0.0
        """The deadline at which a soft limit was raised last; the minder's own note."""
        self.timed_out = 0
        """The job whose hard limit was raised while it ran, 0 = none."""


class Executor:
    """What a runtime works with.

    One slot: `next` waits for a job, `execute` runs it. Many slots: `receive` reads what the kernel sent, `take` gives
    a job, `execute` runs it in a free slot; or, where a job is awaited, `begin` and `end` around it. `flush` reports
    what has ended, `leave` ends it all. See `Runtime` for who calls what.
    """

    def __init__(self, channel: Channel, board: Board, runtime: Runtime, app: LoadedApp) -> None:
        self.channel = channel
        self.board = board
        self.app = app
        self.runtime = runtime
        self.native: Native = runtime.native()
        self.slots = [Slot() for _ in range(board.slots)]
        self.retiring = False
        """No further jobs will come: those that are here are the last."""
        self.exit_reason = "retired"
        self.begun_at = 0.0
        """When a job began last, in any slot; monotonic."""
        self.reads = 0
        """How often frames were read."""
        self._inbox: deque[Job] = deque()
        self._read = 0
        """How many jobs at the front of it are read (`LoadedApp.read`), or were before it was given back."""
        self._reading = self.native.lock()
        self._sending = self.native.lock()
        self.reports = Reports(app, board, self.native, self._send)
        self.flush = self.reports.flush
        self.minder = Minder(self)
        self._run = runtime.around(app.run)
        app.claim = self._claim

    @property
    def is_busy(self) -> bool:
        """Whether any slot runs a job."""
        return any(slot.tag for slot in self.slots)

    @property
    def waiting(self) -> int:
        """Jobs that are here and have not been taken."""
        return len(self._inbox)

    @property
    def first_waiting(self) -> int:
        """Tag of the job that waits to be taken next, 0 = none."""
        try:
            return self._inbox[0].tag
        except IndexError:
            return 0

    # -- the runtime's side: getting jobs

    def next(self) -> Job | None:
        """The next job; waits for one, with a system call. For one slot, on its thread.

        :return: None when there will be no more: retired, or the kernel is gone.
        """
        while True:
            if not self._read and len(self._inbox) > 1:
                self._read_ahead()
            self._read = max(0, self._read - 1)
            try:
                return self._inbox.popleft()
            except IndexError:
                pass
            self.flush()
            if self.retiring:
                self.leave()
                return None
            while self.reports.is_congested and not self.retiring:
                time.sleep(0.05)
                self.flush()
                self._pass_on()
            with self._reading:
                if self._inbox or self.retiring:
                    continue
                try:
                    self._handle(self.channel.receive())
                except ChannelClosed:
                    self.retiring, self.exit_reason = True, "the kernel process is gone"

    def _read_ahead(self) -> None:
        """Have the next jobs read, together: with tasks in between, each would be read with cold caches."""
        if not self._reading.acquire(False):
            return  # the minder is at it, perhaps for long; else none is fenced meanwhile
        jobs: list[Job] = []
        with contextlib.suppress(IndexError):  # what the minder has given back
            while len(jobs) < READ_AHEAD:
                jobs.append(self._inbox.popleft())
        self._inbox.extendleft(reversed([self.app.read(job) for job in jobs]))
        self._read = len(jobs)
        self._reading.release()

    def _pass_on(self) -> None:
        """Give back what the kernel has sent before it knew that no more is taken here: others may have it."""
        try:
            self.receive()
        except ChannelClosed:
            self.retiring, self.exit_reason = True, "the kernel process is gone"
        if self.reports.is_congested:
            self.give_back()

    def receive(self, wait: bool = False) -> int:
        """Read and obey what the kernel has sent; returns at once when another thread does so. Any thread.

        :param wait: wait for something to come, with a system call.
        :return: how many frames there were: at most so many jobs came.
        :raises ChannelClosed: the kernel is gone.
        """
        if not self._reading.acquire(False):
            return 0
        try:
            frames = self.channel.receive(0 if wait else socket.MSG_DONTWAIT)
            self._handle(frames)
            self.reads += 1
            return len(frames)
        finally:
            self._reading.release()

    def take(self) -> Job | None:
        """The next job that is here, or None. Any thread.

        None also while the result backend has been away for too long: others may have what is here.
        """
        if self.reports.is_congested:
            self.give_back()
            return None
        try:
            return self._inbox.popleft()
        except IndexError:
            return None

    def give_back(self) -> None:
        """Give back what has not been taken. Any thread."""
        tags = []
        while True:
            try:
                tags.append(self._inbox.pop().tag)
            except IndexError:
                break
        if tags:
            self._send(pack_json(Frame.RETURNED, tags))

    def leave(self) -> None:
        """All jobs have ended, and none will begin: report what is left. Waits for the result backend a while."""
        self.reports.leave()

    # -- the runtime's side: running them

    def execute(self, job: Job, slot: int) -> None:
        """Run one job in a free slot and report how it ended. On the thread or greenlet of the slot; several at once.

        Raises nothing, whatever the task raises.
        """
        # From where `begin` sets the tag until it is 0 a limit may be raised between any two calls: all of them are
        # inside the try.
        try:
            self.begin(job, slot)
            outcome = self._conclude(job) if job.conclude is not None else self._run(job)
        except BaseException as error:  # run() lets no task's error through: a limit that came late, or a bug
            self.slots[slot].tag = 0
            outcome = self.escaped(job, error)
        self.slots[slot].tag = 0
        self.end(job, slot, outcome)

    def begin(self, job: Job, slot: int) -> None:
        """A job begins in a free slot."""
        state = self.slots[slot]
        state.begun = self.begun_at = begun = time.monotonic()
        self.board.start(slot, job.tag, begun, self.reports.done_through)
        minder = self.minder
        state.deadline = begun + job.soft if job.soft else 0.0
        state.tag = job.tag
        if job.soft:
            minder.limited = True
        if minder.asleep or 0 < job.soft < SLOW_TICK_S:  # else the minder looks in time by itself
            minder.wake()

    def end(self, job: Job, slot: int, outcome: Outcome) -> None:
        """The slot's job has ended, which is reported now or soon."""
        state = self.slots[slot]
        state.tag = 0
        now = time.monotonic()
        outcome.runtime = outcome.runtime or now - state.begun
        if state.timed_out:
            if state.timed_out == job.tag and outcome.kind is OutcomeKind.FAILURE:
                outcome.kind = OutcomeKind.TIMEOUT
            state.timed_out = 0
        if self.reports.add(job, outcome, slot, now):
            self.reports.flush(once=True)

    def _conclude(self, job: Job) -> Outcome:
        assert job.conclude is not None
        return Outcome(job.conclude, error=job.text, result=self.app.conclude(job, job.conclude, job.text))

    def escaped(self, job: Job, error: BaseException) -> Outcome:
        """The outcome of a job that `LoadedApp.run` let an exception through for."""
        if isinstance(error, (self.app.soft_limit_error, self.app.hard_limit_error)):
            text = type(error).__name__
        else:
            text = f"internal error: {type(error).__name__}"
            log.critical("job %d escaped", job.tag, exc_info=error, extra={"action": "job_escaped"})
        try:
            result = self.app.conclude(job, OutcomeKind.FAILURE, text)
        except Exception:  # the message itself is broken: the outcome alone must do
            result = None
        return Outcome(OutcomeKind.FAILURE, error=text, result=result)

    # -- frames

    def _handle(self, frames: list[tuple[int, bytes]]) -> None:
        for kind, payload in frames:
            if kind == Frame.RUN:
                self._inbox.append(_job(payload))
            elif kind == Frame.CONCLUDE:
                self._inbox.append(_conclusion(payload))
            elif kind == Frame.RECALL:
                self.give_back()
            elif kind == Frame.CANCEL:
                self._cancel(**json.loads(payload))
            elif kind == Frame.FENCE:
                self._fence(json.loads(payload))
            elif kind == Frame.RETIRE:
                self.retiring = True
                if payload:
                    self.reports.leave_s = float(json.loads(payload))
            elif kind == Frame.CALL:
                self._call(**json.loads(payload))
            elif kind == Frame.NOTIFY:
                self.app.notify(json.loads(payload))
            elif kind == Frame.VERBOSE:
                self.app.verbose = bool(json.loads(payload))

    def _call(self, number: int, name: str, arguments: dict[str, Any]) -> None:
        """Answer a remote-control command on a thread of its own: neither frames nor tasks wait for it."""

        def answer() -> None:
            try:
                frame = pack_json(Frame.ANSWER, {"number": number, "reply": self.app.command(name, arguments)})
            except BaseException as error:  # the user's code may raise anything, and return what is no JSON
                if not isinstance(error, ValueError):
                    log.exception("command %s failed", name, extra={"action": "command_failed"})
                text = {"error": f"{type(error).__name__}: {error}"[:1000]}
                frame = pack_json(Frame.ANSWER, {"number": number, "reply": text})
            with contextlib.suppress(ChannelClosed, OSError):
                self._send(frame)

        self.native.start_thread(answer)

    def _fence(self, tags: list[int]) -> None:
        """Another worker has these jobs: they are not begun, what runs of them is cancelled, no end of them is stored."""
        fenced = set(tags)
        waiting = [job for job in list(self._inbox) if job.tag in fenced]
        for job in waiting:
            with contextlib.suppress(ValueError):  # taken by a slot in between
                self._inbox.remove(job)
                fenced.discard(job.tag)
        if waiting:
            self._send(pack_json(Frame.RETURNED, [job.tag for job in waiting if job.tag not in fenced]))
        self.reports.fenced |= fenced
        for slot in self.slots:
            if slot.tag in fenced:
                self.runtime.cancel(slot.tag, self.app.cancel_error("another worker has taken it over"))
        self._send(pack_json(Frame.FENCED, None))

    def _claim(self, tag: int) -> None:
        """See `LoadedApp.claim`."""
        while not self.board.is_held:
            time.sleep(ASK_AGAIN_S)
        if tag in self.reports.fenced:
            raise self.app.cancel_error("another worker has taken it over")

    def _cancel(self, tag: int, error: str, value: Any) -> None:
        if error == "time_limit":
            for slot in self.slots:
                if slot.tag == tag:
                    slot.timed_out = tag
            self.runtime.cancel(tag, self.app.hard_limit_error(value))
        else:
            self.runtime.cancel(tag, self.app.cancel_error(error))

    def _send(self, data: bytes) -> None:
        with self._sending:
            self.channel.send(data)


def _job(payload: bytes, start: int = 0) -> Job:
    tag, hard, soft, attempts, flags, queue_size, raw_size = RUN_HEAD.unpack_from(payload, start)
    at = start + RUN_HEAD.size
    raw_at = at + queue_size
    end = raw_at + raw_size
    return Job(
        tag,
        payload[raw_at:end],
        payload[end:] if flags & FLAG_PAYLOAD else None,
        payload[at:raw_at].decode(),
        attempts,
        bool(flags & FLAG_REDELIVERED),
        hard,
        soft,
    )


def _conclusion(payload: bytes) -> Job:
    kind, size = CONCLUDE_HEAD.unpack_from(payload)
    at = CONCLUDE_HEAD.size
    job = _job(payload, at + size)
    job.conclude = OutcomeKind(kind)
    job.text = payload[at : at + size].decode()
    return job
