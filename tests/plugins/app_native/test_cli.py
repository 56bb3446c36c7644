"""`kw call` and `kw result`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kernel_app import App
from kernel_app.cli import call, result
from kernel_app.commands import kw_commands

APPLICATION = """
from kernel_app import App
app = App("demo")

@app.task(name="add", queue="sums")
def add(x, y):
    return x + y
"""


@pytest.fixture(autouse=True)
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("KW_APP", "KW_BROKER", "KW_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def waiting(url: str, queue: str) -> list[dict[str, Any]]:
    """Envelopes waiting in the embedded broker."""
    from kernel_broker_sqlite import SqliteBroker
    from kernel_worker.drivers import BrokerContext
    from kernel_worker.types import QueueSpec

    broker = SqliteBroker(BrokerContext(url, queues=(QueueSpec(queue),)))
    broker.connect()
    broker.declare([QueueSpec(queue)])
    found = [json.loads(delivery.raw) for delivery in broker.fetch(10, 0.0)]
    broker.close()
    return found


def test_commands_are_contributed() -> None:
    assert [(command.name, command.target) for command in kw_commands()] == [
        ("call", "kernel_app.cli:call"),
        ("result", "kernel_app.cli:result"),
    ]


def test_call_sends_by_name_alone() -> None:
    sent = run(
        call, "add", "-a", "[2, 3]", "-k", '{"z": 1}', "-b", "sqlite:///other.db", "--queue", "q",
        "--countdown", "60", "--expires", "120",
    )  # fmt: skip

    assert (sent.exit_code, sent.stderr) == (0, "")
    from kernel_broker_sqlite import SqliteBroker
    from kernel_worker.drivers import BrokerContext

    broker = SqliteBroker(BrokerContext("sqlite:///other.db"))
    broker.connect()
    size = broker.size("q")
    broker.close()
    assert size.waiting + size.parked == 1


def test_call_uses_the_application(workdir: Path) -> None:
    (workdir / "cli_demo_tasks.py").write_text(APPLICATION)

    sent = run(call, "add", "-a", "[2, 3]", "-A", "cli_demo_tasks")

    assert sent.exit_code == 0
    (envelope,) = waiting("sqlite:///kw.db", "sums")
    assert envelope["headers"]["id"] == sent.output.strip()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["-a", "{"], 2, "--args must be a JSON list"),
        (["-a", "{}"], 2, "--args must be a JSON list"),
        (["-k", "[]"], 2, "--kwargs must be a JSON object"),
        (["-A", "no_such_module"], 2, "No module named 'no_such_module'"),
        (["-A", "json"], 2, "no kernel_app.App"),
        (["--eta", "soon"], 2, "isoformat"),
        (["-b", "nope://u:secret@h"], 2, "pip install kernel-broker-nope"),
        (["-b", "sqlite:////no/such/folder/kw.db"], 69, "cannot be reached"),
        (["--serializer", "nope"], 2, "no serializer 'nope'"),
    ],
)
def test_mistakes_of_call_are_told(arguments: list[str], code: int, text: str) -> None:
    ended = run(call, "add", *arguments)

    assert (ended.exit_code, text in ended.output, "secret" in ended.output) == (code, True, False), ended.output
    assert "Traceback" not in ended.output


def stored(state: str, value: Any) -> str:
    app = App("x", result_backend="sqlite:///kw.db")
    app.store_state("i", state, value)
    app.close()
    return "i"


def test_result_prints_json() -> None:
    ended = run(result, stored("SUCCESS", {"a": [1, "é"]}), "--timeout", "1")

    assert (ended.exit_code, json.loads(ended.output)) == (0, {"a": [1, "é"]})


def test_result_tells_of_a_failure() -> None:
    ended = run(result, stored("FAILURE", ValueError("boom\x1b")))

    assert (ended.exit_code, ended.output) == (1, "FAILURE: ValueError: boom\\x1b\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [([], "PENDING: not ready"), (["--timeout", "0.01"], "no result of task x within 0.01 s")],
)
def test_result_that_is_not_there_is_told(arguments: list[str], text: str) -> None:
    ended = run(result, "x", *arguments)

    assert (ended.exit_code, text in ended.output) == (1, True)


def test_result_shows_a_state_of_its_own() -> None:
    ended = run(result, stored("PROGRESS", {"done": 3}))

    assert (ended.exit_code, ended.output) == (1, 'PROGRESS: not ready: {"done": 3}\n')


def test_environment_names_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KW_RESULT_BACKEND", "sqlite:////no/such/folder/kw.db")
    ended = run(result, "x")

    assert (ended.exit_code, "cannot be reached" in ended.output) == (69, True)
