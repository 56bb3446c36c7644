"""Messages nobody vouches for, sent to a running prefork worker: it goes on, loses none and keeps each with a reason."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kernel_app import App, AsyncResult
from kernel_broker_redis import RedisBroker
from kernel_broker_sqlite import SqliteBroker
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.testing import WorkerProcess, envelope, eventually
from kernel_worker.types import DeadLetter
from tests.e2e.bad_messages import DEAD, EXPLODED, MEGABYTE, RUNS, Make, header, message
from tests.servers import RedisServer

APP = """
from kernel_app import App

app = App("victim", broker_url=None)

@app.task
def add(x, y):
    return x + y
"""
QUEUE = "celery"
WITHIN_S = 10.0
LARGEST = 16 * MEGABYTE * 4 // 3 + MEGABYTE
"""Bytes of the largest message that a broker hands out: see `--max-body`; the body is base64 there."""
COPIES = 6
"""So many times a message may be in one process: as it came, as text, decoded, framed, to be sent."""
SLACK = {"kernel": 20 * MEGABYTE, "executor": 60 * MEGABYTE}
"""What may come on top; in an executor a body of 16 MB may come out of a small one that is compressed."""


class Victim:
    """A worker, the broker as others see it, and what must not change."""

    def __init__(self, worker: WorkerProcess, broker: Broker, client: App, url: str, folder: Path) -> None:
        self.worker = worker
        self.broker = broker
        self.client = client
        self.url = url
        self.folder = folder
        self.good = 0
        eventually(lambda: len(worker.family()) == 4, within_s=WITHIN_S)  # with the fork server and both executors
        self.call_good(8)  # every executor has run something
        self.pids = worker.family()
        self.memory = {pid: memory(pid, "VmRSS") for pid in self.pids}

    def send(self, raw: bytes) -> None:
        """Put bytes into the queue."""
        self.broker.publish(QUEUE, raw)

    def send_good(self) -> tuple[str, int]:
        """Send a good task; its id and what will come of it."""
        self.good += 1
        task_id = str(uuid.uuid4())
        self.send(envelope("victim.add", (self.good, 1), task_id=task_id))
        return task_id, self.good + 1

    def call_good(self, count: int) -> None:
        """Run good tasks."""
        for task_id, expected in [self.send_good() for _ in range(count)]:
            assert self.result(task_id).get(WITHIN_S) == expected

    def result(self, task_id: str) -> AsyncResult[object]:
        return self.client.AsyncResult(task_id)

    @property
    def dead(self) -> int:
        """How many letters there are."""
        return self.broker.size(QUEUE).dead

    def newest(self) -> DeadLetter:
        return self.broker.dead_letters(QUEUE, 1)[0]

    def forget_peaks(self) -> dict[int, int]:
        """Begin a new measurement of the most memory that each process has; what they have now."""
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        return {pid: memory(pid, "VmHWM") for pid in self.pids}

    def assert_bounded(self, before: dict[int, int], size: int) -> None:
        """No process needed more memory than one message of this size may take."""
        handed_out = size if size <= LARGEST else 0
        for pid, had in before.items():
            grown = memory(pid, "VmHWM") - had
            slack = SLACK["kernel" if pid == self.worker.pid else "executor"]
            assert grown <= slack + COPIES * handed_out, f"{grown / MEGABYTE:.0f} MB for a message of {size} bytes"

    def assert_untouched(self) -> None:
        """The same processes run, and nothing is left half done."""
        assert self.worker.family() == self.pids
        eventually(lambda: self.broker.size(QUEUE).in_flight == 0, within_s=WITHIN_S)
        assert not (self.folder / EXPLODED).exists(), "a pickle or a yaml was loaded"


def memory(pid: int, field: str) -> int:
    """Bytes of memory that a process has now (VmRSS), or at most since `forget_peaks` (VmHWM)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


@pytest.fixture(scope="module", params=["redis", "sqlite"])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """One worker for all messages of this module."""
    folder = tmp_path_factory.mktemp("victim")
    (folder / "victim.py").write_text(APP)
    server: RedisServer | None = None
    driver: type[Broker] = SqliteBroker
    url = f"sqlite:///{folder / 'kw.db'}"
    if request.param == "redis":
        server = RedisServer(tmp_path_factory.mktemp("redis"))
        server.start()
        driver, url = RedisBroker, server.url
    arguments = ("run", "-A", "victim", "-b", url, "--result-backend", url, "-c", "2", "-l", "info")
    worker = WorkerProcess(arguments, cwd=folder, env={"KW_UNKNOWN_MAX_RETURNS": "0"})
    broker = driver(BrokerContext(url, "test@nowhere"))
    client = App("client", broker_url=url, result_backend=url)
    try:
        worker.wait_until_ready()
        broker.connect()
        yield Victim(worker, broker, client, url, folder)
    finally:
        client.close()
        broker.close()
        worker.kill()
        print(f"--- kw:\n{worker.output[-20000:]}")
        if server is not None:
            server.stop()


