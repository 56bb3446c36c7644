"""From delivery to slot: which messages become requests, who gets them, and in what order."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kernel_worker.bus import Kind
from kernel_worker.dispatcher import MAX_DEPTH
from kernel_worker.request import HORIZON_S, Request
from kernel_worker.types import Delivery, OutcomeKind, Settlement, Verdict
from kernel_worker.wire import Frame, pack_json

from .puppet import Clock, MakeStage, Stage, deliveries, delivery, told


def iso(seconds_from_now: float) -> str:
    """That moment as a client writes it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds_from_now)).isoformat()


# -- headers


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"task": 5}, "header 'task' is not a name: 5"),
        ({"task": ""}, "header 'task' is not a name: ''"),
        ({"task": ["short"]}, "header 'task' is not a name"),
        ({"task": "x" * 256}, "header 'task' is not a name"),
        ({"task": "\ud800"}, r"header 'task' is not a name: '\ud800'"),
        ({"id": None}, "header 'id' is not an id: None"),
        ({"id": 17}, "header 'id' is not an id: 17"),
        ({"id": ""}, "header 'id' is not an id: ''"),
        ({"id": "x" * 256}, "header 'id' is not an id"),
        ({"id": "\udfff"}, r"header 'id' is not an id: '\udfff'"),
        ({"eta": "soon"}, "header 'eta' is not an ISO 8601 time: 'soon'"),
        ({"eta": 1700000000}, "header 'eta' is not an ISO 8601 time: 1700000000"),
        ({"eta": "99999-01-01T00:00:00"}, "header 'eta' is not an ISO 8601 time"),
        ({"expires": "later"}, "header 'expires' is not an ISO 8601 time: 'later'"),
        ({"expires": {}}, "header 'expires' is not an ISO 8601 time: {}"),
        ({"timelimit": "x"}, "header 'timelimit' is not [hard, soft] in seconds: 'x'"),
        ({"timelimit": [1]}, "header 'timelimit' is not"),
        ({"timelimit": [1, 2, 3]}, "header 'timelimit' is not"),
        ({"timelimit": ["1", None]}, "header 'timelimit' is not"),
        ({"timelimit": [-1, None]}, "header 'timelimit' is not"),
        ({"timelimit": [True, None]}, "header 'timelimit' is not"),
        ({"timelimit": [float("nan"), None]}, "header 'timelimit' is not"),
        ({"timelimit": [None, float("inf")]}, "header 'timelimit' is not"),
        ({"timelimit": {"a": 1, "b": 2}}, "header 'timelimit' is not"),
        ({"timelimit": 5}, "header 'timelimit' is not"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_a_message_with_impossible_headers_is_dead_with_the_reason_and_good_ones_go_on(
    stage: Stage, headers: dict[str, Any], reason: str
) -> None:
    raw = delivery().raw
    bad = Delivery("celery", raw, {**json.loads(raw)["headers"], **headers}, receipt="bad")

    stage.deliver(delivery(task_id="before"), bad, delivery(task_id="after"))
    stage.puppets[0].succeed("before")
    stage.turn()

    dead = [settlement for settlement in stage.settlements if settlement.verdict is Verdict.DEAD]
    assert [settlement.delivery for settlement in dead] == [bad]
    assert reason in dead[0].reason
    assert dead[0].reason.isascii()
    assert stage.puppets[0].ids == ["after"]


def test_what_the_driver_found_no_envelope_is_dead_with_the_drivers_reason(stage: Stage) -> None:
    broken = Delivery("celery", b"\xff", {}, receipt=1, error="the message is no JSON object")

    stage.deliver(broken)

    assert stage.settlements == [Settlement(broken, Verdict.DEAD, "the message is no JSON object")]


@pytest.mark.parametrize("header", [{}, {"lang": "py"}], ids=["no header", "other headers"])
def test_a_message_without_a_task_header_is_protocol_1_and_goes_to_an_executor(
    stage: Stage, header: dict[str, str]
) -> None:
    stage.deliver(Delivery("celery", delivery(task_id="v1").raw, header, receipt=1))

    assert stage.puppets[0].ids == ["v1"]
    assert stage.settlements == []


def test_only_task_and_id_are_required(stage: Stage) -> None:
    stage.deliver(Delivery("celery", delivery(task_id="lean").raw, {"task": "short", "id": "lean"}, receipt=1))

    assert stage.puppets[0].ids == ["lean"]


def test_an_unknown_task_is_concluded_in_an_executor_and_dead_afterwards(stage: Stage) -> None:
    """Its result (NotRegistered) is stored first, and only an executor has the result backend."""
    unknown = delivery("no.such", "u", returns=5)

    stage.deliver(unknown)
    given = stage.puppets[0].ids
    before = list(stage.settlements)
    stage.puppets[0].end("UNKNOWN:u", OutcomeKind.UNKNOWN, "no.such")
    stage.turn()

    assert given == ["UNKNOWN:u"]
    assert before == []
    assert stage.settlements == [Settlement(unknown, Verdict.DEAD, "unknown task no.such")]


def test_a_million_different_unknown_names_leave_nothing_behind(stage: Stage) -> None:
    """Cause: the run time of every name was remembered, those of conclusions too, so that anyone who may send
    could fill the worker's memory."""
    for number in range(50):
        stage.deliver(delivery(f"no.such.{number}", "u", returns=5))
        stage.puppets[0].end("UNKNOWN:u", OutcomeKind.UNKNOWN, "no.such")
        stage.turn()

    assert stage.dispatcher._costs == {}  # nothing outside shows the memory that is held


def _limits(stage: Stage, given: Delivery) -> tuple[float, float]:
    stage.deliver(given)
    request = next(iter(stage.dispatcher.in_flight.values()))
    return request.hard, request.soft


@pytest.mark.parametrize(
    ("task", "timelimit", "expected"),
    [
        ("short", [None, None], (300.0, 200.0)),
        ("short", None, (300.0, 200.0)),
        ("limited", [None, None], (30.0, 20.0)),
        ("limited", [3, 2], (3, 2)),
        ("limited", [None, 2.5], (30.0, 2.5)),
        ("limited", [0, 0], (30.0, 20.0)),
    ],
    ids=["the worker's", "no header", "the task's", "the message's", "only soft", "zero is none"],
)
def test_limits_come_from_message_then_task_then_worker(
    make_stage: MakeStage, task: str, timelimit: Any, expected: tuple[float, float]
) -> None:
    stage = make_stage(time_limit=300.0, soft_time_limit=200.0)

    assert _limits(stage, delivery(task, timelimit=timelimit)) == expected


# -- eta and expires


def test_a_message_that_is_not_due_is_parked_in_the_broker(stage: Stage) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)

    stage.deliver(delivery(eta=due.isoformat()))

    assert stage.verdicts() == [("a", Verdict.DELAY)]
    assert stage.settlements[0].until == pytest.approx(due.timestamp())
    assert stage.puppets[0].jobs == []
    assert stage.dispatcher.held == 0


