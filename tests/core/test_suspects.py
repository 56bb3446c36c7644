"""Messages that may have ended who ran them: counted before they run, not while they wait, and kept apart."""

from __future__ import annotations

from functools import partial

import pytest

from kernel_worker.bus import Kind
from kernel_worker.dispatcher import RECOUNT_S
from kernel_worker.types import Delivery, OutcomeKind, Settlement, Verdict
from kernel_worker.wire import Frame

from .puppet import Clock, MakeStage, Stage, deliveries, delivery, told


@pytest.fixture
def make_stage(make_stage: MakeStage) -> MakeStage:
    """With a broker that can mark, unless told otherwise."""
    return partial(make_stage, can_mark=True)


def recovered(*task_ids: str, attempts: int = 0, task: str = "short") -> list[Delivery]:
    return [delivery(task, task_id, attempts=attempts, recovered=True) for task_id in task_ids]


def runs(stage: Stage) -> list[list[str]]:
    """What each executor has."""
    return [puppet.ids for puppet in stage.puppets]


# -- counted first


def test_a_recovered_message_runs_when_it_is_counted_and_not_before(stage: Stage) -> None:
    stage.deliver(*recovered("a"))
    before = runs(stage)
    marked = [(each.delivery.headers["id"], each.verdict) for each in stage.marks]

    stage.count_marks()

    assert before == [[]]
    assert marked == [("a", Verdict.MARK)]
    assert runs(stage) == [["a"]]
    assert stage.settlements == []


def test_only_what_has_a_slot_is_counted(make_stage: MakeStage) -> None:
    """Cause: whatever a killed worker had held was counted at once, although it had not run and does not yet."""
    stage = make_stage(2)

    stage.deliver(*recovered(*"abcd"))
    first = stage.count_marks()
    stage.puppets[0].succeed("a")
    stage.turn()
    second = stage.count_marks()

    assert (first, second) == (["a", "b"], ["c"])
    assert runs(stage) == [["c"], ["b"]]


def test_the_slot_is_kept_while_it_is_counted_and_other_slots_work_on(make_stage: MakeStage) -> None:
    stage = make_stage(2)

    stage.deliver(*recovered("suspect"), *deliveries("long", ["new 1", "new 2"]))

    assert runs(stage) == [[], ["new 1"]]
    stage.count_marks()
    assert runs(stage) == [["suspect"], ["new 1"]]


def test_nothing_waits_unmarked_behind_another_request(stage: Stage) -> None:
    """Short tasks may wait at a slot; a suspect there would be counted although another one ran."""
    stage.learn("short", 0.0001)

    stage.deliver(*recovered(*"abc"))
    stage.count_marks()

    assert runs(stage) == [["a"]]
    assert stage.marks == []


def test_a_counted_message_says_so_to_its_task(stage: Stage) -> None:
    (suspect,) = recovered("a", attempts=1)
    stage.deliver(suspect)

    stage.count_marks()

    assert (suspect.attempts, suspect.recovered) == (2, False)


def test_an_executor_that_died_meanwhile_does_not_keep_the_counted_one(stage: Stage) -> None:
    stage.deliver(*recovered("a"))

    stage.puppets[0].die()
    stage.count_marks()
    stage.puppets[1].come_up()
    stage.turn()

    assert stage.puppets[1].ids == ["a"]
    assert stage.marks == [], "counted once"


def test_what_is_counted_while_the_worker_closes_goes_back(stage: Stage) -> None:
    stage.deliver(*recovered("counted", "waits"))

    stage.dispatcher.close()
    stage.turn()
    stage.count_marks()

    assert sorted(stage.verdicts()) == [("counted", Verdict.REQUEUE), ("waits", Verdict.REQUEUE)]
    assert not any(each.count for each in stage.settlements)
    assert stage.dispatcher.held == 0


def test_leases_are_renewed_for_what_waits_to_be_counted(stage: Stage) -> None:
    stage.deliver(*recovered(*"ab"))

    assert {each.headers["id"] for each in stage.dispatcher.held_deliveries()} == {"a", "b"}


# -- the limit


def test_a_message_without_deliveries_left_is_not_run(stage: Stage) -> None:
    heard = told(stage, [Kind.LOST, Kind.FAILED])
    (poison,) = recovered("a", attempts=2)

    stage.deliver(poison)
    stage.count_marks()
    given = runs(stage)
    stage.puppets[0].end("LOST:a", OutcomeKind.LOST, "gone")
    stage.turn()

    text = "Worker exited prematurely: the worker that held it is gone (delivery 3 of at most 3)"
    assert given == [["LOST:a"]]
    assert stage.settlements == [Settlement(poison, Verdict.DEAD, text)], "its mark has counted it"
    assert heard == [("LOST", "a", "LOST"), ("FAILED", "a", "LOST")]


