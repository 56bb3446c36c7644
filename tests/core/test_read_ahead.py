"""An executor with one slot has the jobs that wait read together; until they run they can be taken back like any others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernel_worker.executor import READ_AHEAD
from kernel_worker.wire import Frame, pack, pack_json

from .driven_executor import DrivenExecutor


@pytest.fixture
def ends() -> Iterator[DrivenExecutor]:
    """Both ends of it: the kernel's, and the runtime's."""
    ends = DrivenExecutor()
    yield ends
    ends.close()


def test_jobs_that_wait_are_read_together_and_run_in_order(ends: DrivenExecutor) -> None:
    ends.send(*range(1, READ_AHEAD + 4))

    first = ends.next()
    seen = list(ends.app.seen)
    rest = [ends.next() for _ in range(READ_AHEAD + 2)]

    assert seen == list(range(1, READ_AHEAD + 1))
    assert [first, *rest] == list(range(1, READ_AHEAD + 4))
    assert ends.app.seen == [*seen, *rest[READ_AHEAD - 1 :]]


def test_a_job_alone_is_left_to_its_run(ends: DrivenExecutor) -> None:
    ends.send(1)

    assert ends.next() == 1
    assert not ends.app.seen


def test_jobs_run_unread_while_the_minder_reads_frames(ends: DrivenExecutor) -> None:
    """What came with them may take long: the application is told of an event, a command is called."""
    ends.send(1, 2, 3)
    ends.executor.receive()

    with ends.executor._reading:
        unread = [ends.next(), ends.next()]

    assert unread == [1, 2]
    assert not ends.app.seen


def test_what_was_read_ahead_can_be_recalled(ends: DrivenExecutor) -> None:
    ends.send(1, 2, 3)
    assert ends.next() == 1

    ends.send(also=pack(Frame.RECALL))
    ends.executor.receive()
    ends.send(4, 5)

    assert ends.said() == [(Frame.RETURNED, [3, 2])]
    assert [ends.next(), ends.next()] == [4, 5]


def test_what_was_read_ahead_can_be_fenced(ends: DrivenExecutor) -> None:
    ends.send(1, 2, 3)
    assert ends.next() == 1

    ends.send(also=pack_json(Frame.FENCE, [2]))
    ends.executor.receive()

    assert ends.said() == [(Frame.RETURNED, [2]), (Frame.FENCED, None)]
    assert ends.next() == 3