def test_a_naive_eta_is_utc(stage: Stage) -> None:
    due = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)

    stage.deliver(delivery(eta=due.isoformat()))

    assert stage.settlements[0].until == pytest.approx(due.replace(tzinfo=UTC).timestamp())


def test_a_message_whose_time_has_come_runs(stage: Stage) -> None:
    stage.deliver(delivery(eta=iso(-60)))

    assert stage.puppets[0].ids == ["a"]


def test_where_the_broker_cannot_park_the_kernel_holds_until_due(clock: Clock, make_stage: MakeStage) -> None:
    stage = make_stage(can_delay=False)
    eta = datetime.fromtimestamp(clock.time() + 1, UTC).isoformat()

    stage.deliver(delivery(task_id="later", eta=eta), delivery(task_id="now"))
    stage.puppets[0].succeed("now")
    stage.turn()
    early = list(stage.puppets[0].ids)
    clock.now += 2
    stage.turn()

    assert early == []
    assert stage.puppets[0].ids == ["later"]


def test_what_the_kernel_holds_until_due_takes_no_prefetch_and_keeps_its_lease(make_stage: MakeStage) -> None:
    """Cause: held messages counted against the prefetch limit, so a few of them stopped consumption until they were
    due; and they were missing from the list of leases to renew, so another worker got them as well."""
    stage = make_stage(can_delay=False)
    before = stage.allowed

    stage.deliver(*(delivery(task_id=f"later {number}", eta=iso(3600)) for number in range(20)))

    assert stage.allowed == before + 20
    assert len(stage.dispatcher.held_deliveries()) == 20


def test_what_the_kernel_holds_until_due_goes_back_when_it_closes(make_stage: MakeStage) -> None:
    """Cause: they sat in timers only, which nobody asked at the end."""
    stage = make_stage(can_delay=False)
    stage.deliver(delivery(task_id="later", eta=iso(3600)))

    stage.dispatcher.close()
    stage.turn()

    assert stage.verdicts() == [("later", Verdict.REQUEUE)]
    assert stage.dispatcher.held == 0


