"""A message that takes its whole worker with it: it starts three times in all, and what was beside it is not blamed."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name

NEIGHBOURS = 100
SETTLED_WITHIN_S = 1.0
"""After its end a run is acknowledged within this time, on a machine that others use, too. Less than what is left of a
lease when a worker that was started again has run the neighbours: else every second run would have its reason."""
DIES_WITHIN_S = 0.5
"""From the start of the poison to the end of what is beside it."""
POOLS = {"prefork": ("-P", "prefork", "-c", "2"), "solo": ("-P", "solo")}
LAST_LOSS = "Worker exited prematurely: the worker that held it is gone (delivery 3 of at most 3)"

Restarted = Callable[..., None]


@pytest.fixture
def restarted(kw: RunKw) -> Iterator[Restarted]:
    """`restarted(*options, deaths=n, until=condition)`: a worker that is started again whenever it has ended."""
    workers: list[WorkerProcess] = []

    def run(*options: str, deaths: int, until: Callable[[], object]) -> None:
        def turn() -> bool:
            if not workers or workers[-1].exit_code is not None:
                workers.append(kw(*options, ready=False))
            time.sleep(0.05)
            return bool(until())

        eventually(turn, within_s=45, message="the end of all tasks")
        assert workers[-1].wait_until_ready().stop() == 0
        assert deaths <= len(workers) <= deaths + 1, "a start for each death, and the last one"

    yield run
    for worker in workers:
        worker.kill()


def reasons_of_the_dead(kw: RunKw, broker: str) -> list[str]:
    letters = kw("dead", "ls", "-b", broker, "--json", ready=False)
    letters.wait()
    return [letter["reason"] for letter in json.loads(letters.output)]


def check_poison(
    broker: str, results: str, pool: str, kw: RunKw, ledger: Ledger, restarted: Restarted, moving: int = 0
) -> None:
    """Send it among its neighbours; what becomes of all of them.

    :param moving: neighbours that may be there twice.
    """
    options = (*OPTIONS, "-b", broker, "--result-backend", results, *POOLS[pool])
    key, neighbours = name(), [name() for _ in range(NEIGHBOURS)]
    with client(broker, results) as app:
        for each in neighbours[: NEIGHBOURS // 2]:
            app.send_task(f"{MODULE}.work", [each, 0.002])
        poison = app.send_task(f"{MODULE}.poison", [key])
        for each in neighbours[NEIGHBOURS // 2 :]:
            app.send_task(f"{MODULE}.work", [each, 0.002])

        restarted(
            *options,
            deaths=3,
            until=lambda: (
                {each["id"] for each in ledger.entries("end")} >= set(neighbours) and poison.state == "FAILURE"
            ),
        )
        error = poison.get(timeout=20, propagate=False)

    assert ledger.count("start", id=key) == 3
    assert type(error).__name__ == "WorkerLostError"
    assert reasons_of_the_dead(kw, broker) == [LAST_LOSS]
    ended = [entry["id"] for entry in ledger.entries("end")]
    assert sorted(set(ended)) == sorted(neighbours), "none of them is lost, and none is dead"
    kills = [entry["at"] for entry in ledger.entries("start", id=key)]
    repeated = _repeated_without_a_reason(ledger, kills)
    assert len(repeated) <= moving, repeated


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pool", POOLS)
def test_poison_starts_three_times_and_its_neighbours_end_once_each(
    url: str, folder: Path, kw: RunKw, ledger: Ledger, restarted: Restarted, pool: str
) -> None:
    """Cause: a delivery was counted for everything a killed worker held, so innocents died of other messages' deeds;
    what only the kills of workers had counted was run all the same, so the poison never ended."""
    check_poison(url, url, pool, kw, ledger, restarted)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pool", ["prefork", pytest.param("solo", marks=pytest.mark.faults)])
def test_poison_on_rabbitmq_starts_three_times_and_its_neighbours_end_once_each(
    amqp_url: str, redis_url: str, folder: Path, kw: RunKw, ledger: Ledger, restarted: Restarted, pool: str
) -> None:
    """What goes back to be counted in the second slot, at the moment of a kill, may be there twice."""
    check_poison(amqp_url, redis_url, pool, kw, ledger, restarted, moving=3 if pool == "prefork" else 0)


def check_alternating(broker: str, results: str, deeds: str, kw: RunKw, ledger: Ledger, restarted: Restarted) -> None:
    """A fourth start would end the executor; it must not happen."""
    key = name()
    with client(broker, results) as app:
        poison = app.send_task(f"{MODULE}.alternate", [key, deeds])
        options = (*OPTIONS, "-b", broker, "--result-backend", results, "-c", "1")
        restarted(*options, deaths=deeds.count("W"), until=lambda: poison.state == "FAILURE")
        error = poison.get(timeout=20, propagate=False)
    (reason,) = reasons_of_the_dead(kw, broker)

    assert ledger.count("start", id=key) == 3
    assert type(error).__name__ == "WorkerLostError"
    assert "(delivery 3 of at most 3)" in reason


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "deeds", ["WEE", *(pytest.param(each, marks=pytest.mark.faults) for each in ("EWE", "WEW", "EEW", "EWW", "WWE"))]
)
def test_message_that_ends_workers_and_executors_in_turn_starts_three_times(
    url: str, folder: Path, kw: RunKw, ledger: Ledger, restarted: Restarted, deeds: str
) -> None:
    """Cause: where the loss of a worker and then that of an executor had to be counted, only one of them was: four starts."""
    check_alternating(url, url, deeds, kw, ledger, restarted)


@pytest.mark.faults
@pytest.mark.parametrize("deeds", ["WEE", "EWE", "WEW", "EEW"])
def test_the_same_in_turn_on_rabbitmq(
    amqp_url: str, redis_url: str, folder: Path, kw: RunKw, ledger: Ledger, restarted: Restarted, deeds: str
) -> None:
    check_alternating(amqp_url, redis_url, deeds, kw, ledger, restarted)


def _repeated_without_a_reason(ledger: Ledger, kills: list[float]) -> list[tuple[str, list[float]]]:
    """Neighbours that ran twice, though their end was not in the moments before a kill: all others were acknowledged by
    then, or only held, and run once. With the seconds from their end to each kill."""
    ends: dict[str, list[float]] = defaultdict(list)
    for entry in ledger.entries("end"):
        ends[entry["id"]].append(entry["at"])
    earlier = [(key, at) for key, times in ends.items() for at in times[:-1]]
    gaps = [(key, [kill - at for kill in kills]) for key, at in earlier]
    return [(key, each) for key, each in gaps if not any(-DIES_WITHIN_S < gap < SETTLED_WITHIN_S for gap in each)]
