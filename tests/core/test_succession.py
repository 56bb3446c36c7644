"""Executors are replaced without a gap: the heir is up before it is needed, and never runs beside the full one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kernel_worker.drivers import Layout
from kernel_worker.supervisor import Handle
from kernel_worker.wire import Frame

from .puppet import Stage, deliveries, delivery

MakeStage = Callable[..., Stage]


@pytest.fixture
def make_stage() -> Iterator[MakeStage]:
    with ExitStack() as stack:

        def make(*args: Any, max_tasks: int = 0, **options: Any) -> Stage:
            stage = Stage(*args, **options)
            stage.supervisor.succession.max_tasks = max_tasks
            stack.callback(stage.close)
            return stage

        yield make


def _handle(stage: Stage, key: int) -> Handle:
    return stage.supervisor.executors[key]


def test_an_executor_gets_no_more_tasks_than_it_may(make_stage: MakeStage) -> None:
    stage = make_stage(1, max_tasks=3)
    stage.learn("short", 0.0001)

    stage.deliver(*deliveries("short", range(10)))

    assert stage.puppets[0].ids == ["0", "1"]
    assert stage.puppets[0].told(Frame.RETIRE)


def test_the_heir_takes_over_when_the_one_before_is_empty(make_stage: MakeStage) -> None:
    stage = make_stage(1, max_tasks=2)
    stage.learn("short", 0.0001)
    stage.deliver(*deliveries("short", "ab"))
    heir = stage.puppets[1]
    heir.come_up()
    stage.turn()
    assert heir.ids == []

    stage.puppets[0].succeed("a")
    stage.turn()

    assert heir.ids[0] == "b"


def test_the_heir_is_asked_for_before_it_is_needed(make_stage: MakeStage) -> None:
    stage = make_stage(1, max_tasks=10)
    stage.supervisor.succession.startup_s = 1e6

    stage.deliver(delivery("long", "a"))

    assert len(stage.puppets) == 2
    assert not stage.puppets[0].told(Frame.RETIRE)


def test_no_heir_is_asked_for_while_it_is_early(make_stage: MakeStage) -> None:
    stage = make_stage(1, max_tasks=1000)
    stage.supervisor.succession.startup_s = 1e-9

    stage.deliver(delivery("long", "a"))

    assert len(stage.puppets) == 1


def test_the_pool_is_never_larger_for_an_heir(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.supervisor.succession.replace(_handle(stage, 1), "it is too large")
    stage.deliver(*deliveries("long", "abcd"))

    stage.puppets[2].come_up()
    stage.turn()

    assert stage.puppets[2].ids == []
    assert stage.supervisor.up_count == 2


def test_replace_lets_the_old_one_go_on_until_the_heir_is_up(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.supervisor.succession.replace(_handle(stage, 1), "it is too large")
    stage.deliver(delivery("long", "a"))
    assert stage.puppets[0].ids == ["a"]
    assert not stage.puppets[0].told(Frame.RETIRE)

    stage.puppets[1].come_up()
    stage.turn()

    assert stage.puppets[0].told(Frame.RETIRE)


def test_replace_is_done_once(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    assert stage.supervisor.succession.replace(_handle(stage, 1), "first")

    assert not stage.supervisor.succession.replace(_handle(stage, 1), "second")
    assert len(stage.puppets) == 2


def test_an_heir_whose_predecessor_dies_takes_its_place(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.supervisor.succession.replace(_handle(stage, 1), "it is too large")

    stage.puppets[0].die()
    stage.puppets[1].come_up()
    stage.turn()
    stage.deliver(delivery("long", "a"))

    assert stage.puppets[1].ids == ["a"]
    assert len(stage.puppets) == 2


def test_an_heir_that_dies_leaves_the_old_one_at_work(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.supervisor.succession.replace(_handle(stage, 1), "it is too large")

    stage.puppets[1].die()
    stage.deliver(delivery("long", "a"))

    assert stage.puppets[0].ids == ["a"]
    assert not stage.puppets[0].told(Frame.RETIRE)


def test_tasks_given_back_do_not_count(make_stage: MakeStage) -> None:
    stage = make_stage(1, max_tasks=100)
    stage.supervisor.succession.startup_s = 0.0
    stage.learn("short", 0.0001)
    stage.deliver(*deliveries("short", "abc"))

    stage.puppets[0].give_back("b", "c")
    stage.turn(1)

    given = _handle(stage, 1).given
    assert given - len(_handle(stage, 1).outstanding) == 1


def test_many_slots_go_over_one_by_one(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.supervisor.resize(Layout(1, 4))
    stage.puppets[1].come_up()
    stage.turn()
    stage.puppets[0].die(0)
    stage.turn()
    stage.deliver(*deliveries("long", "abcd"))
    assert stage.puppets[1].ids == list("abcd")

    stage.supervisor.succession.replace(_handle(stage, 2), "it is too large")
    stage.puppets[2].come_up()
    stage.turn()
    stage.deliver(*deliveries("long", "efgh"))
    assert stage.puppets[2].ids == []
    stage.puppets[1].succeed("a", "b")
    stage.turn()

    assert stage.puppets[2].ids == ["e", "f"]


def test_fewer_slots_need_no_other_executor(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.supervisor.most_slots = 4
    stage.supervisor.resize(Layout(1, 2))
    stage.puppets[1].come_up()
    stage.turn()
    stage.puppets[0].die(0)
    stage.deliver(*deliveries("long", "abcde"))
    assert stage.puppets[1].ids == ["a", "b"]

    stage.supervisor.resize(Layout(1, 4))
    stage.turn()
    assert stage.puppets[1].ids == list("abcd")
    stage.supervisor.resize(Layout(1, 1))
    stage.puppets[1].succeed("a", "b", "c")
    stage.turn()

    assert stage.puppets[1].ids == ["d"]
    assert len(stage.puppets) == 2


def test_a_smaller_pool_dismisses_the_heir_too(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.supervisor.succession.replace(_handle(stage, 2), "it is too large")

    stage.supervisor.resize(Layout(1, 1))
    stage.turn()

    assert stage.puppets[1].told(Frame.RETIRE)
    assert stage.puppets[2].told(Frame.RETIRE)
    assert not stage.puppets[0].told(Frame.RETIRE)


def test_a_smaller_pool_retires_who_runs_nothing(make_stage: MakeStage) -> None:
    stage = make_stage(3)
    stage.deliver(*deliveries("long", "ab"))

    stage.supervisor.resize(Layout(2, 1))
    stage.turn()

    assert [puppet.told(Frame.RETIRE) for puppet in stage.puppets] == [False, False, True]


def test_indexes_are_the_lowest_that_are_free(make_stage: MakeStage) -> None:
    stage = make_stage(3)

    stage.puppets[1].die()

    assert sorted((handle.index, handle.key) for handle in stage.supervisor.executors.values()) == [
        (0, 1),
        (1, 4),
        (2, 3),
    ]
