"""How requests end when something goes wrong: executors die, limits pass, the worker closes."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from kernel_worker.bus import Kind
from kernel_worker.drivers import Layout
from kernel_worker.request import Request
from kernel_worker.supervisor import Handle
from kernel_worker.types import Outcome, OutcomeKind, Settlement, TaskInfo, Verdict
from kernel_worker.wire import Frame

from .puppet import Clock, MakeStage, Puppet, Stage, deliveries, delivery, told


def _handle(stage: Stage, puppet: Puppet) -> Handle:
    return stage.supervisor.executors[puppet.key]


def _held_by_one(stage: Stage, *task_ids: str) -> Puppet:
    """Have one executor hold several short requests."""
    stage.learn("short", 0.0001)
    stage.deliver(*deliveries("short", task_ids))
    assert stage.puppets[0].ids == list(task_ids)
    return stage.puppets[0]


# -- the death of an executor, by what its board says


def test_what_a_dead_executor_ran_is_lost_and_what_it_held_goes_to_others_uncounted(stage: Stage) -> None:
    puppet = _held_by_one(stage, "runs", "held 1", "held 2")
    puppet.start("runs")

    puppet.die()
    stage.turn()

    assert [(each.delivery.receipt, each.verdict, each.count) for each in stage.settlements] == [
        ("runs", Verdict.REQUEUE, True)
    ]
    assert [request.id for request in stage.dispatcher.ready] == ["held 1", "held 2"]


def test_what_the_board_says_is_done_is_acked_though_nobody_was_told(stage: Stage) -> None:
    puppet = _held_by_one(stage, "done 1", "done 2", "runs")
    puppet.start("runs", done_through=puppet.tag_of("done 2"))

    puppet.die()
    stage.turn()

    assert stage.verdicts() == [("done 1", Verdict.ACK), ("done 2", Verdict.ACK), ("runs", Verdict.REQUEUE)]


def test_what_was_reported_before_the_death_is_not_lost(stage: Stage) -> None:
    puppet = _held_by_one(stage, "a", "b")
    puppet.start("a")

    puppet.succeed("a")
    puppet.die()
    stage.turn()

    assert stage.verdicts() == [("a", Verdict.ACK)]
    assert [request.id for request in stage.dispatcher.ready] == ["b"]


def test_a_request_given_back_and_given_again_is_not_taken_for_done_by_its_old_tag(make_stage: MakeStage) -> None:
    """Cause: a request kept its tag when it went to another executor. That one had already done requests with higher
    tags, so at its death the board's "done up to" covered the request: acked, and never run."""
    stage = make_stage(2)
    stage.learn("short", 0.0001)
    stage.deliver(*deliveries("short", "abcd"))
    first, second = stage.puppets
    last = second.ids[-1]
    done_through = second.tag_of(last)
    returned = first.ids[-1]
    first.start(first.ids[0])
    first.give_back(returned)
    stage.turn()
    assert returned in second.ids

    second.start(returned, done_through=done_through)
    second.rest(done_through)
    second.board.start(0, 0, 0.0, done_through)  # it did not come to start what was given again
    second.die()
    stage.turn()

    assert (returned, Verdict.ACK) not in stage.verdicts()


def test_what_ended_without_a_report_counts_as_lost(stage: Stage) -> None:
    """Cause: a task that closes descriptors ends well, and its executor dies of the report it cannot send. The board
    said that nothing ran, so the request was handed out again uncounted: for ever."""
    puppet = _held_by_one(stage, "closes descriptors", "held")
    puppet.start("closes descriptors")
    puppet.rest()

    puppet.die(0)
    stage.turn()

    assert [(each.delivery.receipt, each.verdict, each.count) for each in stage.settlements] == [
        ("closes descriptors", Verdict.REQUEUE, True)
    ]
    assert [request.id for request in stage.dispatcher.ready] == ["held"]


def test_an_exit_with_status_0_is_no_success(stage: Stage) -> None:
    stage.deliver(delivery(attempts=2))
    stage.puppets[0].start("a")

    stage.puppets[0].die(0)
    stage.turn()
    stage.puppets[-1].come_up()
    stage.turn()

    assert stage.puppets[-1].ids == ["LOST:a"]


