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
SETTLED_WITHIN_S = 0.5
"""After its end a run is acknowledged within this time, on a machine that others use, too."""
DIES_WITHIN_S = 0.1
"""From the start of the poison to the end of what is beside it."""


@pytest.fixture
def restarted(kw: RunKw) -> Iterator[Callable[..., None]]:
    """`restarted(*options, until=condition)`: a worker that is started again whenever it has ended."""
    workers: list[WorkerProcess] = []

    def run(*options: str, until: Callable[[], object]) -> None:
        def turn() -> bool:
            if not workers or workers[-1].exit_code is not None:
                workers.append(kw(*options, ready=False))
            time.sleep(0.05)
            return bool(until())

        eventually(turn, within_s=45, message="the end of all tasks")
        assert workers[-1].wait_until_ready().stop() == 0
        assert 3 <= len(workers) <= 4, "a start for each death, and the last one"

    yield run
    for worker in workers:
        worker.kill()


@pytest.mark.parametrize("pool", [("-P", "solo"), ("-P", "prefork", "-c", "2")], ids=["solo", "prefork"])
def test_poison_starts_three_times_and_its_neighbours_end_once_each(
    url: str, folder: Path, kw: RunKw, ledger: Ledger, restarted: Callable[..., None], pool: tuple[str, ...]
) -> None:
    """Cause: a delivery was counted for everything a killed worker held, so innocents died of other messages' deeds;
    what only the kills of workers had counted was run all the same, so the poison never ended."""
    options = (*OPTIONS, "-b", url, "--result-backend", url, *pool)
    key, neighbours = name(), [name() for _ in range(NEIGHBOURS)]
    with client(url) as app:
        for each in neighbours[: NEIGHBOURS // 2]:
            app.send_task(f"{MODULE}.work", [each, 0.002])
        poison = app.send_task(f"{MODULE}.poison", [key])
        for each in neighbours[NEIGHBOURS // 2 :]:
            app.send_task(f"{MODULE}.work", [each, 0.002])

        restarted(
            *options,
            until=lambda: (
                {each["id"] for each in ledger.entries("end")} >= set(neighbours) and poison.state == "FAILURE"
            ),
        )
        error = poison.get(timeout=20, propagate=False)
    letters = kw("dead", "ls", "-b", url, "--json", ready=False)
    letters.wait()

    assert ledger.count("start", id=key) == 3
    assert type(error).__name__ == "WorkerLostError"
    assert [letter["reason"] for letter in json.loads(letters.output)] == [
        "Worker exited prematurely: the worker that held it is gone (delivery 3 of at most 3)"
    ]
    ended = [entry["id"] for entry in ledger.entries("end")]
    assert sorted(set(ended)) == sorted(neighbours), "none of them is lost, and none is dead"
    kills = [entry["at"] for entry in ledger.entries("start", id=key)]
    assert _repeated_without_a_reason(ledger, kills) == []


def _repeated_without_a_reason(ledger: Ledger, kills: list[float]) -> list[str]:
    """Neighbours that ran twice, though their end was not in the moments before a kill: all others were acknowledged by
    then, or only held, and run once."""
    ends: dict[str, list[float]] = defaultdict(list)
    for entry in ledger.entries("end"):
        ends[entry["id"]].append(entry["at"])
    earlier = [(key, at) for key, times in ends.items() for at in times[:-1]]
    return [key for key, at in earlier if not any(-DIES_WITHIN_S < kill - at < SETTLED_WITHIN_S for kill in kills)]