def test_a_message_whose_end_cannot_be_stored_without_a_death_is_dead_without_it(stage: Stage) -> None:
    stage.deliver(*recovered("a", attempts=3))

    assert stage.verdicts() == [("a", Verdict.DEAD)]
    assert runs(stage) == [[]]


def test_a_message_that_ends_its_worker_starts_as_often_as_is_allowed(make_stage: MakeStage) -> None:
    starts, attempts, is_recovered = 0, 0, False
    for _ in range(6):
        stage = make_stage()
        message = delivery("short", "a", attempts=attempts, recovered=is_recovered)
        stage.deliver(message)
        stage.count_marks()
        starts += runs(stage) == [["a"]]
        attempts, is_recovered = message.attempts, True  # the worker is gone here

    assert starts == 3


# -- apart


def test_messages_that_came_back_twice_run_one_at_a_time_beside_others(make_stage: MakeStage) -> None:
    """Cause: the innocent ran beside the guilty again each time, and were counted with it until all were dead."""
    stage = make_stage(3)

    stage.deliver(*recovered("s1", "s2", attempts=1), *deliveries("long", ["n1", "n2"]))
    stage.count_marks()
    first = runs(stage)
    stage.puppets[0].succeed("s1")
    stage.turn()
    stage.count_marks()

    assert first == [["s1"], ["n1"], ["n2"]]
    assert runs(stage) == [["s2"], ["n1"], ["n2"]]