def test_an_expired_message_is_concluded_not_run(stage: Stage) -> None:
    heard = told(stage, [Kind.EXPIRED, Kind.STARTED])

    stage.deliver(delivery(task_id="old", expires=iso(-1)))
    given = stage.puppets[0].ids
    stage.puppets[0].end("EXPIRED:old", OutcomeKind.EXPIRED, "expired")
    stage.turn()

    assert given == ["EXPIRED:old"]
    assert stage.verdicts() == [("old", Verdict.ACK)]
    assert heard == [("EXPIRED", "old", "EXPIRED")]


def test_a_message_that_expires_while_it_waits_for_a_slot_is_not_run(stage: Stage) -> None:
    stage.deliver(delivery(task_id="runs"), delivery(task_id="waits", expires=iso(0.05)))
    expired_at = time.time() + 0.06
    stage.loop.run_until(lambda: time.time() > expired_at, time.monotonic() + 0.07)

    stage.puppets[0].succeed("runs")
    stage.turn()

    assert stage.puppets[0].ids == ["EXPIRED:waits"]


# -- assignment


def test_every_idle_executor_gets_one_before_any_gets_two(make_stage: MakeStage) -> None:
    stage = make_stage(3)

    stage.deliver(*deliveries("short", range(3)))

    assert [len(puppet.jobs) for puppet in stage.puppets] == [1, 1, 1]


def test_a_task_of_unknown_length_waits_for_a_free_slot(make_stage: MakeStage) -> None:
    stage = make_stage(2)

    stage.deliver(*deliveries("short", range(10)))

    assert [len(puppet.jobs) for puppet in stage.puppets] == [1, 1]
    assert len(stage.dispatcher.ready) == 8