def test_the_last_loss_is_stored_by_another_executor_and_only_then_settled(stage: Stage) -> None:
    heard = told(stage, [Kind.LOST, Kind.FAILED])
    poison = delivery(attempts=2)
    stage.deliver(poison)
    stage.puppets[0].start("a")

    stage.puppets[0].die(-signal.SIGSEGV)
    stage.turn()
    before = list(stage.settlements)
    stage.puppets[1].come_up()
    stage.turn()
    stage.puppets[1].end("LOST:a", OutcomeKind.LOST, "Worker exited prematurely: signal SIGSEGV")
    stage.turn()

    assert before == []
    text = "Worker exited prematurely: signal SIGSEGV (delivery 3 of at most 3)"
    assert stage.settlements == [Settlement(poison, Verdict.DEAD, text, count=True)]
    assert heard == [("LOST", "a", "LOST"), ("FAILED", "a", "LOST")]


def test_an_executor_that_dies_while_it_concludes_gives_the_conclusion_to_the_next(stage: Stage) -> None:
    stage.deliver(delivery(attempts=2))
    for status in (-9, -9):
        puppet = stage.puppets[-1]
        if puppet.ids[0].startswith("LOST"):
            puppet.start("LOST:a")
        else:
            puppet.start("a")
        puppet.die(status)
        stage.turn()
        stage.puppets[-1].come_up()
        stage.turn()

    assert stage.puppets[-1].ids == ["LOST:a"]
    assert stage.settlements == []


def test_a_lost_early_acked_request_is_concluded_and_not_put_back(stage: Stage) -> None:
    stage.deliver(delivery("early", "a"))
    stage.settlements.clear()
    stage.puppets[0].start("a")

    stage.puppets[0].die()
    stage.turn()
    stage.puppets[1].come_up()
    stage.turn()

    assert stage.puppets[1].ids == ["LOST:a"]
    assert stage.settlements == []


def test_a_task_that_must_not_run_again_is_dead_after_one_loss(make_stage: MakeStage) -> None:
    stage = make_stage(tasks={"once": TaskInfo("once", reject_on_worker_lost=False)})
    stage.deliver(delivery("once"))
    stage.puppets[0].start("a")

    stage.puppets[0].die()
    stage.turn()
    stage.puppets[1].come_up()
    stage.turn()
    stage.puppets[1].end("LOST:a", OutcomeKind.LOST, "gone")
    stage.turn()

    assert stage.verdicts() == [("a", Verdict.DEAD)]


def test_nonsense_on_the_socket_ends_the_executor_and_counts_as_a_loss(stage: Stage) -> None:
    """Cause: a JSON error in a frame ended in the loop's log, the rest of the read was dropped and the executor kept:
    what it ran was waited for until the worker ended. And a kill for it did not count, so it came back for ever."""
    stage.deliver(delivery())
    stage.puppets[0].start("a")

    stage.puppets[0].channel.send(b"\x03\0\0\0" + bytes([Frame.ENDED]) + b"{x}")
    stage.turn()

    assert stage.spawner.killed == [stage.puppets[0].key]
    assert [(each.verdict, each.count) for each in stage.settlements] == [(Verdict.REQUEUE, True)]
    assert stage.dispatcher.in_flight == {}


@pytest.mark.parametrize(
    "frame",
    [
        bytes([Frame.DONE]) + b"xxx",
        bytes([Frame.ENDED]) + b"[1]",
        bytes([Frame.ENDED]) + b'{"tag": 1, "kind": 99, "runtime": 0, "error": "", "requeue": false, "until": 0}',
        bytes([Frame.ENDED]) + b'{"tag": 1, "kind": 1, "runtime": [], "error": "", "requeue": false, "until": 0}',
        bytes([Frame.ENDED]) + b'{"tag": 1, "kind": 1, "runtime": 0}',
        bytes([Frame.RETURNED]) + b"17",
        bytes([Frame.UP]) + b"{}",
    ],
    ids=["half a record", "no object", "unknown kind", "no number", "too little", "no list", "no pid"],
)
def test_nonsense_found_after_the_death_does_not_keep_what_was_held(stage: Stage, frame: bytes) -> None:
    """Cause: an exception while the last frames of a dead executor were read left its requests with nobody."""
    stage.deliver(delivery())
    puppet = stage.puppets[0]
    assert puppet.ids == ["a"]

    puppet.channel.send((len(frame) - 1).to_bytes(4, "little") + frame)
    puppet.die()
    stage.turn()
    stage.puppets[1].come_up()
    stage.turn()

    assert stage.puppets[1].ids == ["a"]
    assert stage.settlements == []


