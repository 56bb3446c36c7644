"""Command lines of both sides, on the same queues and results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import clients
from .conftest import KW, QUEUES, Pair
from .peers import ClientProcess, environment

IDLE = "nobody-consumes-it"


def run(folder: Path, url: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command, knowing the broker."""
    found = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment(url, QUEUES[KW])},
        capture_output=True,
        text=True,
        timeout=30,
    )
    print(found.stdout, found.stderr)
    return found


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def celery_cli(url: str, tmp_path: Path) -> Command:
    """`celery_cli("result", …)`."""
    return lambda *arguments: run(tmp_path, url, "celery", *arguments)


@pytest.fixture
def kw_cli(url: str, tmp_path: Path) -> Command:
    """`kw_cli("result", …)`."""
    return lambda *arguments: run(tmp_path, url, "kernel_worker.cli", *arguments)


def test_celery_call_and_celery_result_work_with_a_kw_worker(url: str, workers: None, celery_cli: Command) -> None:
    sent = celery_cli("-b", url, "call", "compat.add", "-a", "[1, 2]", "--queue", QUEUES[KW])
    task_id = sent.stdout.strip()

    told = celery_cli("-b", url, "--result-backend", url, "result", task_id)

    assert told.stdout.strip() == "3"


def test_celery_result_shows_the_traceback_of_a_kw_worker(celery_to_kw: Pair, url: str, celery_cli: Command) -> None:
    answer = celery_to_kw.call("fail", "ValueError")

    told = celery_cli("-b", url, "--result-backend", url, "result", "--traceback", answer.id)

    assert "ValueError: ('boom', 7)" in told.stdout


def test_kw_call_and_kw_result_work_with_a_celery_worker(url: str, workers: None, kw_cli: Command) -> None:
    sent = kw_cli("call", "compat.add", "-a", "[1, 2]", "--queue", QUEUES["celery"], "-b", url)

    told = kw_cli("result", sent.stdout.strip(), "--timeout", "10", "--result-backend", url)

    assert told.stdout.strip() == "3"


@pytest.mark.parametrize("sender", ["celery", "kw"])
def test_celery_purge_deletes_what_waits(
    sender: str, clients_of: dict[str, ClientProcess], celery_cli: Command, kw_cli: Command, url: str
) -> None:
    clients_of[sender].do(clients.send_many, "compat.add", [(n,) for n in range(5)], queue=IDLE)

    purged = celery_cli("-A", "tests.compat.celery_app", "purge", "-f", "-Q", IDLE)

    assert "5 messages" in purged.stdout
    assert f"{IDLE}: 0 messages" in kw_cli("purge", "-f", "-b", url, "-Q", IDLE).stdout


@pytest.mark.parametrize("sender", ["celery", "kw"])
def test_kw_queues_and_kw_purge_see_what_waits(
    sender: str, clients_of: dict[str, ClientProcess], kw_cli: Command, url: str
) -> None:
    for priority in (0, 9):
        clients_of[sender].do(clients.send_many, "compat.add", [(1,), (2,)], queue=IDLE, priority=priority)

    shown = kw_cli("queues", "-b", url, "-Q", IDLE)
    purged = kw_cli("purge", "-f", "-b", url, "-Q", IDLE)

    assert shown.stdout.splitlines()[-1].split()[:2] == [IDLE, "4"]
    assert f"{IDLE}: 4 messages" in purged.stdout
