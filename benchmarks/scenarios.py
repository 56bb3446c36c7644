"""What is measured. A scenario is a function of a bench and a system that gives one number."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import redis

from . import messages, rabbitmq_server, stamps
from .settings import environment
from .systems import ALL, CELERY, KW, System
from .workers import ROOT, running

WAITING = 20_000
SENT = 10_000
ROUND_TRIPS = 300
SETTLED_S = 2.0
"""An idle worker's memory is read so long after its first task."""


@dataclass
class Bench:
    """One run of the harness: its folder, its private Redis, and the messages taken from Celery's client."""

    folder: Path
    redis_url: str
    _templates: dict[bool, str] = field(default_factory=dict)
    servers: ExitStack = field(default_factory=ExitStack)
    _amqp_url: str = ""

    def amqp_url(self) -> str:
        """A private RabbitMQ node, started when it is first asked for; `servers` ends it."""
        if not self._amqp_url:
            folder = self.folder / "rabbitmq"
            folder.mkdir()
            self._amqp_url = self.servers.enter_context(rabbitmq_server.rabbitmq_server(folder))
        return self._amqp_url

    def template(self) -> str:
        """A message as Celery's client sends it, without results; there is one after the first `fill`."""
        return self._templates[False]

    def environment(self, results: bool = False, broker: str = "", work: str = "") -> dict[str, str]:
        """Environment for workers and clients."""
        broker = broker or self.redis_url
        return environment(broker, broker if results else "", self.folder / "stamps", work)

    def client(self, system: System, operation: str, number: int, env: dict[str, str]) -> dict[str, object]:
        """What the system's own client measured."""
        command = [sys.executable, "-m", "benchmarks.client", system.app, operation, str(number)]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise RuntimeError(f"client of {system.name}: {operation} failed\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def fill(self, number: int, results: bool = False) -> None:
        """Let `number` messages wait in Redis."""
        with redis.Redis.from_url(self.redis_url) as server:
            if results not in self._templates:
                server.flushall()
                self.client(CELERY, "send", 0, self.environment(results))
                self._templates[results] = messages.take_template(server)
            messages.fill(server, self._templates[results], number)

    def empty(self) -> None:
        """Nothing waits, nothing is stored."""
        with redis.Redis.from_url(self.redis_url) as server:
            server.flushall()


def drain(bench: Bench, system: System, number: int = WAITING, results: bool = False) -> float:
    """Tasks per second while a full queue is worked off."""
    bench.fill(number, results)
    with running(system, bench.environment(results), bench.folder) as worker:
        return stamps.middle_rate(worker.wait_done(number, within_s=30 + number / 300))


def drain_with_results(bench: Bench, system: System) -> float:
    """The same with every result stored in Redis."""
    return drain(bench, system, results=True)


def drain_long_backlog(bench: Bench, system: System) -> float:
    """The same with 100,000 waiting."""
    return drain(bench, system, 100_000)


def drain_short_backlog(bench: Bench, system: System) -> float:
    """The same with 10,000 waiting."""
    return drain(bench, system, 10_000)


def drain_sqlite(bench: Bench, system: System) -> float:
    """Tasks per second from the embedded broker."""
    for left in bench.folder.glob("bench.db*"):
        left.unlink()
    env = bench.environment(broker=f"sqlite:///{bench.folder / 'bench.db'}")
    bench.client(system, "send", WAITING - 1, env)  # and one to warm up
    with running(system, env, bench.folder) as worker:
        return stamps.middle_rate(worker.wait_done(WAITING, within_s=90))


def drain_amqp(bench: Bench, system: System) -> float:
    """Tasks per second from a classic queue of RabbitMQ."""
    bench.fill(1)  # the template
    url = bench.amqp_url()
    rabbitmq_server.fill(url, bench.template(), WAITING)
    with running(system, bench.environment(broker=url), bench.folder) as worker:
        return stamps.middle_rate(worker.wait_done(WAITING, within_s=30 + WAITING / 300))


def send_amqp(bench: Bench, system: System) -> float:
    """`delay` per second, one by one, into RabbitMQ: kw waits for confirms, Celery does not."""
    url = bench.amqp_url()
    rabbitmq_server.empty(url)
    return float(bench.client(system, "send", SENT // 2, bench.environment(broker=url))["rate"])


def send(bench: Bench, system: System) -> float:
    """`delay` per second, one by one, into Redis."""
    bench.empty()
    return float(bench.client(system, "send", SENT, bench.environment())["rate"])


def latency(bench: Bench, system: System) -> float:
    """Milliseconds from send to result on an idle worker, median."""
    bench.empty()
    env = bench.environment(results=True)
    with running(system, env, bench.folder) as worker:
        bench.client(system, "roundtrip", 1, env)  # it is up
        seconds = bench.client(system, "roundtrip", ROUND_TRIPS, env)["seconds"]
        assert worker.process.poll() is None
        return 1000 * statistics.median(seconds)


def start(bench: Bench, system: System) -> float:
    """Seconds from the start of the process to the end of the first task."""
    bench.fill(1)
    with running(system, bench.environment(), bench.folder) as worker:
        return (worker.wait_done(1, within_s=30)[0] - worker.began_ns) / 1e9


def memory(bench: Bench, system: System) -> float:
    """MB (PSS) of an idle worker with two children."""
    bench.fill(1)
    with running(system, bench.environment(), bench.folder) as worker:
        worker.wait_done(1, within_s=30)
        time.sleep(SETTLED_S)
        return worker.pss_mb()


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    group: str
    label: str
    unit: str
    measure: Callable[[Bench, System], float]
    more_is_better: bool = True
    systems: tuple[System, ...] = ALL
    runs: int | None = None  # default: what the command line says


SCENARIOS = (
    Scenario("drain", "drain 20,000 no-ops", "tasks/s", drain),
    Scenario("drain", "the same, results in Redis", "tasks/s", drain_with_results),
    Scenario("send", "send with delay", "tasks/s", send, systems=(KW, CELERY)),
    Scenario("latency", "send to result, idle worker", "ms", latency, more_is_better=False),
    Scenario("start", "start to first task finished", "s", start, more_is_better=False),
    Scenario("memory", "idle worker, 2 children (PSS)", "MB", memory, more_is_better=False, runs=1),
    Scenario("backlog", "drain 10,000 waiting", "tasks/s", drain_short_backlog, systems=(KW,)),
    Scenario("backlog", "drain 100,000 waiting", "tasks/s", drain_long_backlog, systems=(KW,)),
    Scenario("amqp", "drain 20,000, RabbitMQ", "tasks/s", drain_amqp),
    Scenario("amqp", "send with delay, RabbitMQ", "tasks/s", send_amqp, systems=(KW, CELERY)),
    Scenario("sqlite", "drain 20,000, embedded broker", "tasks/s", drain_sqlite, systems=(KW,)),
)