@pytest.mark.parametrize(("make", "reason", "is_told"), DEAD.values(), ids=DEAD.keys())
def test_message_is_kept_with_the_reason_and_good_ones_run(
    victim: Victim, make: Make, reason: str, is_told: bool
) -> None:
    task_id, before = str(uuid.uuid4()), victim.dead
    raw = make(task_id)
    peaks = victim.forget_peaks()

    good = [victim.send_good()]
    victim.send(raw)
    good.append(victim.send_good())

    eventually(lambda: victim.dead == before + 1, within_s=WITHIN_S, message=lambda: victim.worker.output[-3000:])
    letter = victim.newest()
    assert letter.raw == raw, "it was kept, but not as it came"
    assert reason in letter.reason
    assert letter.reason
    assert letter.reason.isprintable()
    assert len(letter.reason) < 300
    for good_id, expected in good:
        assert victim.result(good_id).get(WITHIN_S) == expected
    if is_told:
        assert victim.result(task_id).state == "FAILURE"
    victim.assert_bounded(peaks, len(raw))
    victim.assert_untouched()


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS.keys())
def test_odd_message_that_says_what_is_wanted_runs(victim: Victim, make: Make) -> None:
    task_id, before = str(uuid.uuid4()), victim.dead

    victim.send(make(task_id))

    assert victim.result(task_id).get(WITHIN_S) == 3
    assert victim.dead == before
    victim.assert_untouched()


FAILS: dict[str, Make] = {
    "wrong number of arguments": lambda task_id: message(task_id, [[1, 2, 3], {}, {}]),
    "unknown keyword": lambda task_id: message(task_id, [[1], {"z": 2}, {}]),
    "NaN as an argument of a sum with a text": lambda task_id: message(task_id, [[float("nan"), "x"], {}, {}]),
    "callback that is a number": lambda task_id: message(task_id, [[1, 2], {}, {"callbacks": [5]}]),
    "chain that nobody can read": lambda task_id: message(task_id, [[1, 2], {}, {"chain": [{"task": {"a": 1}}]}]),
}


@pytest.mark.parametrize("make", FAILS.values(), ids=FAILS.keys())
def test_message_that_fails_is_a_failure_like_any_other(victim: Victim, make: Make) -> None:
    task_id, before = str(uuid.uuid4()), victim.dead

    victim.send(make(task_id))

    eventually(lambda: victim.result(task_id).state == "FAILURE", within_s=WITHIN_S)
    assert victim.dead == before
    victim.assert_untouched()


def test_message_for_the_year_9999_is_parked(victim: Victim) -> None:
    before = victim.broker.size(QUEUE)

    victim.send(header(eta=datetime(9999, 12, 31, tzinfo=UTC).isoformat())(str(uuid.uuid4())))

    eventually(lambda: victim.broker.size(QUEUE).parked == before.parked + 1, within_s=WITHIN_S)
    victim.call_good(2)
    assert victim.dead == before.dead
    victim.assert_untouched()


def test_expired_message_is_revoked_without_a_run(victim: Victim) -> None:
    task_id = str(uuid.uuid4())

    victim.send(header(expires="2000-01-01T00:00:00Z")(task_id))

    eventually(lambda: victim.result(task_id).state == "REVOKED", within_s=WITHIN_S)
    victim.assert_untouched()


def test_all_at_once_among_good_tasks(victim: Victim) -> None:
    """Every bad message (but the largest, three times) between five hundred good ones."""
    chance = random.Random(20261121)
    bad = [make for name, (make, _, _) in DEAD.items() if name not in ("body over the limit", "body of 100 MB")] * 3
    before = victim.dead
    plan = [*bad, *[None] * 500]
    chance.shuffle(plan)

    started = time.monotonic()
    good = []
    for make in plan:
        if make is None:
            good.append(victim.send_good())
        else:
            victim.send(make(str(uuid.uuid4())))
    for task_id, expected in good:
        assert victim.result(task_id).get(WITHIN_S) == expected

    eventually(lambda: victim.dead == before + len(bad), within_s=WITHIN_S)
    assert time.monotonic() - started < 30
    victim.assert_untouched()


def test_dead_letters_are_listed_by_the_command(victim: Victim) -> None:
    before = victim.dead
    victim.send(header(task="victim.\x1b[31mnobody")("listed"))
    eventually(lambda: victim.dead == before + 1, within_s=WITHIN_S)

    command = [sys.executable, "-m", "kernel_worker.cli", "dead", "ls", "-b", victim.url, "--limit", "3"]
    shown, listed = (
        subprocess.run([*command, *more], cwd=victim.folder, capture_output=True, text=True, timeout=30)
        for more in ((), ("--json",))
    )

    newest = json.loads(listed.stdout)[0]
    assert newest["queue"] == QUEUE
    assert newest["reason"] == "unknown task victim.\\x1b[31mnobody"
    assert newest["reason"] in shown.stdout
    assert "\x1b" not in shown.stdout


def test_memory_is_given_back_and_terminals_are_not_reached(victim: Victim) -> None:
    """Last: what all the messages before have left behind."""
    grown = {pid: memory(pid, "VmRSS") - had for pid, had in victim.memory.items()}

    assert max(grown.values()) < 64 * MEGABYTE, {pid: f"{size / MEGABYTE:.0f} MB" for pid, size in grown.items()}
    assert "\x1b" not in victim.worker.output
    assert victim.worker.stop() == 0
