"""Rate limits as arithmetic, on a clock of the test's own: how many start, when the rest is to come back."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from kernel_limits.rates import KNOWN, NEAR_S, RateLimit, parse_rate

START = 1_800_000_000.0


def play(
    limit: RateLimit, arrivals: dict[str, float], *, until: float, late_s: float = 0.002
) -> tuple[list[tuple[float, str]], int]:
    """Let messages arrive and come back at the times they are told, each `late_s` later than it could.

    :return: what started, with times, and how often a message was asked about.
    """
    order = itertools.count()
    events = [(at, next(order), message_id) for message_id, at in arrivals.items()]
    heapq.heapify(events)
    started: list[tuple[float, str]] = []
    asked = 0
    while events and events[0][0] <= until:
        now, _, message_id = heapq.heappop(events)
        asked += 1
        again = limit.admit(message_id, now)
        if again:
            heapq.heappush(events, (max(again, now) + late_s, next(order), message_id))
        else:
            started.append((now, message_id))
    return started, asked


def flood(count: int, at: float = START) -> dict[str, float]:
    return {f"m{number}": at for number in range(count)}


@pytest.mark.parametrize(
    ("text", "per_second"),
    [
        ("10/s", 10.0),
        ("200/m", 200 / 60),
        ("5/h", 5 / 3600),
        ("1.5/s", 1.5),
        (" 3 / M ", 0.05),
        ("7", 7.0),
        (7, 7.0),
        (0.5, 0.5),
        (0, 0.0),
        ("0", 0.0),
        ("0/m", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_rate_is_read_as_celery_writes_it(text: object, per_second: float) -> None:
    assert parse_rate(text) == pytest.approx(per_second)


@pytest.mark.parametrize(
    "text", ["fast", "10/q", "-1/s", "10/", "/s", "1e3/s", [], True, "10/s/s", "nan", "9" * 5 + "x"]
)
def test_what_is_no_rate_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="10/s, 200/m or 5/h"):
        parse_rate(text)


def test_first_run_starts_at_once_and_the_next_gets_a_time_of_its_own() -> None:
    limit = RateLimit(10.0)

    times = [limit.admit(f"m{number}", START) for number in range(4)]

    assert times == [0.0, *(pytest.approx(START + each) for each in (0.1, 0.2, 0.3))]


@pytest.mark.parametrize("rate", [0.5, 5.0, 50.0, 400.0])
def test_flood_runs_at_the_rate(rate: float) -> None:
    seconds = 20.0

    started, _ = play(RateLimit(rate), flood(int(rate * seconds * 2) + 5), until=START + seconds)

    assert len(started) == pytest.approx(rate * seconds, rel=0.03, abs=1.5)


def test_no_second_has_more_than_the_rate_and_what_was_missed() -> None:
    started, _ = play(RateLimit(50.0), flood(1000), until=START + 15, late_s=0.03)

    worst = max(sum(1 for at, _ in started if begin <= at < begin + 1.0) for begin in (at for at, _ in started))

    assert worst <= 55


def test_messages_run_in_the_order_they_came() -> None:
    started, _ = play(RateLimit(50.0), flood(200), until=START + 10)

    assert [message_id for _, message_id in started] == [f"m{number}" for number in range(200)]


def test_a_message_that_comes_back_at_its_time_is_let_through_whatever_else_arrives() -> None:
    limit = RateLimit(10.0)
    arrivals = flood(50) | {f"new{number}": START + 0.013 * number for number in range(300)}

    started, _ = play(limit, arrivals, until=START + 4.95, late_s=0.005)

    assert [message_id for _, message_id in started] == [f"m{number}" for number in range(50)]


def test_each_message_of_the_near_future_is_asked_about_twice() -> None:
    count = int(50 * NEAR_S) - 10

    started, asked = play(RateLimit(50.0), flood(count), until=START + NEAR_S + 1)

    assert len(started) == count
    assert asked == 2 * count - 1


def test_long_line_costs_a_bounded_number_of_looks_and_no_memory() -> None:
    limit = RateLimit(5.0, jitter=random.Random(7).random)

    started, asked = play(limit, flood(30_000), until=START + 600)

    assert len(started) == pytest.approx(3000, rel=0.03)
    assert (asked - 30_000) / 600 < 220
    assert len(limit._given) <= KNOWN


def test_slow_rate_is_kept_although_its_messages_wait_for_hours() -> None:
    started, asked = play(RateLimit(5 / 3600), flood(20), until=START + 3 * 3600)

    assert len(started) == pytest.approx(15, abs=2)
    assert asked < 20 * 3 * 3600 / (NEAR_S / 2)


def test_nothing_is_saved_up_while_nobody_comes() -> None:
    limit = RateLimit(50.0)
    play(limit, flood(10), until=START + 5)

    started, _ = play(limit, {f"later{number}": START + 60 for number in range(500)}, until=START + 62)

    assert len(started) == pytest.approx(100, abs=3)


def test_messages_that_another_worker_took_leave_their_times_to_those_that_come_here() -> None:
    """Two workers on one queue: what one told to come back may be fetched by the other."""
    limits = [RateLimit(50.0), RateLimit(50.0)]
    chance = random.Random(3)
    order = itertools.count()
    events = [(START + 0.0001 * number, number, f"m{number}") for number in range(1200)]
    order = itertools.count(2000)
    heapq.heapify(events)
    started = 0
    while events and events[0][0] <= START + 8:
        now, _, message_id = heapq.heappop(events)
        again = chance.choice(limits).admit(message_id, now)
        if again:
            heapq.heappush(events, (max(again, now) + 0.002, next(order), message_id))
        else:
            started += 1

    assert started == pytest.approx(800, rel=0.05)


def test_broker_whose_clock_is_ahead_is_not_asked_without_end() -> None:
    """It gives everything back two seconds early."""
    limit, ahead_s = RateLimit(10.0), 2.0
    order = itertools.count()
    events = [(START, next(order), f"m{number}") for number in range(50)]
    asked = started = 0
    while events and events[0][0] <= START + 5:
        now, _, message_id = heapq.heappop(events)
        asked += 1
        again = limit.admit(message_id, now)
        if again:
            heapq.heappush(events, (max(again - ahead_s, now) + 0.002, next(order), message_id))
        else:
            started += 1

    assert started == pytest.approx(50, abs=3)
    assert asked < 500
