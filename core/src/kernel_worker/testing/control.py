"""The control command contract: a command is declared well enough to be checked, and answers in time.

class TestQueueAge(ControlContract):
    @pytest.fixture
    def command(self):
        return queue_age_command

    @pytest.fixture
    def arguments(self):
        return {"queue": "celery"}
"""

from __future__ import annotations

import inspect
import json
import re
import time
from typing import Any

import pytest

from ..control import ControlTable
from ..drivers import ControlCommand, Permission
from .contract import Contract

_WRONG = {str: 7, int: "seven", float: "seven", bool: "yes", list: "no list", dict: "no dict"}


class ControlContract(Contract, suite=True):
    """What every remote-control command does. Derive from it and give `command`."""

    @pytest.fixture
    def command(self) -> ControlCommand:
        """To be given by the plugin."""
        raise NotImplementedError("a control command's test class gives a fixture command")

    @pytest.fixture
    def arguments(self) -> dict[str, Any]:
        """Arguments with which the command succeeds; a plugin gives those its command needs."""
        return {}

    @pytest.fixture
    def context(self) -> Any:
        """What the handler gets as its first argument; a plugin whose command looks at it gives one."""
        return None

    @pytest.fixture
    def table(self, command: ControlCommand) -> ControlTable:
        """A table that obeys everything and holds just this command."""
        table = ControlTable(Permission.DESTROY)
        table.add([command])
        return table

    def test_declares_name_help_and_permission(self, command: ControlCommand) -> None:
        for name in (command.name, *command.aliases):
            assert re.fullmatch(r"[a-z][a-z0-9_]*", name), f"{name!r} is no name of a command"
        assert command.help.strip(), "a command says in a line what it does"
        assert isinstance(command.permission, Permission)
        assert 0 < command.deadline_s <= 10

    def test_handler_takes_exactly_the_declared_arguments(self, command: ControlCommand) -> None:
        parameters = list(inspect.signature(command.handler).parameters.values())[1:]
        named = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
        mandatory = {
            each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD
        }

        assert all(isinstance(kind, type) for kind in command.arguments.values())
        assert mandatory <= set(command.arguments)
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            assert named == set(command.arguments)

    def test_reply_is_json(self, table: ControlTable, command: ControlCommand, context: Any, arguments: Any) -> None:
        reply = table.call(context, command.name, arguments)

        assert not (isinstance(reply, dict) and "error" in reply), reply
        assert json.loads(json.dumps(reply)) == reply, "a reply is the same after JSON: no tuples, no numbers as keys"

    def test_answers_within_its_deadline(
        self, table: ControlTable, command: ControlCommand, context: Any, arguments: Any
    ) -> None:
        began = time.monotonic()

        table.call(context, command.name, arguments)

        assert time.monotonic() - began < command.deadline_s

    def test_every_alias_answers(
        self, table: ControlTable, command: ControlCommand, context: Any, arguments: Any
    ) -> None:
        for alias in command.aliases:
            reply = table.call(context, alias, arguments)
            assert not (isinstance(reply, dict) and "error" in reply), reply

    def test_unknown_argument_is_refused(
        self, table: ControlTable, command: ControlCommand, context: Any, arguments: Any
    ) -> None:
        reply = table.call(context, command.name, {**arguments, "no_such_argument": 1})

        assert "no_such_argument" in reply["error"]

    def test_mistyped_argument_is_refused(
        self, table: ControlTable, command: ControlCommand, context: Any, arguments: Any
    ) -> None:
        for name, kind in command.arguments.items():
            if kind in _WRONG:
                reply = table.call(context, command.name, {**arguments, name: _WRONG[kind]})
                assert name in reply["error"]
