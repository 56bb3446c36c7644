"""What control does not disturb: consumption, when it is flooded or cut off; and the other way round."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest
import redis

from kernel_broker_redis.mailbox import RedisMailbox
from kernel_worker.testing import eventually

from .conftest import Site

BUSY = "too many commands"


def flood(url: str, count: int) -> list[Any]:
    """Send so many commands of all kinds as fast as possible; the replies."""
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
    for number in range(count):
        method, arguments = kinds[number % len(kinds)]
        reply_to = {"exchange": "reply.celery.pidbox", "routing_key": box}
        body = {"method": method, "arguments": arguments, "destination": None, "ticket": "t", "reply_to": reply_to}
        mailbox.broadcast({"clock": 2**70}, json.dumps(body).encode())
    found: list[Any] = []
    while letters := mailbox.receive(1.0):
        found += [next(iter(json.loads(body).values())) for _, _, body in letters]
    mailbox.close()
    return found


def test_a_flood_of_commands_is_answered_or_refused_and_tasks_go_on(own_site: Site) -> None:
    worker = own_site.start("-c", "1")
    sent = [own_site.send("add", n, 1) for n in range(50)]

    replies = flood(own_site.broker, 3000)

    assert [each.get(timeout=10) for each in sent] == [n + 1 for n in range(50)]
    assert worker.exit_code is None
    errors = [each["error"] for each in replies if isinstance(each, dict) and "error" in each]
    assert {"ok": "pong"} in replies
    assert any("unknown command" in each for each in errors)
    assert any("needs the argument" in each for each in errors)
    eventually(lambda: own_site.ask("ping", timeout=2) == {"ok": "pong"}, within_s=5)
    assert own_site.ask("clock")["clock"] < 2**54


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
    eventually(lambda: control_connections(own_site.broker) - {first}, within_s=10)
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

    own_site.ask("ping", timeout=2)

    assert time.monotonic() - began < 1
    sent[-1].get(timeout=20)
