"""Ends on their way to the result store and the kernel."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from kernel_worker.board import Board
from kernel_worker.reporting import Reports
from kernel_worker.types import Job, Outcome, OutcomeKind, StoredResult
from kernel_worker.wire import MAX_UNSTORED


class SlowOutage:
    """A result backend that is away: every attempt fails, the second one when the test says so."""

    def __init__(self) -> None:
        self.attempts = 0
        self.is_trying = threading.Event()
        self.may_fail = threading.Event()

    def store(self, results: list[StoredResult]) -> None:
        self.attempts += 1
        if self.attempts > 1:
            self.is_trying.set()
            assert self.may_fail.wait(10)
        raise ConnectionError("away")


def test_an_executor_stays_congested_while_another_attempt_to_store_is_under_way() -> None:
    """Cause: what was being stored counted as stored, so as many jobs again were taken and could not be stored."""
    store, board = SlowOutage(), Board.create(1)
    board.hold_until(float("inf"))
    app: Any = SimpleNamespace(results=store)
    native: Any = SimpleNamespace(lock=threading.Lock)
    reports = Reports(app, board, native, lambda frames: None)
    for number in range(MAX_UNSTORED):
        outcome = Outcome(OutcomeKind.SUCCESS, 0.0, result=StoredResult(str(number), "SUCCESS", b""))
        reports.add(Job(number + 1, b"", None, "celery", 0, False, 0.0, 0.0), outcome, 0, 0.0)
    reports.flush()
    assert reports.is_congested
    reports._retry_store_at = 0.001  # long ago

    attempt = threading.Thread(target=reports.flush)
    attempt.start()
    try:
        assert store.is_trying.wait(10)
        assert reports.is_congested
    finally:
        store.may_fail.set()
        attempt.join()
        board.close()
    assert reports.is_congested
