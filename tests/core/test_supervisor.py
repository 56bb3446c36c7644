"""Executors are kept at their number: replaced, retired, killed, and given up on when they never come up."""

from __future__ import annotations

import errno
import logging
import signal
import time

import pytest

from kernel_worker.board import Board
from kernel_worker.drivers import Layout
from kernel_worker.errors import ExecutorError, UsageError
from kernel_worker.spawn import Birth
from kernel_worker.supervisor import MAX_EARLY_DEATHS
from kernel_worker.testing import eventually
from kernel_worker.wire import Frame, pack

from .puppet import MakeStage, Stage, deliveries, delivery


def _alive(stage: Stage) -> list[int]:
    return sorted(stage.supervisor.executors)


# -- number


def test_an_executor_that_dies_is_replaced_at_once(make_stage: MakeStage) -> None:
    stage = make_stage(2)

    stage.puppets[0].die()

    assert _alive(stage) == [2, 3]
    assert stage.supervisor.up_count == 1
    assert stage.supervisor.restarts == 1


def test_a_larger_layout_adds_executors(make_stage: MakeStage) -> None:
    stage = make_stage(1)

    stage.supervisor.resize(Layout(3, 1))

    assert _alive(stage) == [1, 2, 3]


def test_a_smaller_layout_retires_those_with_the_least_to_do(make_stage: MakeStage) -> None:
    stage = make_stage(3)
    stage.learn("short", 0.0001)
    stage.deliver(*deliveries("short", range(5)))

    stage.supervisor.resize(Layout(1, 1))
    stage.turn()
    left = [puppet for puppet in stage.puppets if not puppet.told(Frame.RETIRE)]

    assert len(left) == 1
    assert len(left[0].jobs) == max(len(puppet.jobs) for puppet in stage.puppets)


