"""What tasks do to their process: it does not reach the next task, and does not hurt the worker."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_app import App
from kernel_app.log import PRINTED_LOGGER, PrintedLines
from kernel_worker.testing import eventually
from tests.conftest import RunKw

APP = """
import logging, os, signal, subprocess, sys, threading, time
from kernel_app import App, get_task_logger

app = App("toy", broker_url="sqlite:///kw.db", result_backend="sqlite:///kw.db", **SETTINGS)
logger = get_task_logger(__name__)

def state():
    mask = os.umask(0)
    os.umask(mask)
    return [os.getcwd(), mask, str(signal.getsignal(signal.SIGTERM)).split(" at ")[0], os.getpid()]

@app.task(name="look")
def look():
    return state()

@app.task(name="mess")
def mess():
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    return os.getpid()

@app.task(name="limited", soft_time_limit=0.3)
def limited():
    time.sleep(20)

@app.task(name="fork")
def fork():
    if os.fork() == 0:
        time.sleep(0.2)
        os._exit(0)

@app.task(name="leave")
def leave():
    threading.Thread(target=time.sleep, args=(60,)).start()
    subprocess.Popen(["sleep", "60"])

@app.task(name="shout")
def shout():
    for _ in range(200):
        print("x" * 10_000)
    sys.stderr.write("no end of line")

@app.task(name="say")
def say():
    print("said", "aloud")
    print("second")
    sys.stdout.write("unfinished")
    logger.warning("logged %d", 1)
    try:
        1 / 0
    except ZeroDivisionError:
        logger.exception("wrong")
"""

Client = App


@pytest.fixture
def client(tmp_path: Path) -> Iterator[App]:
    (tmp_path / "toy.py").write_text(APP.replace("SETTINGS", "{}"))
    url = f"sqlite:///{tmp_path}/kw.db"
    app = App("client", broker_url=url, result_backend=url)
    yield app
    app.close()


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_state_of_the_process_is_put_back(client: App, kw: RunKw, pool: str) -> None:
    worker = kw("run", "-A", "toy", "-P", pool)
    before = client.send_task("look").get(timeout=10)
    pid = client.send_task("mess").get(timeout=10)

    seen = []
    while not seen or seen[-1][3] != pid:
        seen.append(client.send_task("look").get(timeout=10))

    assert seen[-1][:3] == before[:3]
    assert "a task has changed the umask and the working directory and signal handlers of its process" in worker.output


def test_time_limits_work_after_a_task_that_ignored_signals(client: App, kw: RunKw) -> None:
    kw("run", "-A", "toy", "-c", "1")
    client.send_task("mess").get(timeout=10)

    result = client.send_task("limited")

    assert "SoftTimeLimitExceeded" in repr(result.get(timeout=5, propagate=False))


@pytest.mark.parametrize("task", ["fork", "leave", "shout"])
def test_what_tasks_leave_behind_does_not_hurt(client: App, kw: RunKw, task: str) -> None:
    worker = kw("run", "-A", "toy", "-c", "1")

    for _ in range(3):
        assert client.send_task(task).get(timeout=10) is None
    first, second = (client.send_task("look").get(timeout=10) for _ in range(2))

    assert first[3] == second[3]
    assert worker.stop() == 0


def test_task_loggers_and_printed_lines_name_their_task(client: App, kw: RunKw, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(APP.replace("SETTINGS", "{'worker_redirect_stdouts': True}"))
    kw("run", "-A", "toy", "-c", "1", "-l", "info", "-f", "kw.log")

    task_id = client.send_task("say").id
    log = tmp_path / "kw.log"
    eventually(lambda: "succeeded" in log.read_text(), within_s=10)

    lines = log.read_text().splitlines()
    for text in ("said aloud", "second", "unfinished", "logged 1"):
        assert sum(line.endswith(f"WARNING/{_pid(line)}] say[{task_id}]: {text}") for line in lines) == 1, text
    assert any(line.endswith(f"say[{task_id}]: wrong") for line in lines)
    assert "ZeroDivisionError: division by zero" in lines
    assert f"[{task_id}] succeeded" in [line for line in lines if task_id in line][-1]


def _pid(line: str) -> str:
    return line.partition("/")[2].partition("]")[0]


def test_json_log_has_one_object_per_line(client: App, kw: RunKw, tmp_path: Path) -> None:
    kw("run", "-A", "toy", "-c", "1", "-n", "w1@here", "-l", "info", "-f", "kw.log", "--log-format", "json")

    task_id = client.send_task("say").id
    log = tmp_path / "kw.log"
    eventually(lambda: "succeeded" in log.read_text(), within_s=10)

    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {entry["node"] for entry in entries} == {"w1@here"}
    assert all(entry.keys() >= {"time", "level", "pid", "logger", "message"} for entry in entries)
    ours = [entry for entry in entries if entry.get("task_id") == task_id]
    assert {entry["task_name"] for entry in ours} == {"say"}
    logged = next(entry for entry in ours if entry["message"] == "logged 1")
    assert (logged["level"], logged["logger"]) == ("WARNING", "kernel_app.task.toy")
    wrong = next(entry for entry in ours if entry["message"] == "wrong")
    assert wrong["exception"].endswith("ZeroDivisionError: division by zero")
    assert len({entry["pid"] for entry in entries}) == 2


def test_each_process_may_have_a_log_of_its_own(client: App, kw: RunKw, tmp_path: Path) -> None:
    kw("run", "-A", "toy", "-c", "2", "-n", "w1@here", "-l", "info", "-f", "%n%I.log")

    for _ in range(6):
        client.send_task("look").get(timeout=10)

    def names() -> set[str]:
        return {path.name for path in tmp_path.glob("w1*.log")}

    eventually(lambda: names() == {"w1.log", "w1-1.log", "w1-2.log"}, message=lambda: f"log files: {names()}")
    assert "succeeded" in (tmp_path / "w1-1.log").read_text() + (tmp_path / "w1-2.log").read_text()
    assert "succeeded" not in (tmp_path / "w1.log").read_text()


def test_unknown_key_in_a_log_file_is_refused(client: App, kw: RunKw) -> None:
    worker = kw("run", "-A", "toy", "-f", "%x.log", ready=False)

    assert worker.wait() == 2
    assert "unknown key '%x'" in worker.output


def test_what_a_thread_prints_while_another_one_logs_is_not_lost() -> None:
    """Cause: one flag for all threads told that a handler of the log prints, and what that prints is left out."""
    printed = PrintedLines(None, logging.WARNING)
    other = threading.Thread(target=printed.write, args=("second\n",))
    lines: list[str] = []

    class Handler(logging.Handler):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.getMessage() == "first":
                printed.write("of the handler itself\n")
                other.start()
                other.join(10)
            return True

        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Handler()
    logging.getLogger(PRINTED_LOGGER).addHandler(handler)
    try:
        printed.write("first\n")
    finally:
        logging.getLogger(PRINTED_LOGGER).removeHandler(handler)

    assert lines == ["second", "first"]
