"""What `kw events` shows: states as Celery's receivers have them, bounded, whatever strangers send."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kernel_events import picture as module
from kernel_events.cli import line_of, lines_of
from kernel_events.picture import Picture

NOW = 1_800_000_000.0


def task(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"task-{kind}", "hostname": "w@h", "uuid": "id", "timestamp": NOW, "clock": 1, **fields}


def worker(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"worker-{kind}", "hostname": "w@h", "freq": 2.0, "active": 0, "processed": 3, **fields}


def state_after(*kinds: str) -> str:
    picture = Picture()
    for kind in kinds:
        picture.add(task(kind), NOW)
    return picture.tasks["id"].state


def test_states_do_not_depend_on_the_order_of_events() -> None:
    kinds = ("sent", "received", "started", "succeeded")

    assert {state_after(*order) for order in itertools.permutations(kinds)} == {"SUCCESS"}


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        (("received",), "RECEIVED"),
        (("received", "started"), "STARTED"),
        (("started", "received"), "STARTED"),
        (("started", "failed"), "FAILURE"),
        (("started", "retried"), "RETRY"),
        (("started", "retried", "received"), "RECEIVED"),
        (("received", "revoked"), "REVOKED"),
        (("started", "uploading"), "UPLOADING"),
        (("succeeded", "uploading"), "SUCCESS"),
        (("rejected",), "REJECTED"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else each,
)
def test_state_is_the_one_of_celerys_receivers(kinds: tuple[str, ...], state: str) -> None:
    from celery.events.state import State

    celery = State()
    for clock, kind in enumerate(kinds, 1):
        celery.event({**task(kind), "clock": clock, "local_received": NOW, "pid": 1, "utcoffset": 0})

    assert state_after(*kinds) == state == celery.tasks["id"].state


def test_late_received_fills_in_what_it_knows() -> None:
    picture = Picture()
    picture.add(task("succeeded", result="3"), NOW)

    picture.add(task("received", name="proj.add", args="(1, 2)"), NOW)

    assert picture.tasks["id"].facts["name"] == "proj.add"
    assert picture.tasks["id"].facts["result"] == "3"


def test_worker_is_online_until_two_heartbeats_are_missing() -> None:
    picture = Picture()
    picture.add(worker("heartbeat"), NOW)

    assert picture.workers["w@h"].is_online(NOW + 3.9)
    assert not picture.workers["w@h"].is_online(NOW + 4.1)


def test_worker_that_said_good_bye_is_offline_at_once() -> None:
    picture = Picture()
    picture.add(worker("online"), NOW)

    picture.add(worker("offline"), NOW)

    assert not picture.workers["w@h"].is_online(NOW)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TASKS", 10)
    monkeypatch.setattr(module, "WORKERS", 5)
    picture = Picture()

    for number in range(5000):
        picture.add(task("received", uuid=f"id{number}", hostname=f"w{number}@h"), NOW)
        picture.add({"type": f"task-x{number}", "hostname": "w@h"}, NOW)

    assert len(picture.tasks) == 10
    assert len(picture.workers) == 5
    assert len(picture.counts) <= 1001


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": 3, "hostname": "w"},
        {"type": "task-received", "hostname": None},
        {"type": "task-received", "hostname": "w", "uuid": 7, "timestamp": "soon"},
        {"type": "worker-heartbeat", "hostname": "w", "freq": "often", "loadavg": "high"},
        {"type": "worker-heartbeat", "hostname": "w\x1b[2J", "freq": -1, "loadavg": []},
        {"type": "task-\x1b]0;x\x07", "hostname": "w", "uuid": "\x1b[31m", "timestamp": 1e300, "name": "\x9b2J"},
    ],
    ids=repr,
)
def test_strange_events_neither_break_it_nor_reach_the_terminal(event: dict[str, Any]) -> None:
    picture = Picture()

    picture.add(event, NOW)
    shown = "\n".join([line_of(event), *lines_of(picture, NOW, 80)])

    assert all(char.isprintable() for line in shown.split("\n") for char in line)
    assert all(len(line) <= 80 for line in lines_of(picture, NOW, 80))
