"""Executors with several slots: limits where others share the process, and what a death leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernel_worker.types import OutcomeKind, Verdict
from kernel_worker.wire import Frame

from .puppet import Clock, Puppet, Stage, deliveries, delivery


@pytest.fixture
def stage() -> Iterator[Stage]:
    """One executor with four slots."""
    stage = Stage(slots=4)
    yield stage
    stage.close()


def _run(puppet: Puppet, now: float, *task_ids: str) -> None:
    """The board shows these as running, in slots of their own."""
    for slot, task_id in enumerate(task_ids):
        puppet.board.start(slot, puppet.tag_of(task_id), now, 0)


def test_a_task_over_its_limit_is_cancelled_first_and_nothing_is_killed(clock: Clock, stage: Stage) -> None:
    puppet = stage.puppets[0]
    stage.deliver(delivery("limited"), delivery("long", "b"))
    _run(puppet, clock.now, "a", "b")

    clock.now += 30.2
    stage.turn()
    cancelled = puppet.told(Frame.CANCEL)
    puppet.end("a", OutcomeKind.TIMEOUT, "TimeLimitExceeded(30)")
    stage.turn()
    clock.now += 2
    stage.turn()

    assert cancelled
    assert stage.spawner.killed == []
    assert stage.verdicts() == [("a", Verdict.ACK)]


def test_a_task_that_ignores_it_ends_with_its_process_and_those_beside_are_put_back_uncounted(
    clock: Clock, stage: Stage
) -> None:
    puppet = stage.puppets[0]
    stage.deliver(delivery("limited"), delivery("long", "b"), delivery("long", "c"))
    _run(puppet, clock.now, "a", "b", "c")

    clock.now += 30.2
    stage.turn()
    early = list(stage.spawner.killed)
    clock.now += 1.1
    stage.turn()
    stage.puppets[1].come_up()
    stage.turn()
    stage.puppets[1].end("TIMEOUT:a", OutcomeKind.TIMEOUT, "30")
    stage.turn()

    assert early == []
    assert stage.spawner.killed == [puppet.key]
    ends = {each.delivery.headers["id"]: (each.verdict, each.count) for each in stage.settlements}
    assert ends == {"a": (Verdict.ACK, False), "b": (Verdict.REQUEUE, False), "c": (Verdict.REQUEUE, False)}


def test_all_that_ran_in_an_executor_that_died_is_put_back_and_counted(stage: Stage) -> None:
    puppet = stage.puppets[0]
    stage.deliver(*deliveries("long", "abc"))
    _run(puppet, 1.0, "a", "b", "c")

    puppet.die()
    stage.turn()

    ends = {each.delivery.headers["id"]: (each.verdict, each.count) for each in stage.settlements}
    assert ends == dict.fromkeys("abc", (Verdict.REQUEUE, True))


def test_what_ended_last_in_its_slot_is_settled_by_what_the_board_says_of_it(stage: Stage) -> None:
    """Marked as done: released. Ended with something to tell, which nobody heard: counted, as if it had been running. Never
    begun: handed out again."""
    puppet = stage.puppets[0]
    stage.deliver(*deliveries("long", "abcd"))
    _run(puppet, 1.0, "a", "b", "c")
    puppet.board.idle(0, puppet.tag_of("a"))
    puppet.board.idle(1, 0)

    puppet.die()
    stage.turn()
    stage.puppets[1].come_up()
    stage.turn()

    ends = {each.delivery.headers["id"]: (each.verdict, each.count) for each in stage.settlements}
    assert ends == {"a": (Verdict.ACK, False), "b": (Verdict.REQUEUE, True), "c": (Verdict.REQUEUE, True)}
    assert stage.puppets[1].ids == ["d"]


def test_an_executor_that_gave_work_back_gets_some_again_while_its_other_tasks_run_on(
    clock: Clock, stage: Stage
) -> None:
    """Cause: it counted as stalled until one of its tasks ended. One task that ran for an hour beside free slots, and a
    moment in which the process did not come to run, left the slots free for that hour."""
    puppet = stage.puppets[0]
    stage.deliver(*deliveries("long", "ab"))
    puppet.give_back("b")
    stage.turn()
    at_once = puppet.ids

    clock.now += 0.2
    stage.turn()

    assert at_once == ["a"]
    assert puppet.ids == ["a", "b"]
