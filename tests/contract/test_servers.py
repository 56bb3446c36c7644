"""The private servers and worker processes that other tests stand on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests import servers
from tests.servers import RedisServer, free_port


def test_every_test_gets_an_empty_redis(redis_server: RedisServer, request: pytest.FixtureRequest) -> None:
    redis_server.command("SET left behind")

    request.getfixturevalue("redis_url")

    assert redis_server.command("DBSIZE") == ":0"


def test_restarted_redis_has_the_same_address_and_no_data(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    server.command("SET key value")
    before = server.url, server.pid

    server.restart()

    assert server.command("EXISTS key") == ":0"
    assert server.url == before[0]
    assert server.pid != before[1]


def test_killed_redis_keeps_what_it_was_told_to_persist(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--appendonly", "yes", "--appendfsync", "always")
    server.command("SET key value")

    server.kill()
    server.start()

    assert server.command("EXISTS key") == ":1"


def test_paused_redis_answers_nothing_until_it_goes_on(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()

    with server.paused(), pytest.raises(TimeoutError):
        server.command("PING", timeout_s=0.2)

    assert server.command("PING") == "+PONG"


def test_missing_redis_server_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="make test"):
        servers.redis_program()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="make test"):
        servers.redis_program()


def test_free_ports_differ() -> None:
    assert len({free_port() for _ in range(20)}) > 1


APP = """
import os, sys, time
from kernel_app import App
app = App("family", broker_url="sqlite:///kw.db")
"""


def test_worker_process_knows_and_ends_its_whole_family(kw: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(APP)
    process = kw("run", "-A", "family", "-P", "prefork", "-c", "2")
    family = process.family()

    process.kill()

    assert process.pid in family
    assert len(family) >= 3
    assert process.exit_code == -signal.SIGKILL
    assert not process.family()
    eventually(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()], message="the end of the family")


def test_worker_process_that_ends_before_it_is_ready_shows_its_output(kw: Callable[..., WorkerProcess]) -> None:
    process = kw("run", "-A", "no_such_module", ready=False)

    with pytest.raises(AssertionError, match="no_such_module"):
        process.wait_until_ready()


def test_ledger_counts_entries_by_event_and_fields(ledger: Ledger) -> None:
    ledger.note("start", id="a")
    ledger.note("start", id="b")
    ledger.note("end", id="a")

    assert ledger.count("start") == 2
    assert [(entry["event"], entry["pid"]) for entry in ledger.entries(id="a")] == [
        ("start", os.getpid()),
        ("end", os.getpid()),
    ]
