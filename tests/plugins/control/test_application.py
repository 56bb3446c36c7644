"""Commands of the application itself: they run in an executor, beside tasks, and have a deadline."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_app import App
from kernel_worker.testing import eventually

from .conftest import Cli, Site

APPLICATION = """
import os
import time

from kernel_app import App

app = App("proj")


@app.task
def burn(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@app.control_command(args={"key": str})
def cached(key="all"):
    "Entries of a cache."
    return {"ok": key, "pid": os.getpid()}


@app.control_command(permission="operate", args={"seconds": float})
def slow(seconds):
    time.sleep(seconds)
    return "late"


@app.control_command()
def broken():
    raise LookupError("not there")


@app.control_command()
def strange():
    return object()


@app.control_command()
def leaving():
    raise SystemExit(3)
"""


@pytest.fixture
def proj(own_site: Site) -> Site:
    """A worker of this application, with one process."""
    from kernel_worker.testing import WorkerProcess

    (own_site.folder / "proj.py").write_text(APPLICATION)
    worker = WorkerProcess(
        ["run", "-A", "proj", "-b", own_site.broker, "-c", "1", "-n", own_site.node, "--control", "operate"],
        cwd=own_site.folder,
    )
    own_site.workers.append(worker)
    worker.wait_until_ready()
    eventually(lambda: own_site.app.control.ping(timeout=0.5, limit=1), within_s=10)
    return own_site


def test_a_command_of_the_application_runs_in_an_executor(proj: Site) -> None:
    reply = proj.ask("cached", key="users")

    assert reply["ok"] == "users"
    assert reply["pid"] in proj.ask("stats")["pool"]["processes"]


def test_it_answers_while_a_task_computes(proj: Site) -> None:
    proj.app.send_task("proj.burn", (30,))
    eventually(lambda: proj.ask("active") != [], within_s=5)

    eventually(lambda: proj.ask("cached").get("ok") == "all", within_s=10)
    assert proj.ask("active") != []


def test_what_takes_too_long_or_goes_wrong_is_answered_with_an_error(proj: Site) -> None:
    assert "no answer" in proj.ask("slow", seconds=5.0)["error"]
    assert proj.ask("broken") == {"error": "LookupError: not there"}
    assert "JSON" in proj.ask("strange")["error"]
    assert "SystemExit" in proj.ask("leaving")["error"]
    assert "must be str" in proj.ask("cached", key=7)["error"]
    assert proj.ask("cached")["ok"] == "all"


def test_the_command_line_asks_workers_for_what_is_not_installed(proj: Site, cli: Cli) -> None:
    run = cli("inspect", "-b", proj.broker, "-t", "10", "cached", "users")

    assert run.returncode == 0, run.stderr
    assert "users" in run.stdout


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "Bad-Name"}, "no name of a command"),
        ({"name": "x", "permission": "all"}, "none of read, operate, destroy"),
        ({"name": "x", "args": {"path": Path}}, "cannot come as JSON"),
    ],
)
def test_impossible_commands_are_refused_where_they_are_defined(options: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        App("x").control_command(**options)(lambda: None)  # type: ignore[arg-type]
