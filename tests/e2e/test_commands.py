"""The other commands of `kw` beside a running worker and without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernel_worker import QueueInfo
from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.e2e.conftest import Command, client, sizes

EX_UNAVAILABLE = 69


def test_call_and_result_speak_with_a_worker(shop: Path, kw: RunKw, command: Command, url: str) -> None:
    kw("run", "-A", "shop", "-b", url, "--result-backend", url, "-P", "solo")

    sent = command("call", "shop.add", "-a", "[2, 40]", "-b", url)
    task_id = sent.stdout.strip()
    result = command("result", task_id, "--timeout", "10", "--result-backend", url)
    failed = command("call", "shop.fail", "-k", '{"text": "on purpose"}', "-A", "shop", "-b", url)
    failure = command("result", failed.stdout.strip(), "--timeout", "10", "--traceback", "--result-backend", url)

    assert (sent.returncode, result.returncode, result.stdout) == (0, 0, "42\n")
    assert (failed.returncode, failure.returncode) == (0, 1)
    assert "FAILURE: ValueError: on purpose" in failure.stderr
    assert "raise ValueError(text)" in failure.stdout


def test_result_that_nobody_has_is_told(shop: Path, command: Command) -> None:
    done = command("result", "no-such-id", "-A", "shop", "--timeout", "0.2")

    assert done.returncode == 1
    assert "no-such-id" in done.stderr
    assert "Traceback" not in done.stderr


def test_queues_and_purge_tell_what_waits_runs_and_is_parked(
    shop: Path, kw: RunKw, command: Command, url: str, ledger: Ledger
) -> None:
    kw("run", "-A", "shop", "-b", url, "-c", "1", "--prefetch-multiplier", "1")
    with client(url) as app:
        app.send_task("shop.hold", ["h"])
        eventually(lambda: ledger.count("start"))
        app.send_task("shop.add", [1, 1], countdown=3600)
        for _ in range(3):
            app.send_task("shop.add", [1, 1])
    before = sizes(url)
    table = command("queues", "-b", url).stdout.splitlines()

    refused = command("purge", "-b", url)  # nobody is there to say yes
    purged = command("purge", "-b", url, "--force")
    (shop / "release").touch()

    assert before.in_flight == 1
    assert before.waiting + before.parked == 4
    assert table[0].split() == ["QUEUE", "WAITING", "IN", "FLIGHT", "PARKED", "DEAD"]
    assert refused.returncode == 1
    assert "celery: 4 messages deleted" in purged.stdout
    eventually(lambda: ledger.count("end") == 1)
    eventually(lambda: sizes(url) == QueueInfo("celery", 0))


def test_dead_letters_are_listed_with_their_reason(shop: Path, kw: RunKw, command: Command, url: str) -> None:
    once = {"KW_UNKNOWN_MAX_RETURNS": "0"}
    kw("run", "-A", "shop", "-b", url, "--result-backend", url, "-P", "solo", env=once)
    with client(url) as app:
        app.send_task("shop.unheard_of", [1])
        eventually(lambda: sizes(url).dead == 1, within_s=10)

    table = command("dead", "ls", "-b", url)
    letters = json.loads(command("dead", "ls", "-b", url, "--json").stdout)

    assert table.returncode == 0
    assert [letter["queue"] for letter in letters] == ["celery"]
    assert "shop.unheard_of" in letters[0]["reason"]
    assert letters[0]["id"] in table.stdout
    assert "shop.unheard_of" in table.stdout


def test_no_dead_letters_is_no_error(shop: Path, command: Command, sqlite_url: str) -> None:
    with client(sqlite_url) as app:
        app.send_task("shop.add", [1, 2])
    done = command("dead", "ls", "-b", sqlite_url)

    assert (done.returncode, done.stdout) == (0, "no dead letters in celery\n")


def test_plugins_tells_what_is_installed_and_chosen(command: Command) -> None:
    rows = json.loads(command("plugins", "--json").stdout)
    check = command("plugins", "--check")
    steps = command("plugins", "--steps", "-P", "solo")

    found = {(row["kind"], row["name"]): row["selected"] for row in rows}
    assert found["pools", "prefork"] == "yes"
    assert found["pools", "solo"] == "available"
    assert found["brokers", "redis"] == "yes"
    assert check.returncode == 0, check.stdout + check.stderr
    assert [line.split()[0] for line in steps.stdout.splitlines()[2:]] == [
        *("pool", "commands", "limits", "timer", "events", "consumer", "control", "recycle"),
    ]


def test_report_tells_where_settings_come_from(shop: Path, command: Command) -> None:
    (shop / "kw.toml").write_text("[worker]\nconcurrency = 3\n")

    done = command("report", "-A", "shop", env={"KW_GRACE": "7"})

    assert done.returncode == 0, done.stderr
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(line.startswith("worker.concurrency 3") and "kw.toml" in line for line in shown)
    assert any(line.startswith("worker.grace 7") and "KW_GRACE" in line for line in shown)
    assert any("kernel-pool-prefork 0.1.0" in line for line in shown)


@pytest.mark.parametrize(
    "arguments",
    [["queues"], ["purge", "-f"], ["dead", "ls"], ["call", "shop.add"]],
    ids=["queues", "purge", "dead", "call"],
)
def test_broker_that_is_away_is_told_without_its_password(command: Command, arguments: list[str]) -> None:
    done = command(*arguments, "-b", "redis://user:canary-password@127.0.0.1:1/0")

    assert done.returncode == EX_UNAVAILABLE
    assert done.stderr.startswith("kw: ")
    assert "127.0.0.1:1" in done.stderr
    assert "canary" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
