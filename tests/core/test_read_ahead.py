"""An executor with one slot has the jobs that wait read together; until they run they can be taken back like any others."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator

import pytest

from kernel_worker.board import Board
from kernel_worker.drivers import Call, LoadedApp
from kernel_worker.executor import READ_AHEAD, BlockingRuntime, Executor
from kernel_worker.types import AppInfo, Job, Outcome, StoredResult
from kernel_worker.wire import Channel, Frame, pack, pack_json

from .executor_process import run_payload


class Reader(LoadedApp):
    """Notes what it reads, and runs nothing."""

    info = AppInfo("reader", "test")

    def __init__(self) -> None:
        self.seen: list[int] = []

    def setup(self, node: str, wrap: Callable[[str, Call], Call]) -> None:
        raise NotImplementedError

    def read(self, job: Job) -> Job:
        self.seen.append(job.tag)
        job.text = "read"
        return job

    def run(self, job: Job) -> Outcome:
        raise NotImplementedError

    def conclude(self, job: Job, kind: int, error: str) -> StoredResult | None:
        raise NotImplementedError

    @property
    def results(self) -> None:
        return None


class Ends:
    """An executor that is driven by hand, and the kernel's end of its channel."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.kernel, self.channel, self.board = Channel(ours), Channel(theirs), Board.create(1)
        self.app = Reader()
        self.executor = Executor(self.channel, self.board, BlockingRuntime(), self.app)

    def send(self, *tags: int, also: bytes = b"") -> None:
        self.kernel.send(b"".join(pack(Frame.RUN, run_payload(tag, b"{}")) for tag in tags) + also)

    def next(self) -> int:
        job = self.executor.next()
        assert job is not None
        return job.tag

    def said(self) -> list[tuple[int, object]]:
        return [(kind, json.loads(payload)) for kind, payload in self.kernel.receive()]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.kernel.close()
    ends.channel.close()
    ends.board.close()


def test_jobs_that_wait_are_read_together_and_run_in_order(ends: Ends) -> None:
    ends.send(*range(1, READ_AHEAD + 4))

    first = ends.next()
    seen = list(ends.app.seen)
    rest = [ends.next() for _ in range(READ_AHEAD + 2)]

    assert seen == list(range(1, READ_AHEAD + 1))
    assert [first, *rest] == list(range(1, READ_AHEAD + 4))
    assert ends.app.seen == [*seen, *rest[READ_AHEAD - 1 :]]


def test_a_job_alone_is_left_to_its_run(ends: Ends) -> None:
    ends.send(1)

    assert ends.next() == 1
    assert not ends.app.seen


def test_what_was_read_ahead_can_be_recalled(ends: Ends) -> None:
    ends.send(1, 2, 3)
    assert ends.next() == 1

    ends.send(also=pack(Frame.RECALL))
    ends.executor.receive()
    ends.send(4, 5)

    assert ends.said() == [(Frame.RETURNED, [3, 2])]
    assert [ends.next(), ends.next()] == [4, 5]


def test_what_was_read_ahead_can_be_fenced(ends: Ends) -> None:
    ends.send(1, 2, 3)
    assert ends.next() == 1

    ends.send(also=pack_json(Frame.FENCE, [2]))
    ends.executor.receive()

    assert ends.said() == [(Frame.RETURNED, [2]), (Frame.FENCED, None)]
    assert ends.next() == 3
