"""Workers and their executors are killed at random moments while tasks come in: none is lost, none runs again for nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_worker.testing import eventually
from tests.faults.application import LEASE_S
from tests.faults.proxy import Proxy
from tests.faults.storm import Storm, seed
from tests.servers import RedisServer

FLEETS = {"prefork": ["prefork", "prefork"], "solo": ["solo", "solo", "solo"], "mixed": ["prefork", "prefork", "solo"]}

StartStorm = Callable[..., Storm]


@pytest.fixture
def storm(folder: Path) -> Iterator[StartStorm]:
    """`storm(url, fleet)`: workers that are ready."""
    running: list[Storm] = []

    def start(url: str, fleet: str) -> Storm:
        made = Storm(folder, url, FLEETS[fleet], seed())
        running.append(made)
        for worker in made.workers:
            worker.wait_until_ready()
        return made

    yield start
    for made in running:
        made.close()


def judge(storm: Storm, within_s: float) -> None:
    """All ids finish, repeated ones have a reason, the last workers end well, nothing survives."""
    storm.wait_until_finished(within_s)
    codes = storm.stop()
    print(storm.book.read() and storm.summary())

    assert storm.unexcused() == [], storm.harms
    assert codes == [0] * len(codes), "\n".join(worker.output for worker in storm.workers)
    eventually(lambda: not storm.survivors(), within_s=2, message=lambda: f"processes left: {storm.survivors()}")


@pytest.mark.timeout(120)
def test_kills_at_random_moments_lose_nothing(url: str, storm: StartStorm) -> None:
    """2,500 tasks, 10 kills: of whole workers, replaced at once, and of single executors."""
    blow = storm(url, "mixed")

    for _ in range(10):
        blow.publish(250, 0.002)
        time.sleep(blow.random.uniform(0, 0.15))
        blow.random.choice((blow.kill_worker, blow.kill_child))()

    judge(blow, within_s=60)
    assert sum(blow.counts.values()) == 10


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fleet", ["prefork", "solo"])
def test_hundreds_of_kills_terms_and_pauses_lose_nothing(url: str, storm: StartStorm, fleet: str) -> None:
    blow = storm(url, fleet)
    kills = [blow.kill_worker] if fleet == "solo" else [blow.kill_worker, blow.kill_child, blow.kill_child]

    for turn in range(200):
        blow.publish(100, 0.002)
        time.sleep(blow.random.uniform(0, 0.2))
        blow.random.choice(kills)()
        if turn % 20 == 10:
            blow.terminate_worker()
        if turn % 40 == 20:
            blow.pause_worker(blow.random.uniform(0.5, 1.5 * LEASE_S))
        if turn % 40 == 30 and fleet == "prefork":
            blow.kill_fork_server()

    judge(blow, within_s=120)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_killed_server_that_keeps_its_data_loses_nothing(
    start_redis: Callable[..., RedisServer], storm: StartStorm
) -> None:
    server = start_redis("--appendonly", "yes")

    def restart() -> None:
        server.kill()
        time.sleep(blow.random.uniform(0, 1.0))
        server.start()

    blow = storm(server.url, "mixed")
    for turn in range(40):
        blow.publish(250, 0.002)
        time.sleep(blow.random.uniform(0, 0.3))
        if turn % 4 == 3:
            blow.outage("server killed", restart)
        else:
            blow.random.choice((blow.kill_worker, blow.kill_child))()

    judge(blow, within_s=120)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_cut_silent_and_slow_connections_lose_nothing(
    redis_server: RedisServer, redis_url: str, storm: StartStorm
) -> None:
    proxy = Proxy(redis_server.port)
    blow = storm(f"redis://127.0.0.1:{proxy.port}/0?socket_timeout=1", "mixed")

    def be_silent() -> None:
        with proxy.blackhole():
            time.sleep(blow.random.uniform(0.2, 4.0))

    def be_slow() -> None:
        proxy.delay_s = 0.1
        time.sleep(2.0)
        proxy.delay_s = 0.0

    try:
        for turn in range(60):
            blow.publish(200 if turn % 6 else 20, 0.002)
            time.sleep(blow.random.uniform(0, 0.3))
            if turn % 10 == 9:
                blow.outage("silence", be_silent)
            elif turn % 10 == 4:
                blow.outage("delay", be_slow)
            else:
                blow.outage("cut", proxy.cut)
        judge(blow, within_s=120)
    finally:
        proxy.close()
    assert proxy.accepted > 60
