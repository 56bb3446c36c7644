"""Commands: names, permissions and arguments are checked before a handler runs; the answer is never an exception."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kernel_worker.control import ControlTable, Pending, control_command
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


def test_a_missing_argument_is_named() -> None:
    assert _table().call(None, "refusing", {}) == {"error": "refusing needs the argument 'seconds'"}


def test_null_stands_for_an_optional_argument_left_out_and_for_nothing_else() -> None:
    table = ControlTable()
    table.add([ControlCommand("limit", lambda context, task, soft=None: soft, arguments={"task": str, "soft": float})])

    assert table.call(None, "limit", {"task": "x", "soft": None}) is None
    assert "task must be str" in table.call(None, "limit", {"task": None})["error"]


@pytest.mark.parametrize("value", [None, 1, "x", [1], {"a": 1}, True])
def test_object_takes_anything(value: Any) -> None:
    table = ControlTable()
    table.add([ControlCommand("take", lambda context, value: {"got": value}, arguments={"value": object})])

    assert table.call(None, "take", {"value": value}) == {"got": value}


def test_a_table_without_permission_obeys_nothing() -> None:
    table = ControlTable(None)
    table.add(COMMANDS)

    assert "permission" in table.call(None, "echo", {})["error"]


def test_the_decorator_takes_name_and_help_from_the_function() -> None:
    @control_command(permission=Permission.OPERATE, args={"n": int}, aliases=["more"])
    def grow(context: Any, n: int = 1) -> int:
        """Make it larger.

        By so many.
        """
        return n + 1

    assert (grow.name, grow.help, grow.aliases) == ("grow", "Make it larger.", ("more",))
    table = ControlTable(Permission.OPERATE)
    table.add([grow])
    assert table.call(None, "more", {"n": 2}) == 3


def test_a_pending_reply_reaches_who_waits_whichever_comes_first() -> None:
    early, late, got = Pending(), Pending(), []

    early.done(1)
    early.then(got.append)
    late.then(got.append)
    late.done(2)
    late.done(3)

    assert got == [1, 2]
