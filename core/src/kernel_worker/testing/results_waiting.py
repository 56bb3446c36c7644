"""Result backend contract: waiting by push, and leaving nothing behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..drivers import ResultBackend
from .messages import task_meta
from .results_base import MakeBackend, ResultSuite, fork, is_final, state_of, stored
from .waiting import eventually

PROMPT_S = 2.0  # far above a push or a short poll, far below the time-outs given


class WaitingTests(ResultSuite, suite=True):
    """`wait`."""

    def test_wait_for_a_stored_result_returns_at_once(self, backend: ResultBackend) -> None:
        backend.store([stored("t1", result=1)])
        began = time.monotonic()

        assert backend.wait("t1", 3.0, is_final) == task_meta("t1", result=1)
        assert time.monotonic() - began < PROMPT_S

    def test_wait_without_time_looks_once(self, backend: ResultBackend) -> None:
        backend.store([stored("t1", result=1)])
        began = time.monotonic()

        assert backend.wait("t1", 0.0, is_final) == task_meta("t1", result=1)
        assert backend.wait("t2", 0.0, is_final) is None
        assert time.monotonic() - began < PROMPT_S

    def test_wait_ends_at_its_time_out(self, backend: ResultBackend) -> None:
        began = time.monotonic()

        assert backend.wait("never", 0.4, is_final) is None

        assert 0.3 <= time.monotonic() - began < 0.4 + PROMPT_S

    @pytest.mark.parametrize("timeout", [3.0, None], ids=["with a time-out", "for ever"])
    def test_wait_returns_as_soon_as_the_result_is_stored(
        self, make_backend: MakeBackend, timeout: float | None
    ) -> None:
        reader, writer = make_backend(), make_backend()

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_timed_wait, reader, "t1", timeout)
            time.sleep(0.05)  # let the wait begin; the test is valid, if weaker, when it has not
            began = time.monotonic()
            writer.store([stored("t1", result=1)])
            meta, ended = waiting.result(15)

        assert meta == task_meta("t1", result=1)
        assert ended - began < PROMPT_S

    def test_wait_sees_what_another_process_stores(self, make_backend: MakeBackend) -> None:
        reader, writer = make_backend(), make_backend()

        with ThreadPoolExecutor(1) as pool:
            child = fork(lambda: writer.store([stored("t1")]))
            meta, _ = pool.submit(_timed_wait, reader, "t1", 10.0).result(15)
            os.waitpid(child, 0)

        assert state_of(meta) == "SUCCESS"

    def test_wait_passes_over_intermediate_states(self, make_backend: MakeBackend) -> None:
        reader, writer = make_backend(), make_backend()
        writer.store([stored("t1", "STARTED")])

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(reader.wait, "t1", 3.0, is_final)
            for state in ("RETRY", "PROGRESS", "RETRY"):
                writer.store([stored("t1", state)])
            early = waiting.done()
            writer.store([stored("t1", "FAILURE")])
            meta = waiting.result(15)

        assert not early
        assert state_of(meta) == "FAILURE"

    def test_what_is_final_is_the_callers_decision(self, backend: ResultBackend) -> None:
        backend.store([stored("t1", "STARTED")])

        meta = backend.wait("t1", 5.0, lambda meta: state_of(meta) == "STARTED")

        assert state_of(meta) == "STARTED"

    def test_error_in_the_callers_decision_is_raised_and_leaves_nothing(
        self, backend: ResultBackend, leftovers: Callable[[], int]
    ) -> None:
        def broken(meta: bytes) -> bool:
            raise LookupError("callers may err")

        backend.store([stored("t1")])

        with pytest.raises(LookupError):
            backend.wait("t1", 5.0, broken)

        eventually(lambda: leftovers() == 0, message=lambda: f"{leftovers()} subscriptions left")

    def test_wait_for_one_id_is_not_woken_by_another(self, make_backend: MakeBackend) -> None:
        reader, writer = make_backend(), make_backend()

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_timed_wait, reader, "t1", 0.5)
            for name in ("t", "t10", "T1", "t1:"):
                writer.store([stored(name)])
            meta, _ = waiting.result(15)

        assert meta is None

    def test_several_may_wait_for_one_result(self, make_backend: MakeBackend) -> None:
        readers, writer = [make_backend(), make_backend()], make_backend()

        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(_timed_wait, readers[n % 2], "t1", 3.0) for n in range(4)]
            time.sleep(0.05)
            began = time.monotonic()
            writer.store([stored("t1", result=1)])
            ended = [each.result(15) for each in waiting]

        assert [meta for meta, _ in ended] == [task_meta("t1", result=1)] * 4
        assert max(at for _, at in ended) - began < PROMPT_S

    def test_result_stored_between_looking_and_waiting_is_seen(self, make_backend: MakeBackend) -> None:
        """The race of every push: subscribe, then look. Tried many times with no pause between."""
        reader, writer = make_backend(), make_backend()
        start = threading.Barrier(2)

        def write() -> None:
            for n in range(50):
                start.wait(15)
                writer.store([stored(f"t{n}", result=n)])

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                for n in range(50):
                    start.wait(15)
                    began = time.monotonic()
                    assert reader.wait(f"t{n}", 3.0, is_final) == task_meta(f"t{n}", result=n)
                    assert time.monotonic() - began < PROMPT_S
                writing.result(15)
            finally:
                start.abort()

    def test_two_hundred_waits_leave_nothing_behind(
        self, make_backend: MakeBackend, leftovers: Callable[[], int]
    ) -> None:
        """Half of them get a result, half time out."""
        writer = make_backend()
        writer.fetch("warm up")
        threads, descriptors = threading.active_count(), _open_descriptors()
        reader = make_backend()

        with ThreadPoolExecutor(200) as pool:
            waiting = [pool.submit(reader.wait, f"t{n}", 10.0 if n % 2 else 1.0, is_final) for n in range(200)]
            writer.store([stored(f"t{n}", result=n) for n in range(1, 200, 2)])
            metas = [each.result(30) for each in waiting]

        assert [n for n, meta in enumerate(metas) if meta is None] == list(range(0, 200, 2))
        eventually(lambda: leftovers() == 0, message=lambda: f"{leftovers()} subscriptions left")
        reader.close()
        eventually(lambda: threading.active_count() <= threads, message="threads to end after close")
        # one descriptor more is the writer's own connection of this thread, opened late
        eventually(lambda: _open_descriptors() <= descriptors + 1, message="connections to be closed after close")


def _timed_wait(backend: ResultBackend, task_id: str, timeout: float | None) -> tuple[bytes | None, float]:
    meta = backend.wait(task_id, timeout, is_final)
    return meta, time.monotonic()


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
