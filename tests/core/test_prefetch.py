"""How much the dispatcher asks for: enough for the measured rate, never more, and what is too much goes back."""

from __future__ import annotations

import pytest

from kernel_worker.prefetch import MAX_HELD, Prefetch
from kernel_worker.types import Verdict

from .puppet import Clock, MakeStage, Stage, deliveries, delivery


@pytest.fixture
def make_stage(clock: Clock, make_stage: MakeStage) -> MakeStage:
    """All of them by the test's clock."""
    return make_stage


def _run(stage: Stage, clock: Clock, count: int, per_s: float) -> None:
    """Have so many short requests done at that rate."""
    for number in range(count):
        stage.deliver(delivery(task_id=f"run {number}"))
        puppet = next(puppet for puppet in stage.puppets if puppet.jobs)
        clock.now += 1 / per_s
        puppet.succeed(*puppet.ids, runtime=0.0005)
        stage.turn()


def room(stage: Stage) -> int:
    """How many more deliveries may be fetched now."""
    return stage.allowed - stage.dispatcher._received


def test_nothing_is_fetched_before_an_executor_is_up(make_stage: MakeStage) -> None:
    stage = make_stage(2, up=False)
    stage.turn()

    assert stage.allowed == 0


def test_an_idle_worker_asks_for_its_slots_and_a_little_more(make_stage: MakeStage) -> None:
    stage = make_stage(2)

    assert room(stage) == 4


@pytest.mark.parametrize(
    ("slots", "multiplier", "expected"), [(2, 1, 2), (4, 1, 4), (4, 2, 8), (4, 10, 8), (4, 0, 8), (4, None, 8)]
)
def test_the_multiplier_is_an_upper_bound_and_0_is_none(
    make_stage: MakeStage, slots: int, multiplier: int | None, expected: int
) -> None:
    stage = make_stage(slots, multiplier=multiplier)

    assert room(stage) == expected


def test_what_is_held_is_not_asked_for_again(make_stage: MakeStage) -> None:
    stage = make_stage(2)

    stage.deliver(*deliveries("short", "abc"))
    with_three = room(stage)
    stage.puppets[0].succeed("a")
    stage.turn()

    assert with_three == 1
    assert room(stage) == 2


def test_a_high_rate_asks_for_what_a_tenth_of_a_second_takes(make_stage: MakeStage, clock: Clock) -> None:
    stage = make_stage(2)

    _run(stage, clock, 210, per_s=2000)

    assert 150 <= room(stage) <= 210


