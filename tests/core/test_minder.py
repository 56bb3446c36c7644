"""The minder looks in time: not before there can be something to do, and not too late for any limit."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest

from kernel_worker import minder as module
from kernel_worker.minder import LONG_TASK_S, SLOW_TICK_S, Minder
from kernel_worker.types import Job, Outcome, OutcomeKind
from kernel_worker.wire import ChannelClosed

from .driven_executor import DrivenExecutor


@pytest.fixture
def driven() -> Iterator[DrivenExecutor]:
    driven = DrivenExecutor()
    yield driven
    driven.close()


@pytest.fixture
def minder(driven: DrivenExecutor) -> Minder:
    """Awake."""
    minder = driven.executor.minder
    minder.asleep = False
    return minder


class Clock:
    """The minder's time, and how long it rests."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rests: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def poll(self, fds: Sequence[int], timeout: float) -> list[int]:
        self.rests.append(timeout)
        return []


@pytest.fixture
def clock(minder: Minder, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(minder._executor, "native", SimpleNamespace(poll=clock.poll))
    return clock


def job(tag: int, soft: float = 0.0) -> Job:
    return Job(tag, b"{}", None, "celery", 0, False, 0.0, soft)


@pytest.mark.parametrize(("soft", "is_woken"), [(0.03, True), (SLOW_TICK_S * 0.9, True), (1.0, False), (0.0, False)])
def test_limit_that_ends_before_its_next_look_wakes_it(
    driven: DrivenExecutor, minder: Minder, soft: float, is_woken: bool
) -> None:
    driven.executor.begin(job(1, soft), 0)

    assert bool(select.select([minder._wake_r], [], [], 0)[0]) is is_woken


@pytest.mark.timeout(20)
def test_it_is_woken_while_it_waits_for_frames_behind_a_long_task(minder: Minder) -> None:
    minder.wake()

    minder._read_behind_task(60.0)

    assert not select.select([minder._wake_r], [], [], 0)[0]


def test_it_rests_until_the_task_could_be_long(driven: DrivenExecutor, minder: Minder, clock: Clock) -> None:
    driven.executor.slots[0].tag = 1
    driven.executor.begun_at = clock.now - 0.01

    minder._tick(clock.now)

    assert clock.rests == [pytest.approx(LONG_TASK_S - 0.01)]


@pytest.mark.parametrize("soft", [0.0, 4.5], ids=["no limit", "limit"])
def test_store_that_takes_long_does_not_make_it_rest_longer(
    driven: DrivenExecutor, minder: Minder, clock: Clock, monkeypatch: pytest.MonkeyPatch, soft: float
) -> None:
    executor = driven.executor
    executor.reports.ended.append((1, Outcome(OutcomeKind.SUCCESS)))
    executor.slots[0].tag = 2
    executor.slots[0].deadline = soft and clock.now + soft
    minder.limited = bool(soft)

    def slowly(callback: Callable[[], object]) -> None:
        executor.begun_at = clock.now + 3.9  # the next one began meanwhile
        clock.now += 4.48

    monkeypatch.setattr(executor.runtime, "soon", slowly)
    monkeypatch.setattr(executor.runtime, "reads_always", True)

    minder._tick(clock.now)

    assert clock.rests[-1] <= (0.021 if soft else SLOW_TICK_S)


def test_it_notices_that_a_task_has_closed_what_is_not_its_own(minder: Minder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minder, "_wake_r", 1_000_000)

    with pytest.raises(ChannelClosed, match="a task has closed descriptors"):
        minder._rest(3600.0)


def test_it_notices_that_a_task_has_closed_the_other_end_of_its_pipe(
    minder: Minder, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_of_file, other_end = os.pipe()
    os.close(other_end)
    monkeypatch.setattr(minder, "_wake_r", end_of_file)

    with pytest.raises(ChannelClosed, match="a task has closed descriptors"):
        minder._rest(3600.0)

    os.close(end_of_file)
