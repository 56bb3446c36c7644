"""Commands: names, permissions and arguments are checked before a handler runs; the answer is never an exception."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kernel_worker.control import ControlTable
from kernel_worker.drivers import ControlCommand, Permission
from kernel_worker.errors import PluginError


def _echo(context: Any, **arguments: Any) -> dict[str, Any]:
    return {"context": context, **arguments}


def _broken(context: Any) -> None:
    raise LookupError("not there")


def _refusing(context: Any, seconds: float) -> None:
    raise ValueError("seconds must be positive")


COMMANDS = [
    ControlCommand("echo", _echo, arguments={"text": str, "count": int, "rate": float, "flag": bool}, aliases=("say",)),
    ControlCommand("broken", _broken),
    ControlCommand("refusing", _refusing, arguments={"seconds": float}),
    ControlCommand("grow", _echo, Permission.OPERATE, arguments={"count": int}),
    ControlCommand("shutdown", _echo, Permission.DESTROY),
]


def _table(permission: Permission = Permission.READ) -> ControlTable:
    table = ControlTable(permission)
    table.add(COMMANDS)
    return table


def test_a_command_gets_context_and_arguments() -> None:
    assert _table().call("ctx", "echo", {"text": "hello"}) == {"context": "ctx", "text": "hello"}


def test_an_alias_is_the_same_command() -> None:
    assert _table().call("ctx", "say", {}) == {"context": "ctx"}


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("echoo", {}, "unknown command 'echoo'"),
        ("echo", {"txt": "x"}, "echo has no argument 'txt'"),
        ("echo", {"text": 5}, "echo: text must be str, not int"),
        ("echo", {"count": "5"}, "echo: count must be int, not str"),
        ("echo", {"count": True}, "echo: count must be int, not bool"),
        ("echo", {"count": 1.5}, "echo: count must be int, not float"),
        ("echo", {"rate": False}, "echo: rate must be float, not bool"),
        ("echo", {"flag": 1}, "echo: flag must be bool, not int"),
        ("broken", {}, "LookupError: not there"),
        ("refusing", {"seconds": -1.0}, "ValueError: seconds must be positive"),
    ],
    ids=[
        "unknown command",
        "unknown argument",
        "number for text",
        "text for number",
        "truth for number",
        "fraction for whole number",
        "truth for fraction",
        "number for truth",
        "handler fails",
        "handler refuses",
    ],
)
def test_what_goes_wrong_is_a_reply(name: str, arguments: dict[str, Any], error: str) -> None:
    assert _table().call("ctx", name, arguments) == {"error": error}


def test_a_whole_number_is_a_number_with_a_fraction_too() -> None:
    """JSON has one kind of number: a client's 5.0 may arrive as 5."""
    assert _table().call("ctx", "echo", {"rate": 5}) == {"context": "ctx", "rate": 5}


def test_untrusted_names_are_cut_in_replies() -> None:
    reply = _table().call("ctx", "x" * 10_000, {})

    assert len(reply["error"]) < 120


@pytest.mark.parametrize(
    ("granted", "obeyed"),
    [
        (Permission.READ, ["echo"]),
        (Permission.OPERATE, ["echo", "grow"]),
        (Permission.DESTROY, ["echo", "grow", "shutdown"]),
    ],
    ids=["read", "operate", "destroy"],
)
def test_a_permission_includes_the_lower_ones(granted: Permission, obeyed: list[str]) -> None:
    table = _table(granted)

    answers = {name: table.call("ctx", name, {}) for name in ("echo", "grow", "shutdown")}

    assert [name for name, answer in answers.items() if answer == {"context": "ctx"}] == obeyed
    assert all("needs the permission" in answer["error"] for name, answer in answers.items() if name not in obeyed)


def test_a_refused_command_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _table().call("ctx", "shutdown", {})

    assert "command shutdown refused: needs destroy" in caplog.text


@pytest.mark.parametrize("name", ["echo", "say"])
def test_two_commands_of_one_name_are_refused(name: str) -> None:
    table = _table()

    with pytest.raises(PluginError, match=f"two remote-control commands are named {name!r}"):
        table.add([ControlCommand(name, _echo)])


def test_a_slow_command_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    table = ControlTable()
    table.add([ControlCommand("slow", _echo, deadline_s=0.0)])

    with caplog.at_level(logging.WARNING):
        table.call("ctx", "slow", {})

    assert "command slow took" in caplog.text