def test_a_deaf_executor_is_killed_and_what_it_ran_counts_as_a_loss(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: killing it was the kernel's deed, so what it ran was put back uncounted: a task that closes descriptors
    and goes on running did so again and again."""
    monkeypatch.setattr("kernel_worker.supervisor.DEAF_S", 0.05)
    stage.deliver(delivery())
    stage.puppets[0].start("a")

    stage.puppets[0].channel.close()
    killed = stage.loop.run_until(lambda: stage.settlements, time.monotonic() + 3.0)

    assert killed
    assert [(each.verdict, each.count) for each in stage.settlements] == [(Verdict.REQUEUE, True)]


def test_what_has_ended_and_waits_for_the_result_store_is_not_counted_when_its_executor_is_lost(stage: Stage) -> None:
    """Cause: whatever waited for the store was counted with the task that ran, and three kills made dead letters of it."""
    stage.learn("short", 0.0001)
    stage.deliver(*deliveries("short", "abc"))
    stage.puppets[0].start("c")
    stage.puppets[0].tell_unstored(2)
    stage.turn()

    stage.puppets[0].die()
    stage.turn()

    found = {each.delivery.headers["id"]: (each.verdict, each.count) for each in stage.settlements}
    assert found == {"a": (Verdict.REQUEUE, False), "b": (Verdict.REQUEUE, False), "c": (Verdict.REQUEUE, True)}


# -- hard limits


def _start_at(stage: Stage, puppet: Puppet, task_id: str, now: float) -> None:
    puppet.board.start(0, puppet.tag_of(task_id), now, 0)


def test_an_executor_whose_task_is_over_its_limit_is_killed_and_the_task_timed_out(clock: Clock, stage: Stage) -> None:
    heard = told(stage, [Kind.FAILED])
    stage.deliver(delivery("limited"))
    _start_at(stage, stage.puppets[0], "a", clock.now)

    clock.now += 29.9
    stage.turn()
    early = list(stage.spawner.killed)
    clock.now += 0.3
    stage.turn()
    stage.puppets[1].come_up()
    stage.turn()
    stage.puppets[1].end("TIMEOUT:a", OutcomeKind.TIMEOUT, "30")
    stage.turn()

    assert early == []
    assert stage.spawner.killed == [stage.puppets[0].key]
    assert stage.verdicts() == [("a", Verdict.ACK)]
    assert heard == [("FAILED", "a", "TIMEOUT")]


def test_the_limit_counts_from_the_start_of_the_task_not_from_its_assignment(clock: Clock, stage: Stage) -> None:
    stage.deliver(delivery("limited"))
    clock.now += 29
    _start_at(stage, stage.puppets[0], "a", clock.now)

    clock.now += 2
    stage.turn()
    early = list(stage.spawner.killed)
    clock.now += 28.5
    stage.turn()

    assert early == []
    assert stage.spawner.killed


def test_a_request_that_only_waits_is_not_held_to_its_limit(clock: Clock, stage: Stage) -> None:
    stage.deliver(delivery("limited"))

    for _ in range(5):
        clock.now += 31
        stage.turn()

    assert stage.spawner.killed == []


def test_the_limit_of_a_later_request_counts_although_an_earlier_one_has_a_longer_one(
    clock: Clock, stage: Stage
) -> None:
    stage.deliver(delivery("short", "first", timelimit=[1000, None]))
    _start_at(stage, stage.puppets[0], "first", clock.now)
    stage.puppets[0].succeed("first")
    stage.turn()

    stage.deliver(delivery("limited", "second"))
    _start_at(stage, stage.puppets[0], "second", clock.now)
    clock.now += 30.2
    stage.turn()

    assert stage.spawner.killed == [stage.puppets[0].key]


def test_requests_that_have_ended_leave_no_timers_behind(stage: Stage) -> None:
    """Cause: one timer per request with a limit stayed until the limit, an hour at times, and kept the whole message:
    a worker with a time limit grew by gigabytes."""
    before = len(stage.loop._timers)

    for number in range(50):
        stage.deliver(delivery("limited", str(number)))
        stage.puppets[0].succeed(str(number))
        stage.turn()

    assert len(stage.loop._timers) <= before + 3  # nothing outside shows the memory that is held


def test_a_task_that_ran_next_when_its_executor_was_killed_for_a_limit_is_not_to_blame(
    clock: Clock, stage: Stage
) -> None:
    stage.deliver(delivery("limited", "over"))
    puppet = stage.puppets[0]
    _start_at(stage, puppet, "over", clock.now)
    stage.deliver(delivery("limited", "next"))
    request = stage.dispatcher.ready.popleft()
    stage.dispatcher._give(_handle(stage, puppet), request)
    stage.turn(1)

    clock.now += 30.2
    stage.loop.turn(0)  # the kill is on its way
    puppet.start("next", done_through=puppet.tag_of("over"))
    stage.turn()

    assert stage.verdicts() == [("over", Verdict.ACK), ("next", Verdict.REQUEUE)]
    assert [each.count for each in stage.settlements] == [False, False]


def test_where_executors_cannot_be_killed_the_task_is_told_again_and_again(clock: Clock, make_stage: MakeStage) -> None:
    stage = make_stage(can_kill=False)
    stage.deliver(delivery("limited"))
    _start_at(stage, stage.puppets[0], "a", clock.now)

    for _ in range(3):
        clock.now += 30.2
        stage.turn()
    told_so = stage.puppets[0].told(Frame.CANCEL)

    assert told_so
    assert stage.puppets[0].orders.count(Frame.CANCEL) == 3
    assert stage.spawner.killed == []


def test_a_timed_out_task_that_is_to_be_kept_goes_back_counted(clock: Clock, make_stage: MakeStage) -> None:
    stage = make_stage(time_limit=10.0)
    stage.deliver(delivery("patient"))
    _start_at(stage, stage.puppets[0], "a", clock.now)

    clock.now += 10.2
    stage.turn()

    assert [(each.verdict, each.count) for each in stage.settlements] == [(Verdict.REQUEUE, True)]


# -- closing


def test_closing_returns_what_waits_and_recalls_what_executors_hold(stage: Stage) -> None:
    puppet = _held_by_one(stage, "runs", "held")
    puppet.start("runs")
    stage.deliver(*deliveries("long", "wx"))

    stage.dispatcher.close()
    stage.turn()
    recalled = puppet.told(Frame.RECALL)
    puppet.give_back("held")
    stage.turn()
    puppet.succeed("runs")
    stage.turn()

    assert recalled
    assert stage.verdicts() == [
        ("x", Verdict.REQUEUE),
        ("w", Verdict.REQUEUE),
        ("held", Verdict.REQUEUE),
        ("runs", Verdict.ACK),
    ]
    assert stage.dispatcher.held == 0


def test_what_was_being_fetched_when_it_closed_goes_back_at_once(stage: Stage) -> None:
    stage.dispatcher.close()

    stage.deliver(*deliveries("short", "ab"))

    assert stage.verdicts() == [("a", Verdict.REQUEUE), ("b", Verdict.REQUEUE)]
    assert stage.puppets[0].jobs == []
    assert stage.dispatcher.held == 0


def test_an_early_acked_request_that_an_executor_gives_back_at_the_end_is_still_run(stage: Stage) -> None:
    """Cause: it was put back like the others, but the broker had removed it when it was acked: gone."""
    stage.deliver(delivery("early", "a"))

    stage.dispatcher.close()
    stage.turn()
    stage.puppets[0].give_back("a")
    stage.turn()

    assert stage.puppets[0].ids == ["a"]
    assert stage.verdicts() == [("a", Verdict.ACK)]


def test_a_conclusion_that_an_executor_gives_back_at_the_end_is_still_stored(stage: Stage) -> None:
    """Cause: a message whose last attempt was lost was put back uncounted, to be run a fourth time."""
    stage.deliver(delivery(attempts=2))
    stage.puppets[0].start("a")
    stage.puppets[0].die()
    stage.turn()
    stage.puppets[1].come_up()
    stage.turn()

    stage.dispatcher.close()
    stage.turn()
    stage.puppets[1].give_back("LOST:a")
    stage.turn()

    assert stage.puppets[1].ids == ["LOST:a"]
    assert stage.settlements == []


def test_a_lost_request_at_the_end_is_put_back_counted(stage: Stage) -> None:
    stage.deliver(delivery())
    stage.puppets[0].start("a")
    stage.dispatcher.close()

    stage.puppets[0].die()
    stage.turn()

    assert [(each.verdict, each.count) for each in stage.settlements] == [(Verdict.REQUEUE, True)]


def test_a_request_cancelled_by_the_kernel_is_put_back_uncounted(stage: Stage) -> None:
    stage.deliver(delivery(attempts=2))
    puppet = stage.puppets[0]
    puppet.start("a")
    stage.dispatcher.close()

    stage.supervisor.kill(_handle(stage, puppet), "killed: the grace period is over")
    stage.turn()

    assert [(each.verdict, each.count) for each in stage.settlements] == [(Verdict.REQUEUE, False)]


def test_abandon_settles_what_nobody_can_conclude_any_more(stage: Stage) -> None:
    stage.deliver(delivery(task_id="poison", attempts=2), delivery("no.such", "unknown", returns=5))
    stage.puppets[0].start("poison")
    stage.supervisor.close()
    stage.dispatcher.close()
    stage.puppets[0].die()
    stage.turn()

    stage.dispatcher.abandon()

    assert dict(stage.verdicts()) == {"poison": Verdict.DEAD, "unknown": Verdict.REQUEUE}
    assert stage.dispatcher.held == 0


def test_a_resize_takes_executors_away_without_interrupting_what_they_hold(make_stage: MakeStage) -> None:
    stage = make_stage(3)
    stage.deliver(delivery(task_id="a"))
    busy = next(puppet for puppet in stage.puppets if puppet.jobs)

    stage.supervisor.resize(Layout(1, 1))
    stage.turn()
    retired = [puppet for puppet in stage.puppets if puppet.told(Frame.RETIRE)]

    assert busy not in retired
    assert len(retired) == 2
    assert busy.ids == ["a"]


def test_every_outcome_of_a_conclusion_settles_as_decided_before(stage: Stage) -> None:
    """The executor may fail to store it and say FAILURE: the decision stands."""
    poison = delivery(attempts=2)
    stage.deliver(poison)
    stage.puppets[0].start("a")
    stage.puppets[0].die()
    stage.turn()
    stage.puppets[1].come_up()
    stage.turn()

    stage.puppets[1].end("LOST:a", OutcomeKind.FAILURE, "internal error")
    stage.turn()

    assert stage.verdicts() == [("a", Verdict.DEAD)]


def test_an_outcome_that_says_when_parks_where_the_broker_can(stage: Stage) -> None:
    """Protocol 1: only the executor can read the eta."""
    stage.deliver(delivery())

    stage.puppets[0].end("a", OutcomeKind.DEFER, until=1.9e9)
    stage.turn()

    assert [(each.verdict, each.until) for each in stage.settlements] == [(Verdict.DELAY, 1.9e9)]


def test_an_outcome_that_says_when_is_held_here_where_the_broker_cannot_park(
    clock: Clock, make_stage: MakeStage
) -> None:
    """Cause: DELAY was sent to drivers that do not declare it."""
    stage = make_stage(can_delay=False)
    stage.deliver(delivery())

    stage.puppets[0].end("a", OutcomeKind.DEFER, until=clock.time() + 1)
    stage.turn()
    at_once = list(stage.puppets[0].ids)
    clock.now += 2
    stage.turn()

    assert at_once == []
    assert stage.puppets[0].ids == ["a"]
    assert stage.settlements == []


def test_an_outcome_that_says_when_goes_back_while_closing_where_the_broker_cannot_park(make_stage: MakeStage) -> None:
    """Cause: DELAY was sent to drivers that do not declare it."""
    stage = make_stage(can_delay=False)
    stage.deliver(delivery())
    stage.dispatcher.close()

    stage.puppets[0].end("a", OutcomeKind.DEFER, until=1.9e9)
    stage.turn()

    assert stage.verdicts() == [("a", Verdict.REQUEUE)]


def test_a_filter_that_delays_is_obeyed_where_the_broker_cannot_park(clock: Clock, make_stage: MakeStage) -> None:
    """Cause: DELAY was sent to drivers that do not declare it."""
    due = clock.time() + 1

    def not_yet(request: Request) -> Settlement | None:
        return Settlement(request.delivery, Verdict.DELAY, until=due) if clock.time() < due else None

    stage = make_stage(can_delay=False, filters=[not_yet])
    stage.deliver(delivery())
    at_once = list(stage.puppets[0].ids)
    clock.now += 2
    stage.turn()

    assert at_once == []
    assert stage.puppets[0].ids == ["a"]
    assert stage.settlements == []


def test_what_a_retired_executor_could_not_report_runs_again_uncounted(make_stage: MakeStage) -> None:
    """Cause: with the result store away a retired executor leaves its last ends unreported; each counted as a lost
    executor, so that tasks that had ended well became dead letters."""
    stage = make_stage(1)
    stage.deliver(delivery())
    stage.puppets[0].start("a")
    stage.supervisor.retire(stage.supervisor.executors[1])

    stage.puppets[0].rest()
    stage.puppets[0].die(0)
    stage.turn()

    assert [(each.verdict, each.count) for each in stage.settlements] == [(Verdict.REQUEUE, False)]


def test_a_policy_gets_the_outcome_of_a_lost_executor(make_stage: MakeStage) -> None:
    seen: list[Outcome] = []

    def policy(request: Any, outcome: Outcome) -> Settlement:
        seen.append(outcome)
        return Settlement(request.delivery, Verdict.REQUEUE)

    stage = make_stage(policy=policy)
    stage.deliver(delivery())
    stage.puppets[0].start("a")

    stage.puppets[0].die(-signal.SIGKILL)
    stage.turn()

    assert [(outcome.kind, outcome.error) for outcome in seen] == [
        (OutcomeKind.LOST, "Worker exited prematurely: signal SIGKILL")
    ]
