"""The storms of test_storms.py on RabbitMQ, with classic and with quorum queues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.proxy import Proxy
from tests.faults.storm import Storm, seed
from tests.faults.test_storms import FLEETS, judge
from tests.servers import RabbitServer

StartStorm = Callable[[str, str], Storm]


@pytest.fixture
def storm(folder: Path) -> Iterator[StartStorm]:
    running: list[Storm] = []

    def start(url: str, fleet: str) -> Storm:
        made = Storm(folder, url, FLEETS[fleet], seed(), "rpc://")
        running.append(made)
        for worker in made.workers:
            worker.wait_until_ready()
        return made

    yield start
    for made in running:
        made.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("amqp_url", [pytest.param("classic", marks=pytest.mark.faults), "quorum"], indirect=True)
def test_kills_at_random_moments_lose_nothing(amqp_url: str, storm: StartStorm) -> None:
    """2,000 tasks, 8 kills: of whole workers, replaced at once, and of single executors."""
    blow = storm(amqp_url, "mixed")

    for _ in range(8):
        blow.publish(250, 0.002)
        time.sleep(blow.random.uniform(0, 0.15))
        blow.random.choice((blow.kill_worker, blow.kill_child))()

    judge(blow, within_s=60)
    assert sum(blow.counts.values()) == 8


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fleet", ["prefork", "solo"])
def test_hundreds_of_kills_terms_and_pauses_lose_nothing(amqp_url: str, storm: StartStorm, fleet: str) -> None:
    """20,000 tasks, 200 kills."""
    blow = storm(amqp_url, fleet)
    kills = [blow.kill_worker] if fleet == "solo" else [blow.kill_worker, blow.kill_child, blow.kill_child]

    for turn in range(200):
        blow.publish(100, 0.002)
        time.sleep(blow.random.uniform(0, 0.2))
        blow.random.choice(kills)()
        if turn % 20 == 10:
            blow.terminate_worker()
        if turn % 40 == 20:
            blow.pause_worker(blow.random.uniform(0.5, 3.0))

    judge(blow, within_s=180)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_cut_and_silent_connections_lose_nothing(
    rabbitmq_server: RabbitServer, amqp_url: str, storm: StartStorm
) -> None:
    proxy = Proxy(rabbitmq_server.port)
    blow = storm(f"amqp://127.0.0.1:{proxy.port}//?heartbeat=1&read_timeout=2", "mixed")

    def be_silent() -> None:
        with proxy.blackhole():
            time.sleep(blow.random.uniform(0.2, 4.0))

    try:
        for turn in range(60):
            blow.publish(200 if turn % 6 else 20, 0.002)
            time.sleep(blow.random.uniform(0, 0.3))
            if turn % 10 == 9:
                blow.outage("silence", be_silent)
            else:
                blow.outage("cut", proxy.cut)
        judge(blow, within_s=120)
    finally:
        proxy.close()
    assert proxy.accepted > 60