def test_suspects_that_wait_for_each_other_take_no_room(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    room = stage.allowed

    stage.deliver(*recovered(*map(str, range(4)), attempts=1))
    stage.count_marks()

    assert stage.allowed - 4 == room - 1, "one runs, three wait"


def test_messages_an_executor_was_lost_with_run_apart_where_executors_have_many_slots(make_stage: MakeStage) -> None:
    stage = make_stage(2, slots=4)

    stage.deliver(*[delivery("short", task_id, attempts=1) for task_id in ("s1", "s2", "s3")], delivery("long", "n"))

    assert [[task_id for task_id in ids if task_id.startswith("s")] for ids in runs(stage)] == [["s1"], ["s2"]]
    assert stage.marks == [], "their loss was counted when it was seen"


def test_a_suspect_that_is_gone_lets_the_next_one_run(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.deliver(*recovered("s1", "s2", attempts=1))
    stage.count_marks()
    stage.puppets[0].start("s1")

    stage.puppets[0].die()
    stage.turn()
    stage.count_marks()

    assert stage.puppets[1].ids == ["s2"]
    assert stage.verdicts() == []
    assert [request.id for request in stage.dispatcher.ready] == ["s1"], "lost for the third time: to be concluded"


# -- where the broker cannot count in place


def test_without_marks_a_recovered_message_goes_back_to_be_counted(make_stage: MakeStage) -> None:
    stage = make_stage(can_mark=False)

    stage.deliver(*recovered(*"abc"))
    once = [(each.delivery.headers["id"], each.verdict, each.count) for each in stage.marks]
    stage.count_marks()
    stage.deliver(delivery("short", "a", attempts=1))

    assert once == [("a", Verdict.REQUEUE, True)], "the others wait: they may be innocent"
    assert runs(stage) == [["a"]]
    assert stage.marks == stage.settlements == []


def test_without_marks_the_room_of_a_message_is_kept_until_it_can_come_again(make_stage: MakeStage) -> None:
    """Cause: others took it, so it came too late: those beside it were counted meanwhile, as if they had ended the worker."""
    stage = make_stage(can_mark=False)

    stage.deliver(*recovered(*"ab"))
    held, prefetch = stage.dispatcher.held, stage.dispatcher.prefetch_count
    stage.count_marks()

    assert held == 2
    assert (stage.dispatcher.held, stage.dispatcher.prefetch_count) == (1, prefetch)


@pytest.mark.usefixtures("clock")
def test_without_marks_what_is_in_its_queue_again_is_fetched_though_there_is_no_room(make_stage: MakeStage) -> None:
    """Cause: a worker that had been fast held so many that the room of one was not worth a fetch; the copy was given up
    for lost, and its neighbours were counted."""
    stage = make_stage(can_mark=False)

    stage.deliver(*recovered(*(f"held {n}" for n in range(40))))
    stage.count_marks()

    assert stage.allowances[-1] == (41, 1)


def _with_a_large_fetch_under_way(make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """30 deliveries were asked for, four are wanted by now, and "a" goes back to be counted."""
    stage = make_stage(can_mark=False)
    monkeypatch.setattr(stage.dispatcher._prefetch, "limit", lambda slots, completed: 30)
    stage.deliver(*recovered("a"))
    monkeypatch.setattr(stage.dispatcher._prefetch, "limit", lambda slots, completed: 4)
    return stage


@pytest.mark.usefixtures("clock")
def test_without_marks_a_fetch_under_way_takes_no_room_from_what_went_back(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: it brought others. What had gone back came when its wait was over, and so did all that went after it."""
    stage = _with_a_large_fetch_under_way(make_stage, monkeypatch)

    stage.count_marks()

    assert (30, 7) in stage.allowances
    assert stage.allowances[-1] == (31, 1)


@pytest.mark.usefixtures("clock")
def test_without_marks_the_room_beyond_a_fetch_ends_with_what_went_back(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _with_a_large_fetch_under_way(make_stage, monkeypatch)
    stage.count_marks()

    stage.deliver(delivery("short", "a", attempts=1))
    afterwards = stage.allowed
    stage.puppets[0].succeed("a")
    stage.deliver(*recovered("b"))
    stage.count_marks()

    assert afterwards == 5
    assert stage.allowed == 7, "two have ended here, and there is room for four and b"


def test_without_marks_nothing_is_given_back_while_what_went_back_is_awaited(
    clock: Clock, make_stage: MakeStage
) -> None:
    """It would lie before that in the queue, and be fetched in its place."""
    stage = make_stage(can_mark=False)
    stage.deliver(*recovered(*(f"held {n}" for n in range(40))))
    stage.count_marks()

    clock.now += RECOUNT_S / 2
    stage.turn()

    assert stage.verdicts() == []


def test_without_marks_a_message_that_others_took_is_not_waited_for(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_worker.dispatcher.RECOUNT_S", 0.0)
    stage = make_stage(can_mark=False)

    stage.deliver(*recovered(*"abc"))
    counted = [stage.count_marks() for _ in range(3)]

    assert counted == [["a"], ["b"], ["c"]]


def test_without_marks_a_message_without_deliveries_left_is_not_run(make_stage: MakeStage) -> None:
    """Cause: what had gone back to be counted for the last time was run like any other, and ended worker after worker."""
    stage = make_stage(can_mark=False)

    stage.deliver(*recovered("a", attempts=2))
    back = [(each.verdict, each.count) for each in stage.marks]
    stage.count_marks()
    stage.deliver(delivery("short", "a", attempts=3))
    given = runs(stage)
    stage.puppets[0].end("LOST:a", OutcomeKind.LOST, "gone")
    stage.turn()

    assert back == [(Verdict.REQUEUE, True)]
    assert given == [["LOST:a"]]
    (end,) = stage.settlements
    assert (end.verdict, end.count) == (Verdict.DEAD, False), "it is counted already"
    assert end.reason.endswith("(delivery 3 of at most 3)")


def test_without_marks_an_end_that_ends_its_worker_is_dead_without_it(make_stage: MakeStage) -> None:
    stage = make_stage(can_mark=False)

    stage.deliver(*recovered("a", attempts=3))

    assert stage.verdicts() == [("a", Verdict.DEAD)]
    assert runs(stage) == [[]]


# -- beside others


@pytest.mark.parametrize("can_mark", [True, False])
def test_nothing_is_stacked_where_a_recovered_message_waits_for_a_slot(make_stage: MakeStage, can_mark: bool) -> None:
    """Cause: a slot with short tasks was filled again before it was free, so what had been recovered never started."""
    stage = make_stage(can_mark=can_mark)
    stage.learn("short", 0.0001)
    puppet = stage.puppets[0]

    stage.deliver(*deliveries("short", range(5)))
    stage.deliver(*recovered("suspect"), *deliveries("short", range(5, 50)))
    for task_id in list("01234"):
        puppet.succeed(task_id)
        stage.turn()

    assert [each.delivery.headers["id"] for each in stage.marks] == ["suspect"], puppet.ids


# -- conclusions that end their executor


def test_an_end_that_kills_whoever_stores_it_is_settled_without_being_stored(stage: Stage) -> None:
    stage.deliver(delivery(attempts=2))
    stage.puppets[-1].start("a")
    for _ in range(4):
        stage.puppets[-1].die()
        stage.turn(6)
        stage.loop.run_until(lambda: stage.settlements or stage.puppets[-1].key in stage.supervisor.executors)
        if stage.settlements:
            break
        stage.puppets[-1].come_up()
        stage.turn()
        stage.puppets[-1].start("LOST:a")

    assert stage.verdicts() == [("a", Verdict.DEAD)]
    assert len(stage.puppets) == 5, "one died of the task, three of its end"


def test_an_end_whose_executor_is_killed_for_another_reason_is_stored_by_the_next(stage: Stage) -> None:
    stage.deliver(delivery(attempts=2))
    stage.puppets[-1].start("a")
    stage.puppets[-1].die()
    for _ in range(4):
        stage.turn(6)
        stage.puppets[-1].come_up()
        stage.turn()
        stage.puppets[-1].start("LOST:a")
        stage.supervisor.kill(stage.supervisor.executors[stage.puppets[-1].key], "memory")
    stage.turn(6)
    stage.puppets[-1].come_up()
    stage.turn()

    assert stage.puppets[-1].ids == ["LOST:a"]
    assert stage.settlements == []


# -- unknown tasks


def test_an_unknown_task_goes_back_for_longer_each_time_and_is_dead_in_the_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_worker.dispatcher.time.time", lambda: 1000.0)
    waits = []
    for returns in range(6):
        stage.settlements.clear()
        stage.deliver(delivery("of.tomorrow", f"u{returns}", returns=returns))
        waits += [(each.verdict, each.until - 1000.0, each.count) for each in stage.settlements]

    assert waits == [(Verdict.DELAY, seconds, True) for seconds in (1.0, 2.0, 4.0, 8.0, 16.0)]
    assert runs(stage) == [["UNKNOWN:u5"]]


def test_where_the_broker_cannot_count_returns_the_worker_does(stage: Stage) -> None:
    for _ in range(6):
        stage.deliver(delivery("of.tomorrow", "u"))

    assert stage.verdicts() == [("u", Verdict.DELAY)] * 5
    assert runs(stage) == [["UNKNOWN:u"]]


# -- fencing


def test_what_others_took_over_is_forgotten_wherever_it_is(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.deliver(*deliveries("long", ["kept", "runs"]))
    stage.deliver(*deliveries("long", ["ready"]), *recovered("suspect"))
    stage.puppets[0].start("kept")
    stage.puppets[1].start("runs")
    lost = [each for each in stage.dispatcher.held_deliveries() if each.headers["id"] != "kept"]

    stage.dispatcher.fence(lost)
    stage.turn()
    stage.puppets[2].come_up()
    stage.turn()

    assert stage.spawner.killed == [stage.puppets[1].key]
    assert stage.puppets[2].ids == []
    assert [each.headers["id"] for each in stage.dispatcher.held_deliveries()] == ["kept"]
    assert not any(
        verdict is not Verdict.REQUEUE or each.count for each in stage.settlements for verdict in [each.verdict]
    )


def test_the_end_of_what_others_took_over_is_not_settled(make_stage: MakeStage) -> None:
    stage = make_stage(1, slots=2, can_kill=False)
    heard = told(stage, [Kind.SUCCEEDED])
    stage.deliver(*deliveries("long", ["kept", "runs"]))

    stage.dispatcher.fence([each for each in stage.dispatcher.held_deliveries() if each.headers["id"] == "runs"])
    stage.turn()
    told_so = stage.puppets[0].told(Frame.FENCE)
    stage.puppets[0].succeed("kept", "runs")
    stage.turn()

    assert told_so
    assert stage.spawner.killed == []
    assert stage.verdicts() == [("runs", Verdict.REQUEUE), ("kept", Verdict.ACK)]
    assert heard == [("SUCCEEDED", "kept", "SUCCESS")]
    assert stage.dispatcher.held == 0


@pytest.mark.parametrize("early", [False, True], ids=["told first", "delivered first"])
def test_what_a_living_worker_was_cut_off_from_is_not_suspected(make_stage: MakeStage, early: bool) -> None:
    """Cause: three lost connections made a dead letter of a long task, as if it had killed three workers."""
    stage = make_stage(1, can_mark=False)
    stage.deliver(*deliveries("long", ["runs"]))
    stage.puppets[0].start("runs")
    lost = stage.dispatcher.held_deliveries()

    if not early:
        stage.dispatcher.fence(lost)
    (again,) = recovered("runs", attempts=2)
    stage.deliver(again)
    if early:
        stage.dispatcher.fence(lost)
        stage.turn()
    stage.puppets[1].come_up()
    stage.turn()

    assert stage.puppets[1].ids == ["runs"]
    assert [each for each in stage.settlements if each.count or each.verdict is Verdict.DEAD] == []
