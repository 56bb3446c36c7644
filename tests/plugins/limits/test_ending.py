"""Revoked before they began: requests that wait, lie at an executor, or come back from one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kernel_limits.limits import LOOK_EVERY_S, Limits
from kernel_limits.options import LimitsOptions
from kernel_worker.operations import Operations
from kernel_worker.types import Verdict
from tests.core.puppet import Stage, delivery


@pytest.fixture
def stage() -> Iterator[Stage]:
    """One executor with one slot, and a broker that counts losses in place."""
    stage = Stage(can_mark=True)
    stage.learn("short", 0.001)
    yield stage
    stage.close()


@pytest.fixture
def limits(stage: Stage) -> Limits:
    worker: Any = SimpleNamespace(loop=stage.loop, dispatcher=stage.dispatcher, supervisor=stage.supervisor)
    worker.operations = Operations(worker)
    limits = Limits(worker, LimitsOptions(), [])
    stage.dispatcher.has_ended = limits.has_ended
    return limits


def _turn_until(stage: Stage, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        stage.loop.turn(0.02)


def test_what_an_executor_gives_back_after_its_revoke_is_never_begun(stage: Stage, limits: Limits) -> None:
    stage.deliver(delivery("short", "a"), delivery("short", "b"))
    (puppet,) = stage.puppets
    assert puppet.ids == ["a", "b"]
    puppet.start("a")

    limits.revoke(["b"])
    puppet.give_back("b")
    puppet.succeed("a")
    stage.turn()

    assert puppet.ids == ["REVOKED:b"]


def test_what_is_revoked_while_its_loss_is_counted_is_never_begun(stage: Stage, limits: Limits) -> None:
    stage.deliver(delivery("short", "a", recovered=True))
    assert [mark.delivery.headers["id"] for mark in stage.marks] == ["a"]

    limits.revoke(["a"])
    stage.count_marks()

    assert stage.puppets[0].ids == ["REVOKED:a"]


def test_what_was_counted_before_and_waits_for_a_slot_is_revoked(stage: Stage, limits: Limits) -> None:
    stage.dispatcher.suspects.can_mark = False
    stage.deliver(delivery("short", "a", attempts=1), delivery("short", "b", attempts=1))
    (puppet,) = stage.puppets
    assert puppet.ids == ["a"]

    limits.revoke(["b"])
    puppet.start("a")
    puppet.succeed("a")
    stage.turn()

    assert puppet.ids == ["REVOKED:b"]


def test_what_lies_at_an_executor_is_terminated_when_it_begins(stage: Stage, limits: Limits) -> None:
    stage.deliver(delivery("short", "a"), delivery("short", "b"))
    (puppet,) = stage.puppets
    puppet.start("a")

    limits.revoke(["b"])
    assert limits.end(["b", "elsewhere"], None) == ["b"]
    stage.turn()
    assert stage.spawner.killed == []
    puppet.start("b", done_through=puppet.tag_of("a"))
    _turn_until(stage, lambda: stage.spawner.killed == [puppet.key])
    puppet.die()
    _turn_until(stage, lambda: len(stage.puppets) == 2)
    stage.puppets[1].come_up()
    stage.turn()

    assert stage.verdicts() == [("a", Verdict.ACK)]
    assert stage.puppets[1].ids == ["REVOKED:b"]


def test_a_message_that_came_twice_is_terminated_both_times(stage: Stage, limits: Limits) -> None:
    stage.deliver(delivery("short", "a"), delivery("short", "a"))
    (puppet,) = stage.puppets
    first, second = (tag for tag, _ in puppet.jobs)
    puppet.board.start(0, first, time.monotonic(), 0)

    limits.revoke(["a"])
    assert limits.end(["a"], None) == ["a"]
    assert limits.end(["a"], None) == ["a"]  # said again
    _turn_until(stage, lambda: set(stage.spawner.killed) == {puppet.key})
    puppet.die()
    _turn_until(stage, lambda: len(stage.puppets) == 2)
    stage.puppets[1].come_up()
    stage.turn()

    assert second > first
    assert stage.puppets[1].ids == ["REVOKED:a", "REVOKED:a"]


def test_what_waits_for_the_result_store_is_not_terminated_any_more(stage: Stage, limits: Limits) -> None:
    stage.deliver(delivery("short", "a"))
    (puppet,) = stage.puppets
    puppet.start("a")
    puppet.rest()
    puppet.tell_unstored(1)
    stage.turn()

    limits.revoke(["a"])

    assert limits.end(["a"], None) == []


def test_what_ended_before_it_could_be_terminated_is_forgotten(stage: Stage, limits: Limits) -> None:
    stage.deliver(delivery("short", "a"))
    (puppet,) = stage.puppets
    limits.revoke(["a"])
    limits.end(["a"], None)
    puppet.succeed("a")
    _turn_until(stage, lambda: stage.verdicts() == [("a", Verdict.ACK)])
    over = time.monotonic() + 3 * LOOK_EVERY_S
    _turn_until(stage, lambda: time.monotonic() > over)

    limits.revokes.ids.clear()
    stage.deliver(delivery("short", "a"))
    puppet.start("a")
    over = time.monotonic() + 3 * LOOK_EVERY_S
    _turn_until(stage, lambda: time.monotonic() > over)

    assert stage.spawner.killed == []


def test_a_signal_that_does_not_exist_is_refused(limits: Limits) -> None:
    with pytest.raises(ValueError, match="no signal 'SIGNOPE'"):
        limits.end(["a"], "SIGNOPE")
