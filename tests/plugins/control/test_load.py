"""What control does not disturb: consumption, when it is flooded or cut off; and the other way round."""

from __future__ import annotations

import json
import statistics
import threading
import time
import uuid
from typing import Any

import pytest
import redis

from kernel_broker_redis.mailbox import RedisMailbox
from kernel_worker.testing import eventually

from .conftest import Site

BUSY = "too many commands"


def flood(url: str, count: int, per_s: float = 0.0) -> list[Any]:
    """Send so many commands of all kinds, as fast as possible or so many in a second; the replies."""
    mailbox = RedisMailbox(url, {})
    box = str(uuid.uuid4())
    mailbox.expect(box)
    kinds: list[tuple[Any, Any]] = [
        ("ping", {}),
        ("nosuch", {}),
        ("stats", {"x": 1}),
        ("time_limit", {}),
        ("active", {"safe": "yes"}),
        (None, []),
        ("query_task", {"ids": ["x" * 1000]}),
    ]
    began = time.monotonic()
    for number in range(count):
        method, arguments = kinds[number % len(kinds)]
        if number % 700 == 0:
            method, arguments = "query_task", {"ids": ["x" * 2 * 1024 * 1024]}
        reply_to = {"exchange": "reply.celery.pidbox", "routing_key": box}
        body = {"method": method, "arguments": arguments, "destination": None, "ticket": "t", "reply_to": reply_to}
        mailbox.broadcast({"clock": 2**70}, json.dumps(body).encode())
        if per_s:
            time.sleep(max(0.0, began + number / per_s - time.monotonic()))
    found: list[Any] = []
    while letters := mailbox.receive(1.0):
        found += [next(iter(json.loads(body).values())) for _, _, body in letters]
    mailbox.close()
    return found


def flooded(site: Site, count: int, per_s: float = 0.0) -> tuple[list[Any], list[float]]:
    """The replies of a flood, and how long each of the tasks took that were sent one after the other meanwhile."""
    replies: list[Any] = []
    thread = threading.Thread(target=lambda: replies.extend(flood(site.broker, count, per_s)))
    thread.start()
    took = [latency(site)]
    while thread.is_alive():
        took.append(latency(site))
    thread.join()
    return replies, took


def latency(site: Site) -> float:
    """Seconds from sending a task to its result."""
    began = time.monotonic()
    assert site.send("add", 1, 2).get(timeout=10) == 3
    return time.monotonic() - began


def assert_clear(replies: list[Any]) -> None:
    """What is wrong is told with each kind of mistake, and the others are answered."""
    errors = {each["error"] for each in replies if isinstance(each, dict) and "error" in each}
    assert {"ok": "pong"} in replies
    for words in (
        "unknown command 'nosuch'",
        "stats has no argument 'x'",
        "time_limit needs the argument 'task_name'",
        "active: safe must be bool, not str",
        "a command has a method",
        "bytes, at most 1048576 are read",
    ):
        assert any(words in each for each in errors), words


def test_a_flood_of_commands_is_answered_or_refused_and_tasks_go_on(own_site: Site) -> None:
    worker = own_site.start("-c", "1")

    replies, took = flooded(own_site, 1500)

    assert_clear(replies)
    assert len(took) > 1
    assert worker.exit_code is None
    eventually(lambda: own_site.ask("ping", timeout=2) == {"ok": "pong"}, within_s=10)
    assert own_site.ask("clock")["clock"] < 2**54
    assert "Traceback" not in worker.output


@pytest.mark.faults
def test_a_thousand_commands_a_second_hardly_move_the_latency_of_tasks(own_site: Site) -> None:
    worker = own_site.start("-c", "1")
    quiet = statistics.median(latency(own_site) for _ in range(100))

    replies, took = flooded(own_site, 5000, per_s=1000)

    busy = statistics.median(took)
    refused = sum(1 for each in replies if isinstance(each, dict) and BUSY in str(each.get("error")))
    print(f"latency {1e3 * quiet:.1f} ms, under the flood {1e3 * busy:.1f} ms, at most {1e3 * max(took):.0f} ms")
    print(f"of 5000 commands {len(replies)} were answered, {refused} of them with a refusal")
    assert_clear(replies)
    assert busy < quiet + 0.05
    assert worker.exit_code is None
    assert "Traceback" not in worker.output


def control_connections(url: str) -> set[str]:
    """Ids of the workers' control connections."""
    with redis.Redis.from_url(url) as client:
        return {each["id"] for each in client.client_list() if each["name"] == "kw:control"}


def test_a_lost_control_connection_comes_back_and_consumption_never_notices(own_site: Site) -> None:
    worker = own_site.start("-c", "1")
    [first] = control_connections(own_site.broker)

    with redis.Redis.from_url(own_site.broker) as client:
        client.client_kill_filter(_id=first)

    assert own_site.send("add", 1, 2).get(timeout=10) == 3
    eventually(lambda: worker.output.count("remote control listens") == 2, within_s=10)
    assert control_connections(own_site.broker) - {first}
    assert own_site.ask("ping") == {"ok": "pong"}
    assert "remote control is away" in worker.output
    assert "broker is away" not in worker.output


@pytest.mark.faults
def test_after_an_outage_of_the_broker_both_come_back(own_site: Site, start_redis: Any) -> None:
    server = start_redis()
    site = Site(own_site.folder, server.url, server.url)
    try:
        site.start("-c", "1")
        server.restart()
        eventually(lambda: site.app.control.ping(timeout=0.5, limit=1) != [], within_s=20)
        assert site.send("add", 1, 2).get(timeout=10) == 3
    finally:
        site.close()


def test_replies_are_quick_while_many_tasks_run(own_site: Site) -> None:
    own_site.start("-c", "2")
    sent = [own_site.send("add", n, 0) for n in range(2000)]
    began = time.monotonic()

    own_site.ask("ping", timeout=5)

    assert time.monotonic() - began < 5
    sent[-1].get(timeout=20)
