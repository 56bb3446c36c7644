"""`kw run` and its options, from the command line, the environment and a file, as a user sees them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.e2e.conftest import Command, client, notes, sizes

EX_CANTCREAT = 73
EX_CONFIG = 78


def test_banner_says_what_was_composed(shop: Path, kw: RunKw, url: str) -> None:
    worker = kw("run", "-A", "shop", "-b", url, "--result-backend", url, "-c", "2", "-n", "banner@%n", "-Q", "mail,web")

    shown = worker.output
    node = f"banner@{os.uname().nodename.partition('.')[0]}"
    scheme = url.partition(":")[0]
    for line in (
        f"{node}  kw 0.1.0  python 3.",
        "  app:      shop (shop, native)",
        f"  broker:   {url}  [{scheme} (kernel-broker-{scheme} 0.1.0)]",
        f"  results:  {url}",
        "  pool:     prefork, 2 at once  [prefork (kernel-pool-prefork 0.1.0)]",
        " → consumer → ",
        "  queues:   mail, web",
        "    . shop.add",
    ):
        assert line in shown
    assert shown.rstrip().endswith(f"{node} ready.")
    assert worker.stop() == 0
    assert f"{node} stops (SIGTERM)" in worker.output
    assert worker.output.rstrip().endswith(f"{node} stopped.")


def test_worker_takes_its_queues_only(shop: Path, kw: RunKw, url: str, ledger: Ledger) -> None:
    kw("run", "-A", "shop", "-b", url, "-P", "solo", "-Q", "mail,web", "-n", "w1")
    with client(url) as app:
        for queue in ("other", "web", "mail"):
            app.send_task("shop.note", [queue], queue=queue)
        eventually(lambda: ledger.count("note") == 2)

    assert {(entry["id"], entry["queue"], entry["node"]) for entry in ledger.entries("note")} == {
        ("web", "web", "kw@w1"),
        ("mail", "mail", "kw@w1"),
    }
    assert sizes(url, "other").waiting == 1


def test_purge_deletes_what_waited_before_the_start(shop: Path, kw: RunKw, url: str, ledger: Ledger) -> None:
    with client(url) as app:
        for n in range(5):
            app.send_task("shop.note", [n])
        app.send_task("shop.note", ["parked"], countdown=3600)
        app.send_task("shop.note", ["kept"], queue="other")

        worker = kw("run", "-A", "shop", "-b", url, "-P", "solo", "--purge")
        app.send_task("shop.note", ["later"])
        eventually(lambda: ledger.count("note"))

    assert "purge: 6 messages deleted" in worker.output
    assert worker.stop() == 0
    assert notes(ledger, "note") == ["later"]


def test_second_worker_with_the_pidfile_is_refused(shop: Path, kw: RunKw) -> None:
    first = kw("run", "-A", "shop", "-P", "solo", "--pidfile", "kw.pid")
    assert (shop / "kw.pid").read_text().strip() == str(first.pid)

    second = kw("run", "-A", "shop", "-P", "solo", "--pidfile", "kw.pid", ready=False)

    assert second.wait() == EX_CANTCREAT
    assert "kw.pid" in second.output
    assert str(first.pid) in second.output
    assert "Traceback" not in second.output
    assert (shop / "kw.pid").exists()
    assert first.stop() == 0
    assert not (shop / "kw.pid").exists()


def test_pidfile_of_a_killed_worker_does_not_keep_the_next_one_out(shop: Path, kw: RunKw) -> None:
    first = kw("run", "-A", "shop", "-P", "solo", "--pidfile", "kw.pid")
    first.signal(signal.SIGKILL)
    first.wait()

    second = kw("run", "-A", "shop", "-P", "solo", "--pidfile", "kw.pid")

    assert (shop / "kw.pid").read_text().strip() == str(second.pid)
    assert second.stop() == 0


def test_grace_lets_a_task_end_that_is_short_enough(shop: Path, kw: RunKw, sqlite_url: str, ledger: Ledger) -> None:
    worker = kw("run", "-A", "shop", "-c", "1", "--grace", "10s")
    with client(sqlite_url) as app:
        app.send_task("shop.hold", ["h"])
        eventually(lambda: ledger.count("start"))

    worker.signal(signal.SIGTERM)
    worker.wait_for_output("waiting up to 10 s for 1 running")
    (shop / "release").touch()
    assert worker.wait() == 0
    assert ledger.count("end") == 1


def test_grace_of_nothing_puts_the_task_back(shop: Path, kw: RunKw, sqlite_url: str, ledger: Ledger) -> None:
    worker = kw("run", "-A", "shop", "-c", "1", "--grace", "0")
    with client(sqlite_url) as app:
        app.send_task("shop.nap", ["n", 30.0])
        eventually(lambda: ledger.count("start"))

    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 4.0
    assert ledger.count("end") == 0
    assert sizes(sqlite_url).waiting == 1


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_log_goes_to_a_file_and_the_banner_does_not(shop: Path, kw: RunKw, sqlite_url: str, pool: str) -> None:
    worker = kw("run", "-A", "shop", "-P", pool, "-f", "kw.log", "-l", "info")
    with client(sqlite_url) as app:
        app.send_task("shop.add", [1, 2]).get(timeout=10)
        app.send_task("shop.fail", ["on purpose"]).get(timeout=10, propagate=False)
    worker.stop()

    log = (shop / "kw.log").read_text()
    assert "Task shop.add[" in log
    assert "ValueError: on purpose" in log
    assert "Task shop.add[" not in worker.output
    assert "ready." in worker.output
    assert "ready." not in log


@pytest.mark.parametrize(
    ("level", "tells_success", "tells_failure"),
    [("info", True, True), ("warning", False, True), ("critical", False, False)],
)
def test_level_decides_what_is_logged(
    shop: Path, kw: RunKw, sqlite_url: str, level: str, tells_success: bool, tells_failure: bool
) -> None:
    worker = kw("run", "-A", "shop", "-P", "solo", "-l", level)
    with client(sqlite_url) as app:
        app.send_task("shop.add", [1, 2]).get(timeout=10)
        app.send_task("shop.fail", ["on purpose"]).get(timeout=10, propagate=False)
    worker.stop()

    assert ("Task shop.add[" in worker.output) is tells_success
    assert ("ValueError: on purpose" in worker.output) is tells_failure


def test_environment_sets_what_the_command_line_leaves_out(shop: Path, kw: RunKw, sqlite_url: str) -> None:
    env = {"KW_APP": "shop", "KW_POOL": "solo", "KW_HOSTNAME": "fromenv", "KW_QUEUES": "a,b", "KW_BROKER": sqlite_url}

    worker = kw("run", "-n", "fromline", env=env)

    assert "kw@fromline ready." in worker.output
    assert "pool:     solo" in worker.output
    assert "queues:   a, b" in worker.output


def test_file_sets_what_nobody_else_does(shop: Path, kw: RunKw, sqlite_url: str) -> None:
    (shop / "kw.toml").write_text(
        f'[worker]\napp = "shop"\npool = "prefork"\nbroker = "{sqlite_url}"\nqueues = ["mail"]\nhostname = "fromfile"\n'
    )

    worker = kw("run", env={"KW_POOL": "solo"})

    assert "kw@fromfile ready." in worker.output
    assert "pool:     solo" in worker.output
    assert "queues:   mail" in worker.output


def test_misspelt_setting_in_the_file_names_the_nearest(shop: Path, command: Command) -> None:
    (shop / "kw.toml").write_text('[worker]\napp = "shop"\nconcurency = 4\n')

    done = command("run")

    assert done.returncode == EX_CONFIG
    assert "concurency" in done.stderr
    assert "concurrency" in done.stderr
    assert "kw.toml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "-A", "shop", "--concurency", "2"], "--concurrency"),
        (["rnu"], "run"),
        (["run", "-A", "shop", "-P", "prefrok"], "prefork"),
        (["run", "-A", "shop", "-b", "reids://localhost"], "redis"),
        (["run", "-A", "shop", "-c", "none"], "none"),
        (["run", "-A", "shop", "-P", "solo", "-c", "4"], "solo"),
        (["run", "-A", "shop", "-l", "loud"], "debug"),
        (["run"], "-A module"),
    ],
    ids=["option", "command", "pool", "broker", "number", "pool and option", "level", "no application"],
)
def test_mistake_on_the_command_line_is_told_with_what_mends_it(
    shop: Path, command: Command, arguments: list[str], text: str
) -> None:
    done = command(*arguments)

    assert done.returncode in (2, EX_CONFIG)
    assert done.stderr.startswith("kw: ")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_result_backend_that_was_not_selected_is_refused(shop: Path, kw: RunKw, redis_url: str) -> None:
    worker = kw(
        *("run", "-A", "shop", "-b", redis_url, "--plugins", "prefork,redis"),
        *("--result-backend", "sqlite:///results.db"),
        ready=False,
    )

    assert worker.wait() == 2
    assert "leaves out the result backend 'sqlite', which sqlite:///results.db needs" in worker.output
    assert "--plugins prefork,redis,sqlite" in worker.output


def test_disabled_results_are_shown_as_none(shop: Path, kw: RunKw, redis_url: str) -> None:
    worker = kw("run", "-A", "shop", "-b", redis_url, "--result-backend", "disabled", "-c", "1")

    assert "  results:  none\n" in worker.output
    assert worker.stop() == 0
