"""Many workers at once, simulated: all replies are gathered, and who is missing is named."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from kernel_app import App
from kernel_broker_redis.mailbox import RedisMailbox

from .conftest import Cli

NODES = [f"w{number}@farm" for number in range(100)]


@pytest.fixture
def farm(redis_url: str) -> Iterator[None]:
    """Answers for a hundred workers, each in a letter of its own."""
    mailbox = RedisMailbox(redis_url, {})
    mailbox.listen("farm")
    is_over = threading.Event()

    def answer() -> None:
        while not is_over.is_set():
            for _, _, body in mailbox.receive(0.2):
                asked = json.loads(body)
                box = asked["reply_to"]["routing_key"]
                headers = {"ticket": asked["ticket"]}
                mailbox.reply([(box, headers, json.dumps({node: {"ok": "pong"}}).encode()) for node in NODES])

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    is_over.set()
    mailbox.interrupt()
    thread.join()
    mailbox.close()


def test_replies_of_a_hundred_workers_are_gathered(farm: None, redis_url: str) -> None:
    app = App("client", broker_url=redis_url)

    replies = app.control.ping(timeout=1, limit=100)

    assert sorted(node for reply in replies for node in reply) == sorted(NODES)
    app.close()


def test_a_missing_one_of_a_hundred_is_named(farm: None, redis_url: str, cli: Cli) -> None:
    run = cli("inspect", "-b", redis_url, "-t", "1", "-d", ",".join([*NODES, "gone@farm"]), "ping")

    assert run.returncode == 3
    assert "100 of 101 nodes answered." in run.stdout
    assert run.stderr == "kw: 1 did not answer: gone@farm\n"