def test_a_task_measured_short_waits_at_the_slots_in_equal_shares(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.learn("short", 0.0001)

    stage.deliver(*deliveries("short", range(40)))

    assert [len(puppet.jobs) for puppet in stage.puppets] == [20, 20]


def test_no_slot_holds_more_than_the_limit(stage: Stage) -> None:
    burst = deliveries("short", range(MAX_DEPTH + 50))
    stage.learn("short", 0.000001)

    stage.deliver(*burst)

    assert len(stage.puppets[0].jobs) == MAX_DEPTH


def test_a_task_measured_long_is_never_queued_behind_another(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.learn("short", 0.0001)
    stage.learn("long", 2.0)

    stage.deliver(delivery("long", "l1"), delivery("long", "l2"), delivery("long", "l3"), delivery("short", "s"))

    assert [puppet.ids for puppet in stage.puppets] == [["l1"], ["l2"]]


def test_the_backlog_of_a_slot_is_bounded_by_time_not_only_by_number(stage: Stage) -> None:
    stage.learn("short", HORIZON_S * 0.4)

    stage.deliver(*deliveries("short", range(10)))

    assert len(stage.puppets[0].jobs) == 2  # a third one would be 1.2 times what a slot may hold


def test_one_slow_run_of_a_short_task_does_not_make_it_short_again_by_its_death(stage: Stage) -> None:
    """Cause: the conclusion of a lost request counted as a run of some microseconds, so a task that kills its
    executors was measured as short and others were queued behind it."""
    stage.learn("long", 2.0)
    for number in range(40):
        stage.deliver(delivery("long", f"e{number}", expires=iso(-1)))
        stage.puppets[0].end(f"EXPIRED:e{number}", OutcomeKind.EXPIRED)
        stage.turn()

    stage.deliver(*deliveries("long", range(3)))

    assert len(stage.puppets[0].jobs) == 1


def test_an_early_ack_is_given_only_with_an_idle_slot(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.learn("early", 0.0001)

    stage.deliver(*deliveries("early", range(5)))

    assert stage.puppets[0].ids == ["0"]
    assert stage.verdicts() == [("0", Verdict.ACK)]


def test_an_early_acked_request_is_not_settled_again(stage: Stage) -> None:
    stage.deliver(delivery("early", "a"))
    stage.puppets[0].end("a", OutcomeKind.FAILURE, "ValueError")
    stage.turn()

    assert stage.verdicts() == [("a", Verdict.ACK)]
    assert stage.dispatcher.held == 0


def test_an_early_acked_request_does_not_stop_those_behind_it_for_ever(stage: Stage) -> None:
    stage.learn("short", 0.0001)
    stage.deliver(delivery("early", "e1"), delivery("early", "e2"), delivery("short", "s"))

    stage.puppets[0].succeed("e1")
    stage.turn()
    stage.puppets[0].succeed("e2")
    stage.turn()

    assert stage.puppets[0].ids == ["s"]


def test_a_retiring_executor_gets_nothing_more(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    first, second = stage.supervisor.executors.values()
    stage.supervisor.retire(first)

    stage.deliver(*deliveries("short", range(2)))

    assert [len(puppet.jobs) for puppet in stage.puppets] == [0, 1]
    assert second.outstanding


def test_an_executor_that_comes_up_is_given_what_waits(make_stage: MakeStage) -> None:
    stage = make_stage(1, up=False)
    stage.deliver(delivery())
    before = stage.puppets[0].jobs

    stage.puppets[0].come_up()
    stage.turn()

    assert before == []
    assert stage.puppets[0].ids == ["a"]


def test_work_is_sent_in_the_turn_in_which_it_is_assigned(make_stage: MakeStage) -> None:
    """Cause: the supervisor's flush ran before the dispatcher's assignment at the end of a turn, so a frame waited
    for whatever made the loop turn again: up to a tenth of a second on an idle worker."""
    stage = make_stage(1)
    stage.loop.post(stage.dispatcher.on_deliveries, [delivery()])

    stage.loop.turn(0)

    assert stage.puppets[0].ids == ["a"]


# -- given back


def test_requests_given_back_are_first_in_line_again_and_in_order(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.learn("short", 0.001)
    stage.deliver(*deliveries("short", "abcd"), *deliveries("long", "xy"))
    stage.puppets[0].start("a")

    stage.puppets[0].give_back("d", "c", "b")
    stage.turn()

    assert [request.id for request in stage.dispatcher.ready] == ["b", "c", "d", "x", "y"]
    assert stage.settlements == []


def test_an_executor_that_gave_back_gets_nothing_until_its_long_task_ends(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.learn("short", HORIZON_S * 0.4)
    stage.deliver(*deliveries("short", "abcd"))
    first, second = stage.puppets
    first.start("a")

    first.give_back("c")
    stage.turn()
    given_back = [request.id for request in stage.dispatcher.ready]
    second.succeed("b", "d")
    stage.turn()
    taken_over = second.ids
    second.succeed("c")
    first.succeed("a")
    stage.deliver(*deliveries("short", "ef"))

    assert given_back == ["c"]
    assert taken_over == ["c"]
    assert (first.ids, second.ids) == (["e"], ["f"])


def test_an_executor_whose_long_task_ended_while_it_gave_back_is_not_left_idle(stage: Stage) -> None:
    """Cause: DONE of the long task overtook the RETURNED of what waited behind it; the executor counted as busy with
    a long task, had none, and was given nothing ever again."""
    stage.learn("short", 0.001)
    stage.deliver(*deliveries("short", "abc"))

    stage.puppets[0].succeed("a")
    stage.puppets[0].give_back("c", "b")
    stage.turn()

    assert stage.puppets[0].ids == ["b", "c"]


def test_what_only_waits_for_the_result_store_takes_no_slot_and_no_prefetch(stage: Stage) -> None:
    stage.deliver(*deliveries("short", "abc"))
    before = stage.allowed

    stage.puppets[0].tell_unstored(1)
    stage.turn()

    assert stage.puppets[0].ids == ["a", "b"]
    assert stage.allowed == before + 1
    assert stage.settlements == []


def test_an_executor_that_gives_back_while_the_result_store_is_away_is_not_left_idle(stage: Stage) -> None:
    """Cause: what waits for the store counted as the long task that keeps an executor from being given more."""
    stage.learn("short", 0.001)
    stage.deliver(*deliveries("short", "abc"))

    stage.puppets[0].tell_unstored(1)
    stage.puppets[0].give_back("c", "b")
    stage.turn()

    assert stage.puppets[0].ids == ["a", "b", "c"]


def test_an_executor_that_keeps_as_many_unstored_ends_as_it_may_gets_nothing_more(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: it was given what it took no longer, and that waited for the store though others were idle."""
    monkeypatch.setattr("kernel_worker.dispatcher.MAX_UNSTORED", 1)
    stage = make_stage(2)
    stage.deliver(*deliveries("long", "ab"))

    stage.puppets[0].tell_unstored(1)
    stage.puppets[1].succeed("b")
    stage.deliver(*deliveries("long", "cd"))
    held = [list(puppet.ids) for puppet in stage.puppets]
    stage.puppets[0].tell_unstored(0)
    stage.puppets[0].succeed("a")
    stage.turn()

    assert held == [["a"], ["c"]]
    assert stage.puppets[0].ids == ["d"]


def test_nonsense_about_what_is_unstored_is_bounded(stage: Stage) -> None:
    stage.deliver(*deliveries("short", "abc"))

    stage.puppets[0].channel.send(pack_json(Frame.UNSTORED, [stage.puppets[0].jobs[0][0], -5, *range(1000, 1099), "a"]))
    stage.turn()

    assert 1 <= len(stage.puppets[0].jobs) <= 2


def test_tags_reported_by_a_damaged_executor_are_ignored(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.deliver(*deliveries("short", "ab"))
    first, second = stage.puppets

    first._jobs.append((second.tag_of("b"), "b"))
    first.succeed("b")
    first._jobs.append((999, "none"))
    first.give_back("none")
    stage.turn()

    assert stage.settlements == []
    assert set(stage.dispatcher.in_flight) == {first.tag_of("a"), second.tag_of("b")}


# -- filters, policy, events


def test_a_filter_may_settle_a_request_before_it_runs(make_stage: MakeStage) -> None:
    def revoked(request: Request) -> Settlement | None:
        return Settlement(request.delivery, Verdict.ACK, "revoked") if request.id == "r" else None

    stage = make_stage(filters=[lambda request: None, revoked])

    stage.deliver(delivery(task_id="r"), delivery(task_id="a"))

    assert stage.verdicts() == [("r", Verdict.ACK)]
    assert stage.puppets[0].ids == ["a"]


def test_a_filter_that_raises_admits_and_loses_no_message_of_the_batch(make_stage: MakeStage) -> None:
    """Cause: the exception ended the loop over the batch: all deliveries behind it stayed reserved for ever."""

    def broken(request: Request) -> Settlement | None:
        if request.id == "b":
            raise KeyError("a bug")
        return None

    stage = make_stage(filters=[broken])

    stage.deliver(*deliveries("short", "abc"))

    assert stage.puppets[0].ids == ["a"]
    assert [request.id for request in stage.dispatcher.ready] == ["b", "c"]


def test_a_policy_of_a_plugin_decides_instead_of_the_kernels(make_stage: MakeStage) -> None:
    stage = make_stage(policy=lambda request, outcome: Settlement(request.delivery, Verdict.DEAD, outcome.error))

    stage.deliver(delivery())
    stage.puppets[0].end("a", OutcomeKind.FAILURE, "ValueError")
    stage.turn()

    assert [(each.verdict, each.reason) for each in stage.settlements] == [(Verdict.DEAD, "ValueError")]


@pytest.mark.parametrize("kind", [OutcomeKind.SUCCESS, OutcomeKind.FAILURE], ids=lambda kind: kind.name.lower())
def test_a_policy_that_raises_leaves_the_decision_to_the_kernels(make_stage: MakeStage, kind: OutcomeKind) -> None:
    """Cause: the exception ended the handling of the report when the request had been taken out: its delivery was never
    settled, and those reported with it neither."""

    def broken(request: Request, outcome: object) -> Settlement:
        raise KeyError("a plugin's bug")

    stage = make_stage(policy=broken)
    stage.deliver(delivery())

    if kind is OutcomeKind.SUCCESS:
        stage.puppets[0].succeed("a")
    else:
        stage.puppets[0].end("a", kind)
    stage.turn()

    assert stage.verdicts() == [("a", Verdict.ACK)]


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        (OutcomeKind.FAILURE, "FAILED"),
        (OutcomeKind.RETRY, "RETRIED"),
        (OutcomeKind.REJECT, "REJECTED"),
        (OutcomeKind.REVOKED, "REVOKED"),
        (OutcomeKind.EXPIRED, "EXPIRED"),
        (OutcomeKind.INVALID, "DEAD"),
        (OutcomeKind.SUCCESS, "SUCCEEDED"),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, OutcomeKind) else "",
)
def test_subscribers_hear_of_each_stage_once(stage: Stage, kind: OutcomeKind, event: str) -> None:
    heard = told(stage, list(Kind))

    stage.deliver(delivery())
    if kind is OutcomeKind.SUCCESS:
        stage.puppets[0].succeed("a")
    else:
        stage.puppets[0].end("a", kind)
    stage.turn()

    assert heard == [("RECEIVED", "a", ""), ("STARTED", "a", ""), (event, "a", kind.name)]


def test_a_turns_settlements_go_out_together(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    batches: list[list[Settlement]] = []
    stage.dispatcher.settle_batch = batches.append
    stage.deliver(*deliveries("short", "ab"))

    stage.puppets[0].succeed("a")
    stage.puppets[1].succeed("b")
    stage.turn()

    assert [len(batch) for batch in batches] == [2]


def test_frames_of_other_kinds_change_nothing(stage: Stage) -> None:
    stage.deliver(delivery())

    stage.puppets[0].channel.send(b"\0\0\0\0" + bytes([Frame.RECALL]))
    stage.turn()

    assert stage.puppets[0].ids == ["a"]
