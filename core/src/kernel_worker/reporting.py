"""What has ended: stored in the result backend, then told to the kernel, many at a time.

Runs in executors, on any of their threads and greenlets. Storing results may be cooperative I/O, so whoever stores
holds no lock that another one waits for: the lock of the flush is only ever tried.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from .board import Board
from .drivers import LoadedApp, Native, ResultBackend
from .types import Job, Outcome, OutcomeKind, StoredResult
from .wire import DONE_RECORD, MAX_UNSTORED, Frame, pack, pack_json

log = logging.getLogger("kernel_worker.executor")

FLUSH_EVERY = 32
"""Outcomes reported (and results stored) together at most, where one slot waits for it."""
FLUSH_AFTER_S = 0.1
"""An outcome waits about this long, at most, for others to be reported with: the minder looks at every tick."""
LEAVE_S = 5.0
"""How long an executor that has nothing left to run waits for its result backend, unless it is told otherwise."""
ASK_AGAIN_S = 0.05


class Reports:
    """Outcomes of one executor on their way to the kernel.

    :param send: writes frames to the kernel; any thread.
    """

    def __init__(self, app: LoadedApp, board: Board, native: Native, send: Callable[[bytes], None]) -> None:
        self.ended: list[tuple[int, Outcome]] = []
        """What is neither stored nor reported, by tag: what a task has left in its job is not kept for so long."""
        self._app = app
        self._board = board
        self._send = send
        self._one_slot = board.slots == 1
        self._adding = native.lock()
        self._flushing = native.lock()
        self._under_way = 0
        self._first_ended_at = 0.0
        self._retry_store_at = 0.0
        self._store_delay = 0.1
        self._told_unstored = 0
        self.done_through = 0
        """One slot: every job up to this tag has succeeded, with nothing left to tell."""
        self._to_tell = 0
        """Of what has ended, how many must be reported or stored for their end to be known."""
        self.fenced: set[int] = set()
        """Tags of jobs that became another worker's: their ends are told, and never stored."""
        self.leave_s = LEAVE_S

    def add(self, job: Job, outcome: Outcome, slot: int, now: float) -> bool:
        """A job has ended in this slot.

        :return: whether it is time to flush.
        """
        with self._adding:
            says_nothing = outcome.kind is OutcomeKind.SUCCESS and outcome.result is None
            if not self._one_slot:
                self._board.idle(slot, job.tag if says_nothing else 0)
            else:
                if not says_nothing:
                    self._to_tell += 1
                elif not self._to_tell:
                    self.done_through = job.tag
                self._board.idle(slot, self.done_through)
            if not self.ended:
                self._first_ended_at = now
            self.ended.append((job.tag, outcome))
            return len(self.ended) >= FLUSH_EVERY or now - self._first_ended_at > FLUSH_AFTER_S

    @property
    def is_congested(self) -> bool:
        """Whether the result backend has been away for so long that no further job may be taken."""
        return self._retry_store_at > 0.0 and len(self.ended) + self._under_way >= MAX_UNSTORED

    def is_overdue(self, now: float) -> bool:
        """Whether something has waited too long to be reported."""
        return bool(self.ended) and now - self._first_ended_at > FLUSH_AFTER_S

    def flush(self, once: bool = False) -> None:
        """Store the results of what has ended, then report it. Any thread or greenlet; one at a time.

        Returns at once when another one is at it, who then reports what has ended meanwhile. While the result backend
        is away nothing is reported, so the messages stay reserved and unacked; the minder asks again, with back-off.

        :param once: leave what ends meanwhile to others: the caller has more to do.
        """
        if time.monotonic() < self._retry_store_at:
            self._tell_unstored()
            return
        # Looked at again after each release: what ended while the lock was held was left to us.
        while self.ended and self._flushing.acquire(False):
            try:
                is_reported = self._flush()
            finally:
                self._flushing.release()
            if once or not is_reported:
                return

    def leave(self) -> None:
        """Nothing will end any more: report what is left. What stays unreported would be done again."""
        deadline = time.monotonic() + self.leave_s
        self.flush()
        while (self.ended or self._under_way) and time.monotonic() < deadline:
            time.sleep(0.05)
            self._retry_store_at = 0.0  # there is no later
            self.flush()

    def _flush(self) -> bool:
        with self._adding:
            self._under_way = len(self.ended)  # first: `is_congested` takes no lock
            ended, self.ended = self.ended, []
        try:
            results = [outcome.result for _, outcome in ended if outcome.result is not None]
            if self.fenced:
                results = self._without_fenced(ended)
            if results and not (self._is_held() and self._store(results)):
                with self._adding:
                    self.ended, self._under_way = ended + self.ended, 0
                self._tell_unstored()
                return False
            none_unstored = pack_json(Frame.UNSTORED, []) if self._told_unstored else b""
            self._told_unstored = 0
            # One send: a reader must never see half a report.
            self._send(none_unstored + report(ended))
        finally:
            self._under_way = 0
        if self._one_slot:
            told = sum(1 for _, each in ended if each.kind is not OutcomeKind.SUCCESS or each.result is not None)
            with self._adding:  # others may have ended meanwhile: only these are known now
                self._to_tell -= told
                self.done_through = max(self.done_through, ended[-1][0])
        return True

    def _is_held(self) -> bool:
        """Whether the ends may be stored. Another worker may have the same messages since our lease was over: until the
        kernel has learnt whose they are, nothing is stored."""
        if self._board.is_held:
            return True
        self._retry_store_at = time.monotonic() + ASK_AGAIN_S
        return False

    def _without_fenced(self, ended: list[tuple[int, Outcome]]) -> list[StoredResult]:
        results = []
        for tag, outcome in ended:
            if tag in self.fenced:
                self.fenced.discard(tag)
                outcome.result = None
            elif outcome.result is not None:
                results.append(outcome.result)
        return results

    def _tell_unstored(self) -> None:
        """Their slots are free although they are not reported: without knowing, the kernel would give nothing more, and
        hold it against them if this executor were lost."""
        tags = [tag for tag, _ in list(self.ended)]
        if len(tags) != self._told_unstored:
            self._told_unstored = len(tags)
            self._send(pack_json(Frame.UNSTORED, tags))

    def _store(self, results: list[StoredResult]) -> bool:
        try:
            backend = self._app.results
        except Exception as error:  # it cannot even be opened: nothing is acked that could not be stored
            return self._store_later(error)
        if backend is None:
            return True
        try:
            try:
                backend.store(results)
            except (ConnectionError, TimeoutError):
                raise
            except Exception:
                # Not an outage: the store refuses something. One by one, so that only that one is missing.
                self._store_singly(backend, results)
        except (ConnectionError, TimeoutError) as error:
            return self._store_later(error)
        self._retry_store_at, self._store_delay = 0.0, 0.1
        return True

    def _store_later(self, error: Exception) -> bool:
        self._retry_store_at = time.monotonic() + self._store_delay
        self._store_delay = min(self._store_delay * 2, 5.0)
        log.warning("result backend is away: %s", error, extra={"action": "result_backend_away"})
        return False

    @staticmethod
    def _store_singly(backend: ResultBackend, results: list[StoredResult]) -> None:
        for result in results:
            try:
                backend.store([result])
            except (ConnectionError, TimeoutError):
                raise  # storing those before it once more is harmless
            except Exception:  # named and kept in the log; the task itself has ended
                log.exception(
                    "result of %s refused by the result backend",
                    result.task_id[:64],
                    extra={"action": "result_refused", "task_id": result.task_id[:64]},
                )


def report(ended: list[tuple[int, Outcome]]) -> bytes:
    """The frames that tell these ends: DONE where there is nothing to say, else ENDED."""
    done: list[bytes] = []
    parts: list[bytes] = []
    for tag, outcome in ended:
        if outcome.kind is OutcomeKind.SUCCESS and not outcome.shown:
            done.append(DONE_RECORD.pack(tag, 0, outcome.runtime))
        else:
            parts.append(pack_json(Frame.ENDED, _described(tag, outcome)))
    if done:
        parts.append(pack(Frame.DONE, b"".join(done)))
    return b"".join(parts)


def _described(tag: int, outcome: Outcome) -> dict[str, Any]:
    value = {
        "tag": tag,
        "kind": int(outcome.kind),
        "runtime": outcome.runtime,
        # Without halves of surrogate pairs: no broker takes them in a reason.
        "error": outcome.error[:2000].encode(errors="replace").decode(),
        "requeue": outcome.requeue,
        "until": outcome.until,
    }
    if outcome.shown or outcome.traceback:
        value["shown"], value["traceback"] = outcome.shown, outcome.traceback
    return value