def test_a_retired_executor_that_ends_is_not_replaced(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.supervisor.resize(Layout(1, 1))
    stage.turn()

    retired = next(puppet for puppet in stage.puppets if puppet.told(Frame.RETIRE))
    retired.die(0)

    assert len(_alive(stage)) == 1


def test_an_executor_retired_to_be_replaced_is_told_once_and_replaced(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    handle = stage.supervisor.executors[1]

    stage.supervisor.retire(handle)
    stage.supervisor.retire(handle)
    stage.turn()
    told = list(stage.puppets[0].orders) or (stage.puppets[0].told(Frame.RETIRE) and stage.puppets[0].orders)
    stage.puppets[0].die(0)

    assert told == [Frame.RETIRE]
    assert _alive(stage) == [2]


def test_growing_again_while_others_retire_starts_new_ones(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.supervisor.resize(Layout(1, 1))

    stage.supervisor.resize(Layout(2, 1))

    assert len(_alive(stage)) == 3
    assert stage.supervisor.up_count == 1


def test_a_death_is_reported_with_its_reason(make_stage: MakeStage) -> None:
    reasons: list[str] = []
    stage = make_stage(4, on_down=lambda handle, reason: reasons.append(reason))
    stage.supervisor.retire(stage.supervisor.executors[3])

    stage.puppets[0].die(-signal.SIGSEGV)
    stage.puppets[1].die(7)
    stage.puppets[2].die(0)
    stage.supervisor.kill(stage.supervisor.executors[4], "hard time limit of 5 s")
    stage.turn()

    assert reasons == ["signal SIGSEGV", "exit 7", "retired", "hard time limit of 5 s"]


def test_a_retired_executor_that_dies_by_a_signal_is_not_said_to_have_retired(make_stage: MakeStage) -> None:
    reasons: list[str] = []
    stage = make_stage(1, on_down=lambda handle, reason: reasons.append(reason))
    stage.supervisor.retire(stage.supervisor.executors[1])

    stage.puppets[0].die(-signal.SIGKILL)

    assert reasons == ["signal SIGKILL"]


def test_the_exit_of_an_unknown_executor_is_ignored(make_stage: MakeStage) -> None:
    stage = make_stage(1)

    stage.supervisor.on_exited(99, 0)
    stage.supervisor.on_born(99, 1)

    assert _alive(stage) == [1]


# -- early deaths


@pytest.fixture
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_worker.supervisor.RESTART_DELAY_S", 0.001)
    monkeypatch.setattr("kernel_worker.supervisor.RESTART_DELAY_MAX_S", 0.002)


def test_an_executor_that_dies_before_it_is_up_is_started_again_with_back_off(make_stage: MakeStage) -> None:
    stage = make_stage(1, up=False)

    stage.puppets[0].die(1)
    stage.turn()

    assert _alive(stage) == []  # the next try is a second away


def test_several_early_deaths_of_one_start_count_once_and_wait_once(
    make_stage: MakeStage, quick_restarts: None, caplog: pytest.LogCaptureFixture
) -> None:
    stage = make_stage(4, up=False)

    with caplog.at_level(logging.ERROR):
        for puppet in list(stage.puppets):
            puppet.die(1)
        stage.loop.run_until(lambda: len(_alive(stage)) == 4, time.monotonic() + 5.0)

    assert _alive(stage) == [5, 6, 7, 8]
    assert caplog.text.count("next try in") == 1


def test_executors_that_never_come_up_are_given_up(make_stage: MakeStage, quick_restarts: None) -> None:
    stage = make_stage(1, up=False)

    for _ in range(MAX_EARLY_DEATHS):
        stage.loop.run_until(lambda: stage.supervisor.executors, time.monotonic() + 5.0)
        stage.puppets[-1].die(-signal.SIGSEGV)

    assert isinstance(stage.supervisor.failure, ExecutorError)
    assert stage.supervisor.failure.exit_code == 70
    assert "10 times in a row; the last: signal SIGSEGV" in stage.supervisor.failure.message
    assert _alive(stage) == []


def test_one_that_comes_up_makes_the_count_begin_anew(make_stage: MakeStage, quick_restarts: None) -> None:
    stage = make_stage(1, up=False)

    for round_ in range(3):
        for _ in range(MAX_EARLY_DEATHS - 1):
            stage.loop.run_until(lambda: stage.supervisor.executors, time.monotonic() + 5.0)
            stage.puppets[-1].die(1)
        stage.loop.run_until(lambda: stage.supervisor.executors, time.monotonic() + 5.0)
        stage.puppets[-1].come_up()
        stage.turn()
        stage.puppets[-1].die(1)
        assert stage.supervisor.failure is None, f"round {round_}"


def test_a_dead_executor_is_replaced_while_another_start_waits(make_stage: MakeStage, quick_restarts: None) -> None:
    stage = make_stage(2, up=False)
    stage.puppets[0].come_up()
    stage.turn()
    stage.puppets[1].die(1)

    stage.puppets[0].die()
    both = stage.loop.run_until(lambda: len(_alive(stage)) == 2, time.monotonic() + 5.0)

    assert both


def test_a_replacement_that_the_system_refuses_is_tried_again(
    make_stage: MakeStage, quick_restarts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: the executor that could not be started was counted as one that is on its way, or the error ended the
    attempt: the pool stayed short, and a pool of one ran nothing any more and said nothing."""
    stage = make_stage(1)
    spawn, refusals = stage.spawner.spawn, [OSError("no process"), OSError("no process")]

    def refuse_at_first(birth: Birth) -> None:
        if refusals:
            raise refusals.pop()
        spawn(birth)

    monkeypatch.setattr(stage.spawner, "spawn", refuse_at_first)
    stage.puppets[0].die()
    in_between = _alive(stage)
    eventually(lambda: stage.turn() or len(stage.puppets) == 2)
    stage.puppets[1].come_up()
    stage.turn()

    assert in_between == []
    assert stage.supervisor.up_count == 1


def test_a_system_that_goes_on_refusing_ends_the_worker_with_the_reason(
    make_stage: MakeStage, quick_restarts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(1)

    def refuse(slots: int) -> Board:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Board, "create", refuse)
    stage.puppets[0].die()
    eventually(lambda: stage.turn() or stage.supervisor.failure)

    assert "it could not be started: [Errno 24] Too many open files" in str(stage.supervisor.failure)


def test_a_wrong_application_is_the_users_mistake_and_a_broken_one_is_not(make_stage: MakeStage) -> None:
    for kind, expected in (("usage", UsageError), ("import", ExecutorError)):
        stage = make_stage(1, up=False)
        stage.supervisor.app = None

        stage.supervisor.on_failed({"text": "-A x: no", "kind": kind, "details": "Traceback …"})

        assert type(stage.supervisor.failure) is expected
        assert stage.supervisor.failure.message == "-A x: no"
        assert stage.supervisor.failure.details == "Traceback …"


def test_the_first_failure_stays_the_one_that_is_told(make_stage: MakeStage) -> None:
    """Cause: the end of the fork server, reported in the same turn, replaced "no module named 'x'" by "the fork server
    ended with status 1"."""
    stage = make_stage(1, up=False)
    stage.supervisor.app = None

    stage.supervisor.on_failed({"text": "-A x: no module named 'x'", "kind": "usage"})
    stage.supervisor.on_failed({"text": "the fork server ended with status 1", "kind": "internal"})

    assert stage.supervisor.failure is not None
    assert stage.supervisor.failure.message == "-A x: no module named 'x'"


def test_a_failure_after_the_application_was_loaded_is_logged_only(
    make_stage: MakeStage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = make_stage(1)

    with caplog.at_level(logging.ERROR):
        stage.supervisor.on_failed({"text": "RuntimeError: no database", "kind": "internal"})

    assert stage.supervisor.failure is None
    assert "RuntimeError: no database" in caplog.text


# -- frames


def test_a_full_socket_is_written_on_when_there_is_room(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    big = delivery()
    big.raw = big.raw + b" " * 3_000_000

    stage.deliver(big)
    stage.turn(20)
    received = stage.loop.run_until(lambda: stage.puppets[0].ids == ["a"], time.monotonic() + 5.0)

    assert received
    assert stage.supervisor.executors[1].channel.out_bytes == 0


def test_an_executor_that_dies_with_a_full_socket_is_forgotten(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    big = delivery()
    big.raw = big.raw + b" " * 3_000_000
    stage.deliver(big)

    stage.puppets[0].die()
    stage.turn()
    stage.puppets[1].come_up()
    stage.turn(20)
    received = stage.loop.run_until(lambda: stage.puppets[1].ids == ["a"], time.monotonic() + 5.0)

    assert received


def test_frames_of_an_executor_that_is_not_up_yet_do_no_harm(make_stage: MakeStage) -> None:
    stage = make_stage(1, up=False)

    stage.puppets[0].channel.send(pack(Frame.DONE))
    stage.turn()

    assert _alive(stage) == [1]


# -- stop


def test_stop_retires_what_is_up_kills_what_is_not_and_returns_when_all_have_ended(make_stage: MakeStage) -> None:
    stage = make_stage(2, up=False)
    stage.puppets[0].come_up()
    stage.turn()

    def obey() -> None:
        if stage.puppets[0].told(Frame.RETIRE):
            stage.puppets[0].die(0)
        else:
            stage.loop.call_later(0.001, obey)

    obey()
    begun = time.monotonic()
    stage.supervisor.stop(begun + 5.0)

    assert time.monotonic() - begun < 2.0
    assert stage.spawner.killed == [2]
    assert _alive(stage) == []


def test_stop_kills_at_the_deadline_what_does_not_end(make_stage: MakeStage) -> None:
    reasons: list[str] = []
    stage = make_stage(1, on_down=lambda handle, reason: reasons.append(reason))

    begun = time.monotonic()
    stage.supervisor.stop(begun + 0.02)

    assert stage.spawner.killed == [1]
    assert reasons == ["killed: the grace period is over"]
    assert _alive(stage) == []


def test_nobody_is_replaced_after_close(make_stage: MakeStage, quick_restarts: None) -> None:
    stage = make_stage(2)
    stage.supervisor.close()

    stage.puppets[0].die()
    stage.supervisor.resize(Layout(5, 1))
    stage.turn()

    assert _alive(stage) == [2]


def test_stop_before_anything_was_started_and_twice_is_harmless(make_stage: MakeStage) -> None:
    from kernel_worker.loop import Loop
    from kernel_worker.supervisor import Supervisor

    loop = Loop()
    supervisor = Supervisor(loop)

    supervisor.stop(time.monotonic())
    supervisor.stop(time.monotonic())
    loop.close()


def test_a_plugin_that_raises_when_it_hears_of_a_death_does_not_keep_the_place_empty(make_stage: MakeStage) -> None:
    """Cause: the exception of its hook left the exit half handled: nobody was started in the dead one's place."""

    def broken(handle: object, reason: str) -> None:
        raise RuntimeError("a plugin's bug")

    stage = make_stage(2, on_down=broken)

    stage.loop.post(stage.puppets[0].die)
    stage.turn()

    assert _alive(stage) == [2, 3]


# -- executors that end of nothing


def test_executors_that_end_as_soon_as_they_are_up_are_replaced_ever_later(
    make_stage: MakeStage, caplog: pytest.LogCaptureFixture
) -> None:
    """Cause: one that had come up was replaced at once, whatever it had done: two a second were forked, for ever."""
    stage = make_stage()
    delays = []
    stage.supervisor._restart_later = delays.append  # type: ignore[method-assign]
    for _ in range(8):
        stage.puppets[-1].die()
        stage.turn()
        if delays:
            stage.supervisor._restart()
        stage.puppets[-1].come_up()
        stage.turn()

    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert stage.supervisor.failure is None
    assert "end as soon as they are up" in caplog.text


def test_an_executor_that_has_run_something_is_replaced_at_once_however_young(make_stage: MakeStage) -> None:
    stage = make_stage()
    for number in range(4):
        stage.deliver(delivery(task_id=str(number)))
        stage.puppets[-1].start(stage.puppets[-1].ids[0])
        stage.puppets[-1].die()
        stage.turn()
        stage.puppets[-1].come_up()
        stage.turn()

    assert len(stage.puppets) == 5


def test_a_resize_that_the_system_refuses_is_tried_again(
    make_stage: MakeStage, quick_restarts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage()

    with monkeypatch.context() as refusing:
        refusing.setattr(Board, "create", _refuse)
        stage.supervisor.resize(Layout(2, 1))
    stage.loop.run_until(lambda: len(stage.puppets) == 2, time.monotonic() + 5.0)

    assert len(stage.puppets) == 2


def _refuse(slots: int) -> Board:
    raise OSError(errno.EMFILE, "Too many open files")
