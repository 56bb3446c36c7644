"""The password of a broker appears nowhere that people or other users see."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.e2e.conftest import Command, client
from tests.servers import RedisServer

CANARY = "canary-3f9a"

StartRedis = Callable[..., RedisServer]


@pytest.fixture
def locked(start_redis: StartRedis) -> RedisServer:
    """A server that wants the canary as its password."""
    return start_redis("--requirepass", CANARY)


def with_password(server: RedisServer, password: str = CANARY) -> str:
    return server.url.replace("//", f"//:{password}@")


@pytest.mark.parametrize("place", ["command line", "environment", "file", "application"])
def test_password_is_not_printed_and_not_logged(
    shop: Path, kw: RunKw, locked: RedisServer, ledger: Ledger, place: str
) -> None:
    """Neither by banner, nor by the debug log, nor while the connection is lost and made again."""
    url = with_password(locked)
    options = ["run", "-A", "shop", "-c", "1", "-l", "debug", "-f", "kw.log"]
    env = {}
    if place == "command line":
        options += ["-b", url, "--result-backend", url]
    elif place == "environment":
        env = {"KW_BROKER": url, "KW_RESULT_BACKEND": url}
    elif place == "file":
        (shop / "kw.toml").write_text(f'[worker]\nbroker = "{url}"\nresult_backend = "{url}"\n')
    else:
        source = (shop / "shop.py").read_text()
        (shop / "shop.py").write_text(
            source.replace('App("shop")', f'App("shop", broker_url={url!r}, result_backend={url!r})')
        )

    worker = kw(*options, env=env)
    with client(url) as app:
        assert app.send_task("shop.add", [1, 2]).get(timeout=10) == 3
        app.send_task("shop.hold", ["h"])
        eventually(lambda: ledger.count("start"))
        os.kill(ledger.entries("start")[0]["pid"], signal.SIGKILL)
        locked.restart()
        eventually(lambda: "broker is away" in (shop / "kw.log").read_text(), within_s=10)
        assert app.send_task("shop.add", [1, 2]).id
        commands = []
        for pid in worker.family() - ({worker.pid} if place == "command line" else set()):
            with contextlib.suppress(OSError):  # it ended in between
                commands.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        (shop / "release").touch()
        worker.stop()

    assert CANARY not in worker.output
    assert CANARY not in (shop / "kw.log").read_text()
    assert f"127.0.0.1:{locked.port}" in worker.output
    assert commands
    assert not any(CANARY.encode() in command for command in commands)


def test_wrong_password_is_told_without_it(shop: Path, kw: RunKw, locked: RedisServer) -> None:
    url = with_password(locked, "canary-wrong")

    worker = kw("run", "-A", "shop", "-b", url, "-c", "1", "--startup-timeout", "4", ready=False)

    assert worker.wait(within_s=30) == 69
    assert "canary" not in worker.output
    assert "Traceback" not in worker.output
    assert f"127.0.0.1:{locked.port}" in worker.output


def test_report_masks_passwords_wherever_they_come_from(shop: Path, command: Command) -> None:
    url = f"redis://user:{CANARY}@127.0.0.1:1/0"
    (shop / "kw.toml").write_text(f'[worker]\nresult_backend = "{url}"\n')

    done = command("report", "-A", "shop", env={"KW_BROKER": url})

    assert done.returncode == 0, done.stderr
    assert "127.0.0.1" in done.stdout
    assert CANARY not in done.stdout + done.stderr


def test_error_with_a_traceback_shows_no_password(shop: Path, command: Command) -> None:
    url = f"redis://user:{CANARY}@127.0.0.1:1/0"

    done = command("queues", "-b", url, env={"KW_TRACEBACK": "1"})

    assert "Traceback" in done.stderr
    assert CANARY not in done.stdout + done.stderr
