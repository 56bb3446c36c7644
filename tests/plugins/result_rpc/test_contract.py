"""The result backend contract, as far as answers to one reader can keep it."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from kernel_result_rpc import RpcResults
from kernel_worker import ResultBackend, StoredResult
from kernel_worker.testing import MakeBackend, ResultBackendContract, backend_factory
from kernel_worker.testing.messages import task_meta
from kernel_worker.testing.results_base import is_final, stored

ONE_READER = "an answer goes to the one process that asked, and is read there once"


class Asking(RpcResults):
    """As in a client: all answers go to one queue, which it reads. Others of the test only write to it."""

    reader: ClassVar[Asking | None] = None
    queue: ClassVar[str] = ""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        super().__init__(url, settings)
        if Asking.reader is None:
            Asking.reader = self
            self.expect_replies(Asking.queue)

    def store(self, results: Sequence[StoredResult]) -> None:
        for result in results:
            result.reply_to = Asking.queue
        super().store(results)


class TestRpcResults(ResultBackendContract):
    deviations: ClassVar[dict[str, str]] = {
        "test_other_instances_see_what_was_stored": ONE_READER,
        "test_several_may_wait_for_one_result": ONE_READER,
        "test_two_hundred_waits_leave_nothing_behind": ONE_READER,
    }

    def test_several_may_wait_for_one_result(self, make_backend: MakeBackend) -> None:
        """In the process that asked."""
        reader, writer = make_backend(), make_backend()

        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(reader.wait, "t1", 3.0, is_final) for _ in range(4)]
            writer.store([stored("t1", result=1)])
            metas = [each.result(15) for each in waiting]

        assert metas == [task_meta("t1", result=1)] * 4

    def test_two_hundred_waits_leave_nothing_behind(
        self, make_backend: MakeBackend, leftovers: Callable[[], int]
    ) -> None:
        reader, writer = make_backend(), make_backend()

        with ThreadPoolExecutor(200) as pool:
            waiting = [pool.submit(reader.wait, f"t{n}", 10.0 if n % 2 else 1.0, is_final) for n in range(200)]
            writer.store([stored(f"t{n}", result=n) for n in range(1, 200, 2)])
            metas = [each.result(30) for each in waiting]

        assert [n for n, meta in enumerate(metas) if meta is None] == list(range(0, 200, 2))
        assert leftovers() == 0

    @pytest.fixture
    def make_backend(self, amqp_url: str) -> Iterator[MakeBackend]:
        Asking.reader, Asking.queue = None, f"test.replies.{uuid.uuid4().hex}"
        with backend_factory(lambda url, settings: Asking(url, {"broker_url": amqp_url, **settings}), "rpc://") as make:
            yield make

    @pytest.fixture
    def leftovers(self) -> Callable[[], int]:
        def count() -> int:
            assert Asking.reader is not None
            return int(Asking.reader._replies._has_reader)

        return count

    @pytest.fixture
    def unreachable_backend(self) -> Iterator[Callable[[], ResultBackend]]:
        with socket.socket() as listener:  # accepts in its backlog, and never answers
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            url = f"amqp://127.0.0.1:{listener.getsockname()[1]}//?connect_timeout=0.3"

            def make() -> ResultBackend:
                backend = RpcResults("rpc://", {"broker_url": url})
                backend._replies._queue = "asked"
                backend.store = lambda results: RpcResults.store(backend, _addressed(results))  # type: ignore[method-assign]
                return backend

            yield make


def _addressed(results: Sequence[StoredResult]) -> Sequence[StoredResult]:
    for result in results:
        result.reply_to = "asked"
    return results
