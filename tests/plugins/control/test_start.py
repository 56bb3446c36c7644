"""When a worker can be commanded, and what keeps it from starting at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_broker_amqp.mailbox import AmqpMailbox
from kernel_broker_redis.mailbox import RedisMailbox
from kernel_broker_sqlite.mailbox import SqliteMailbox
from kernel_worker.testing import WorkerProcess, eventually

from .conftest import APPLICATION

DRIVERS: dict[str, Any] = {"redis": RedisMailbox, "amqp": AmqpMailbox, "sqlite": SqliteMailbox}
Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(broker, *arguments, env={})`: a worker of the test's own; nobody has waited for anything."""
    (tmp_path / "proj.py").write_text(APPLICATION.format(acks_late=True))
    started: list[WorkerProcess] = []

    def run(broker: str, *arguments: str, env: dict[str, str] | None = None) -> WorkerProcess:
        command = ["run", "-A", "proj", "-b", broker, "-c", "1", "-n", "w1@start", *arguments]
        started.append(WorkerProcess(command, cwd=tmp_path, env=env or {}))
        return started[-1]

    yield run
    for worker in started:
        worker.kill()
        print(f"--- kw:\n{worker.output}")


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/kw.db"
    found: str = (
        request.getfixturevalue("redis_url")
        if request.param == "redis"
        else request.getfixturevalue("rabbitmq_server").url
    )
    return found


@pytest.mark.parametrize(("kind", "url"), [(kind, kind) for kind in DRIVERS], indirect=["url"])
def test_a_command_sent_at_the_line_that_says_ready_is_answered(kind: str, url: str, start: Start) -> None:
    mailbox, box = DRIVERS[kind](url, {}), str(uuid.uuid4())
    mailbox.expect(box)  # connected before: nothing lies between the line and the command
    message = {
        "method": "ping",
        "arguments": {},
        "destination": ["w1@start"],
        "ticket": box,
        "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": box},
    }

    found: list[Any] = []
    try:
        start(url, "-Q", f"start-{kind}").wait_until_ready()
        mailbox.broadcast({}, json.dumps(message).encode())
        eventually(lambda: found.extend(mailbox.receive(0.5)) or found, within_s=10, message="no answer to the ping")
    finally:
        mailbox.close()
    assert json.loads(found[0][2]) == {"w1@start": {"ok": "pong"}}


def test_a_broker_that_keeps_remote_control_waiting_does_not_delay_the_start_for_ever(
    start: Start, start_redis: Callable[..., Any]
) -> None:
    server = start_redis()
    server.command("ACL SETUSER deaf on >word ~* &* +@all -subscribe")
    port = server.url.rpartition(":")[2]

    worker = start(f"redis://deaf:word@127.0.0.1:{port}").wait_until_ready()

    worker.wait_for_output("remote control is away")
    assert worker.exit_code is None


def broken_distribution(folder: Path, text: str) -> dict[str, str]:
    """An environment in which a distribution with a remote-control command of this source is installed."""
    (folder / "kw_bad.py").write_text(text)
    about = folder / "kw_bad-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kw-bad\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[kernel_worker.control]\nbad = kw_bad:bad\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nosuchmodule\n", "cannot be imported: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("raise SystemExit(3)\n", "cannot be imported: SystemExit: 3"),
        ("bad = 7\n", "is 7, not a ControlCommand"),
        (
            "from kernel_worker import control_command\nbad = control_command('ping')(lambda context: 1)\n",
            "two remote-control commands are named 'ping'",
        ),
    ],
)
def test_a_command_plugin_that_is_broken_is_refused_before_anything_is_consumed(
    start: Start, tmp_path: Path, redis_url: str, text: str, told: str
) -> None:
    env = broken_distribution(tmp_path, text)
    sent = [sys.executable, "-m", "kernel_worker.cli", "call", "proj.add", "-a", "[1, 2]", "-b", redis_url]
    subprocess.run(sent, cwd=tmp_path, check=True, capture_output=True, timeout=30)

    worker = start(redis_url, "-l", "info", env=env)

    assert worker.wait() == 78
    lines = [line for line in worker.output.splitlines() if line.startswith("kw: ")]
    assert told in lines[0]
    assert "ready." not in worker.output
    assert "Traceback" not in worker.output
    assert "connected to" not in worker.output
    assert "--plugins=-bad" in worker.output or "select one" in worker.output


def test_the_line_that_mends_it_does(start: Start, tmp_path: Path, redis_url: str) -> None:
    env = broken_distribution(tmp_path, "import nosuchmodule\n")

    start(redis_url, "--plugins=-bad", env=env).wait_until_ready()
