"""`kw inspect`, `kw control` and `kw status`: tables, JSON, who was silent, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Cli, Site

NOBODY, SOME, ERROR, USAGE = 69, 3, 1, 2

on_redis = pytest.mark.parametrize("site", ["redis"], indirect=True)
"""What is printed does not depend on the broker."""


@on_redis
def test_status_lists_who_answers(site: Site, cli: Cli) -> None:
    run = cli("status", "-b", site.broker, "-t", "10")  # as soon as everybody who heard it has answered

    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{site.node}: OK\n\n1 node online.\n"


@on_redis
def test_json_is_one_document(site: Site, cli: Cli) -> None:
    run = cli("inspect", "-j", "-b", site.broker, "-d", site.node, "-t", "10", "ping")

    assert json.loads(run.stdout) == {site.node: {"ok": "pong"}}


@on_redis
def test_lists_of_objects_are_tables(site: Site, cli: Cli) -> None:
    run = cli("inspect", "-b", site.broker, "-d", site.node, "-t", "10", "active_queues")

    head, row = run.stdout.splitlines()[1:3]
    assert head.split() == ["NAME", "ROUTING_KEY"]
    assert row.split()[0].endswith("-control")


def test_who_did_not_answer_is_named(site: Site, cli: Cli) -> None:
    run = cli("inspect", "-b", site.broker, "-d", f"{site.node},gone@site", "-t", "2", "ping")

    assert run.returncode == SOME
    assert "1 of 2 nodes answered." in run.stdout
    assert run.stderr == "kw: 1 did not answer: gone@site\n"


@on_redis
def test_nobody_is_told_with_an_exit_code(site: Site, cli: Cli) -> None:
    run = cli("inspect", "-b", site.broker, "-d", "gone@site", "-t", "0.3", "ping")

    assert (run.returncode, run.stdout) == (NOBODY, "")
    assert run.stderr == "kw: no worker answered in time: gone@site\n"


@on_redis
def test_an_error_of_a_worker_is_an_exit_code(site: Site, cli: Cli) -> None:
    run = cli("control", "-b", site.broker, "-d", site.node, "-t", "10", "time_limit", "nosuch", "1", "2")

    assert run.returncode == ERROR
    assert "ERROR\n    unknown task" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("inspect", "-b", "redis://127.0.0.1:1", "pool_grow"), "kw control pool_grow"),
        (("control", "-b", "redis://127.0.0.1:1", "ping"), "kw inspect ping"),
        (("control", "-b", "redis://127.0.0.1:1", "pool_grow", "many"), "n must be int, not 'many'"),
        (("control", "-b", "redis://127.0.0.1:1", "pool_grow", "1", "2"), "'2' is too much"),
        (("inspect", "-A", "nosuchmodule", "ping"), "nosuchmodule"),
    ],
)
def test_mistakes_are_told_in_one_line(cli: Cli, arguments: tuple[str, ...], text: str) -> None:
    run = cli(*arguments)

    assert run.returncode == USAGE
    assert text in run.stderr.splitlines()[0]
    assert "Traceback" not in run.stderr


@on_redis
def test_an_unknown_command_is_told_with_the_nearest(site: Site, cli: Cli) -> None:
    run = cli("inspect", "-b", site.broker, "pnig")

    assert run.returncode == USAGE
    assert "Did you mean 'ping'?" in run.stderr


def test_a_broker_that_is_away_is_told_without_its_password(cli: Cli) -> None:
    run = cli("status", "-b", "redis://:hushhush@127.0.0.1:1/0")

    assert run.returncode == NOBODY
    assert "127.0.0.1:1" in run.stderr
    assert "hushhush" not in run.stderr


def test_help_lists_the_commands(cli: Cli) -> None:
    assert "active_queues" in cli("inspect", "--help").stdout
    assert "pool_grow n" in cli("control", "--help").stdout
    assert "shutdown" in cli("control", "--list").stdout


@on_redis
def test_revoke_takes_several_ids(site: Site, cli: Cli) -> None:
    run = cli("control", "-j", "-b", site.broker, "-d", site.node, "-t", "10", "revoke", "id-1", "id-2")

    assert "id-1" in run.stdout
    assert "id-2" in run.stdout


@on_redis
def test_the_broker_of_the_settings_file_is_asked(site: Site, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "kw.toml").write_text(f'[worker]\nbroker = "{site.broker}"\n')

    run = cli("status", "-t", "10", folder=tmp_path)

    assert run.returncode == 0, run.stderr
    assert f"{site.node}: OK" in run.stdout
