"""Options of a call, from each client to each worker."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from kernel_worker.testing import Ledger, WorkerProcess, eventually

from . import clients
from .conftest import CELERY, KW, Pair
from .peers import CeleryWorker, ClientProcess, start_kw

DELAY_S = 0.6

COMPRESSIONS = {
    # alias: module that Celery and we need for it
    "gzip": "zlib",
    "zlib": "zlib",
    "bzip2": "bz2",
    "lzma": "lzma",
    "xz": "lzma",
    "brotli": "brotli",
    "zstd": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
}


@pytest.mark.parametrize("alias", COMPRESSIONS)
def test_compressed_arguments_arrive(pair: Pair, alias: str) -> None:
    pytest.importorskip(COMPRESSIONS[alias])
    text = "again and again " * 20000

    assert pair.call("mirror", [text], compression=alias).value[0] == [text]


def test_protocol_1_is_understood(pair: Pair) -> None:
    answer = pair.call("about", 1, kwargs={"x": 2}, settings={"task_protocol": 1})

    assert (answer.value["id"], answer.value["args"], answer.value["kwargs"]) == (answer.id, [1], {"x": 2})


def test_protocol_1_waits_for_its_time(pair: Pair) -> None:
    sent_at = time.time()

    answer = pair.call("now", settings={"task_protocol": 1}, countdown=DELAY_S)

    assert answer.value >= sent_at + DELAY_S


def test_what_describes_a_call_reaches_the_task(pair: Pair) -> None:
    answer = pair.call(
        "about", headers={"tenant": "acme"}, shadow="dark", time_limit=30, soft_time_limit=20, priority=6
    )

    about = answer.value
    assert (about["id"], about["correlation_id"], about["root_id"]) == (answer.id, answer.id, answer.id)
    assert (about["tenant"], about["shadow"]) == ("acme", "dark")
    assert about["timelimit"] == [30, 20]
    assert about["parent_id"] is None
    assert about["delivery_info"] == {
        "exchange": "",
        "routing_key": pair.queue,
        "priority": 6,
        "redelivered": False,
    }


def test_id_is_chosen_by_the_caller(pair: Pair) -> None:
    task_id = f"chosen ☃ {time.time()}"

    assert pair.call("about", task_id=task_id).value["id"] == task_id


def test_stamps_reach_the_task(pair: Pair) -> None:
    about = pair.call("about", stamped_headers=["colour"], colour="red").value

    assert (about["stamped_headers"], about["stamps"]) == (["colour"], {"colour": "red"})


def test_ignored_result_is_not_stored(pair: Pair, ledger: Ledger) -> None:
    answer = pair.call("note", str(ledger.path), "ran", ignore_result=True)

    eventually(lambda: ledger.count("start"), within_s=10)
    assert answer.value is None
    pair.call("add", 1)  # both executors or the pool's results have moved on
    assert pair.do(clients.look, answer.id, "state") == ["PENDING"]


# --------------------------------------------------------------------------- time

LATER = {
    "countdown": lambda: {"countdown": DELAY_S},
    "eta": lambda: {"eta": datetime.now(UTC) + timedelta(seconds=DELAY_S)},
    "eta of another zone": lambda: {"eta": datetime.now(timezone(timedelta(hours=-7))) + timedelta(seconds=DELAY_S)},
    "countdown and expires after it": lambda: {"countdown": DELAY_S, "expires": 60},
}


@pytest.mark.parametrize("options", LATER.values(), ids=LATER.keys())
def test_task_does_not_start_before_its_time(pair: Pair, options: Any) -> None:
    sent_at = time.time()

    answer = pair.call("now", **options())

    assert sent_at + DELAY_S <= answer.value < sent_at + DELAY_S + 5


AT_ONCE = {
    "countdown of nothing": {"countdown": 0},
    "eta in the past": {"eta": datetime(2020, 1, 1, tzinfo=UTC)},
    "expires later": {"expires": 60},
    "expires at a time": {"expires": datetime(2100, 1, 1, tzinfo=UTC)},
}


@pytest.mark.parametrize("options", AT_ONCE.values(), ids=AT_ONCE.keys())
def test_task_starts_at_once(pair: Pair, options: Any) -> None:
    assert pair.call("add", 1, **options).value == 1


EXPIRED = {
    "before it was sent": lambda: {"expires": -5},
    "at a time that is over": lambda: {"expires": datetime.now(UTC) - timedelta(days=1)},
    "before its countdown is over": lambda: {"expires": 0.3, "countdown": DELAY_S},
}


@pytest.mark.parametrize("options", EXPIRED.values(), ids=EXPIRED.keys())
def test_expired_task_is_revoked_and_does_not_run(pair: Pair, ledger: Ledger, options: Any) -> None:
    answer = pair.call("note", str(ledger.path), "ran", **options())

    home = "celery" if pair.client_kind == CELERY else "kernel_app"
    assert (answer.state, answer.error) == ("REVOKED", f"{home}.exceptions.TaskRevokedError")
    assert answer.args == ("expired",)
    assert ledger.count() == 0


# --------------------------------------------------------------------------- queues


def test_topic_exchange_delivers_by_the_bindings_of_the_worker(pair: Pair) -> None:
    exchange = f"{pair.queue}.topics"

    ids = pair.do(clients.through_topic, exchange, ["news.eu", "news.eu.fr"], "compat.about", [(1,), (2,)])

    about = [answer.value for answer in pair.do(clients.wait_many, ids)]
    assert [each["args"] for each in about] == [[1], [2]]
    assert [each["delivery_info"]["routing_key"] for each in about] == ["news.eu", "news.eu.fr"]
    assert about[0]["delivery_info"]["exchange"] == exchange


def test_named_exchange_and_key_reach_the_queue(pair: Pair) -> None:
    answer = pair.client.do(clients.call, "compat.add", (1, 2), exchange=pair.queue, routing_key=pair.queue)

    assert answer.value == 3


WorkerOfKind = WorkerProcess | CeleryWorker


def start_one_slot(kind: str, folder: Path, url: str, queue: str, settings: dict[str, Any]) -> WorkerOfKind:
    """A worker that runs one task after the other."""
    if kind == KW:
        return start_kw(folder, url, queue, "-c", "1", settings=settings)
    return CeleryWorker(folder, url, queue, "-c", "1", settings=settings)


@pytest.mark.parametrize("kind", [KW, CELERY])
def test_one_slot_takes_what_waits_by_priority_and_describes_it_in_full(
    kind: str, clients_of: dict[str, ClientProcess], url: str, tmp_path: Path, ledger: Ledger
) -> None:
    """One worker start for both; the results are compressed and extended."""
    queue = f"one-slot-{kind}"
    ids: dict[Any, str] = {}
    for priority in (9, 3, 0, 6, 4):
        for sender, client in clients_of.items():
            label = [priority, sender]
            args = (str(ledger.path), label)
            ids[priority, sender] = client.do(clients.send, "compat.note", args, queue=queue, priority=priority)

    worker = start_one_slot(kind, tmp_path, url, queue, {"result_extended": True, "result_compression": "gzip"})
    try:
        eventually(lambda: ledger.count("start") == 10, within_s=20, message=lambda: f"{ledger.entries()}")
        node = ledger.entries("start")[0]["node"]
        for (priority, sender), task_id in ids.items():
            reader = clients_of[CELERY if sender == KW else KW]  # read by the one who did not send it
            assert reader.do(clients.wait, task_id).value == [priority, sender]
            seen = reader.do(clients.look, task_id, "name", "args", "kwargs", "worker", "retries", "queue")
            assert seen == ["compat.note", [str(ledger.path), [priority, sender]], {}, node, 0, queue]
    finally:
        worker.kill()

    order = [tuple(entry["label"]) for entry in ledger.entries("start")]
    senders = list(clients_of)
    # 4 is rounded down to the step of 3, and was sent later
    assert order == [(priority, sender) for priority in (0, 3, 4, 6, 9) for sender in senders]