def test_of_slower_tasks_more_is_held_while_the_queues_have_more_than_is_asked_for(
    make_stage: MakeStage, clock: Clock
) -> None:
    stage = make_stage(2)

    def held_with(more: bool) -> int:
        stage.deliver(delivery(), more=more)
        return room(stage) + 1

    _run(stage, clock, 210, per_s=200)

    assert [held_with(more) // 10 for more in (False, True, False)] == [5, 10, 5]


def test_the_multiplier_bounds_a_high_rate_too(make_stage: MakeStage, clock: Clock) -> None:
    stage = make_stage(2, multiplier=4)

    _run(stage, clock, 210, per_s=2000)

    assert room(stage) == 8


def test_no_rate_makes_the_worker_hold_more_than_the_limit(make_stage: MakeStage, clock: Clock) -> None:
    stage = make_stage(2)

    _run(stage, clock, 210, per_s=10_000_000)

    assert room(stage) <= MAX_HELD + 2


def test_an_idle_slot_is_worth_a_round_trip(make_stage: MakeStage) -> None:
    """Cause: a fetch was worth it only for a quarter of the limit. With a multiplier of 1 and 8 slots, one slot stayed
    idle beside waiting messages for as long as the other seven ran."""
    for slots, multiplier in ((8, 1), (32, None), (100, 1)):
        stage = make_stage(slots, multiplier=multiplier)
        stage.deliver(*deliveries("short", range(slots - 1)))

        total, batch = stage.allowances[-1]

        assert total - stage.dispatcher._received >= batch, f"{slots} slots, multiplier {multiplier}"


def test_a_busy_worker_asks_for_batches(make_stage: MakeStage, clock: Clock) -> None:
    stage = make_stage(2)

    _run(stage, clock, 210, per_s=4000)

    assert stage.allowances[-1][1] > 50


def test_closing_stops_the_fetching_at_what_was_received(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    stage.deliver(*deliveries("short", "abc"))

    stage.dispatcher.close()
    stage.turn()

    assert room(stage) <= 0


def test_the_total_that_is_allowed_never_falls_below_what_was_allowed_and_fetched(make_stage: MakeStage) -> None:
    stage = make_stage(2)

    for number in range(20):
        stage.deliver(delivery(task_id=str(number)))
        next(puppet for puppet in stage.puppets if puppet.jobs).succeed(str(number))
        stage.turn()

    totals = [total for total, _ in stage.allowances]
    assert totals == sorted(totals)


def _become_slow(stage: Stage, clock: Clock, ticks: int = 12) -> None:
    for _ in range(ticks):
        clock.now += 0.11
        stage.turn()


def test_what_became_too_much_goes_back_youngest_first(make_stage: MakeStage, clock: Clock) -> None:
    stage = make_stage(1)
    _run(stage, clock, 210, per_s=2000)
    stage.settlements.clear()
    stage.deliver(*deliveries("long", range(100)))

    _become_slow(stage, clock)

    returned = [task_id for task_id, verdict in stage.verdicts() if verdict is Verdict.REQUEUE]
    assert returned == [str(number) for number in range(99, 99 - len(returned), -1)]
    assert len(returned) > 90
    assert stage.puppets[0].ids == ["0"]


def test_a_rate_that_only_dips_gives_nothing_back(make_stage: MakeStage, clock: Clock) -> None:
    stage = make_stage(1)
    _run(stage, clock, 210, per_s=2000)
    stage.settlements.clear()

    stage.deliver(*deliveries("long", range(100)))
    _become_slow(stage, clock, ticks=1)

    assert stage.settlements == []


def test_what_is_acked_or_concluded_is_never_given_back(make_stage: MakeStage, clock: Clock) -> None:
    stage = make_stage(1)
    stage.deliver(delivery("long", "runs"), *deliveries("no.such", range(50)))

    _become_slow(stage, clock)

    assert all(verdict is not Verdict.REQUEUE for _, verdict in stage.verdicts())


def test_behind_long_tasks_nothing_waits_that_another_worker_could_run(make_stage: MakeStage, clock: Clock) -> None:
    """Cause: a few requests more than slots were held whatever the tasks' length, so one that stood behind an
    hour's task waited for that hour while other workers had nothing to do."""
    stage = make_stage(2)
    stage.deliver(*deliveries("long", "abcd"))

    _become_slow(stage, clock)

    assert stage.verdicts() == [("d", Verdict.REQUEUE), ("c", Verdict.REQUEUE)]
    assert room(stage) == 0


def test_a_burst_after_an_idle_time_is_not_taken_for_too_much(make_stage: MakeStage, clock: Clock) -> None:
    """Cause: the idle time counted as time in which no task ended."""
    stage = make_stage(4)
    stage.learn("short", 0.001)
    clock.now += 0.7

    stage.deliver(*deliveries("long", range(8)))

    assert stage.settlements == []
    assert [len(puppet.jobs) for puppet in stage.puppets] == [1, 1, 1, 1]


def test_after_a_long_task_the_free_slot_is_filled_and_a_later_burst_is_asked_for_in_full(
    make_stage: MakeStage, clock: Clock
) -> None:
    stage = make_stage(2)
    stage.deliver(*deliveries("long", "abcd"))
    _become_slow(stage, clock)

    stage.puppets[0].succeed("a", runtime=1.3)
    stage.turn()
    after_one = room(stage)
    stage.deliver(delivery("long", "e"))
    given = stage.puppets[0].ids
    stage.puppets[0].succeed("e")
    stage.puppets[1].succeed("b")
    _become_slow(stage, clock, ticks=30)
    stage.deliver(delivery("short", "f"))

    assert after_one == 1
    assert given == ["e"]
    assert room(stage) == 3


def test_an_idle_worker_stops_measuring(make_stage: MakeStage, clock: Clock) -> None:
    """A worker that does nothing wakes up for nothing."""
    stage = make_stage(1)
    stage.deliver(delivery())
    stage.puppets[0].succeed("a")

    _become_slow(stage, clock, ticks=30)

    assert stage.loop._timers == []


@pytest.mark.parametrize("is_idle", [False, True])
def test_idle_slot_shows_that_the_queues_have_no_more(is_idle: bool) -> None:
    prefetch = Prefetch()
    prefetch.more = True

    prefetch.tick(2, 10, is_idle)

    assert prefetch.more is not is_idle
