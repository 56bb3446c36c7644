"""The table of remote-control commands: names, permissions and arguments are checked here, once.

Loop thread. How commands come in and replies go out is the business of a plugin (`kw_control_step`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from .drivers import ControlCommand, Permission
from .errors import PluginError

log = logging.getLogger("kernel_worker.control")

_LEVELS = {Permission.READ: 0, Permission.OPERATE: 1, Permission.DESTROY: 2}


class ControlTable:
    """Commands by name. `permission` is the highest one that is obeyed."""

    def __init__(self, permission: Permission = Permission.READ) -> None:
        self.permission = permission
        self.commands: dict[str, ControlCommand] = {}

    def add(self, commands: Iterable[ControlCommand]) -> None:
        """Register commands.

        :raises PluginError: two commands of one name.
        """
        for command in commands:
            for name in (command.name, *command.aliases):
                if name in self.commands:
                    raise PluginError(
                        f"two remote-control commands are named {name!r}", hint="select one of their plugins"
                    )
                self.commands[name] = command

    def call(self, context: Any, name: str, arguments: Mapping[str, Any]) -> Any:
        """The reply of one command; whatever goes wrong is a reply {"error": text}, never an exception."""
        command = self.commands.get(name)
        if command is None:
            return {"error": f"unknown command {name!r:.80}"}
        if _LEVELS[command.permission] > _LEVELS[self.permission]:
            log.warning(
                "command %s refused: needs %s", command.name, command.permission.value, extra={"action": "denied"}
            )
            return {"error": f"{command.name} needs the permission {command.permission.value!r}"}
        for key, value in arguments.items():
            kind = command.arguments.get(key)
            if kind is None:
                return {"error": f"{command.name} has no argument {key!r:.80}"}
            if not _fits(value, kind):
                return {"error": f"{command.name}: {key} must be {kind.__name__}, not {type(value).__name__}"}
        begun = time.monotonic()
        try:
            return command.handler(context, **arguments)
        except Exception as error:  # the boundary of commands: the caller gets the text
            log.exception("command %s failed", command.name, extra={"action": "command_failed"})
            return {"error": f"{type(error).__name__}: {error}"}
        finally:
            if (took := time.monotonic() - begun) > command.deadline_s:
                log.warning("command %s took %.1f s", command.name, took, extra={"action": "command_slow"})


def _fits(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a kind; a truth value is no number, a whole number is a number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (kind is float and isinstance(value, int))
