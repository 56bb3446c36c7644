"""The table of remote-control commands: names, permissions and arguments are checked here, once.

Loop thread. How commands come in and replies go out is the business of a plugin (`kw_control_step`).
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .drivers import ControlCommand, Permission
from .errors import PluginError

if TYPE_CHECKING:
    from .clock import Clock
    from .config import Config
    from .operations import Operations
    from .worker import Worker

log = logging.getLogger("kernel_worker.control")

LEVELS = {Permission.READ: 0, Permission.OPERATE: 1, Permission.DESTROY: 2}
NO_REPLY = object()
"""Returned by a handler whose command is not answered at all, as Celery's `shutdown`."""


class Pending:
    """A reply that comes later. Loop thread."""

    __slots__ = ("_callback", "_reply")

    def __init__(self) -> None:
        self._callback: Callable[[Any], object] | None = None
        self._reply: Any = NO_REPLY

    def done(self, reply: Any) -> None:
        """This is it; the first one counts."""
        if self._reply is NO_REPLY:
            self._reply = reply
            if self._callback is not None:
                self._callback(reply)

    def then(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(reply)` when it is there."""
        self._callback = callback
        if self._reply is not NO_REPLY:
            callback(self._reply)


class ControlContext:
    """What a command's handler gets as its first argument. Loop thread.

    :ivar worker: the whole worker; prefer `operations`.
    :ivar operations: what can be asked and done while the worker runs.
    :ivar clock: the node's logical clock.
    """

    __slots__ = ("clock", "operations", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.operations: Operations = worker.operations
        self.clock: Clock = worker.clock

    @property
    def node(self) -> str:
        """The worker's node name."""
        return self.worker.node

    @property
    def config(self) -> Config:
        """The configuration, the application's settings included."""
        return self.worker.config


def control_command(
    name: str = "",
    *,
    permission: Permission = Permission.READ,
    args: Mapping[str, type] | None = None,
    help: str = "",
    deadline_s: float = 1.0,
    aliases: Iterable[str] = (),
    variadic: str = "",
) -> Callable[[Callable[..., Any]], ControlCommand]:
    """Make a remote-control command of a function `f(context, **arguments)`; see `ControlCommand`.

        @control_command(permission=Permission.READ, args={"queue": str})
        def queue_age(context, queue="celery"):
            "Age of the oldest message, in seconds."
            return {"ok": ages[queue]}

    :param name: default: the function's.
    :param args: name to type, in the order of the command line; `object` takes anything.
    :param help: default: the first line of the docstring.
    :param variadic: the argument that takes all further words of a command line, as a list.
    """

    def decorate(function: Callable[..., Any]) -> ControlCommand:
        about = help or (inspect.getdoc(function) or "").partition("\n")[0]
        return ControlCommand(
            name or function.__name__,
            function,
            permission,
            dict(args or {}),
            about,
            deadline_s,
            tuple(aliases),
            variadic,
        )

    return decorate


class ControlTable:
    """Commands by name. `permission` is the highest one that is obeyed; None: no command is."""

    def __init__(self, permission: Permission | None = Permission.READ) -> None:
        self.permission = permission
        self.commands: dict[str, ControlCommand] = {}
        self._required: dict[str, frozenset[str]] = {}
        self._promised: frozenset[str] = frozenset()
        self._load: Callable[[], Iterable[ControlCommand]] = tuple

    def promise(self, names: Iterable[str], load: Callable[[], Iterable[ControlCommand]]) -> None:
        """Name commands whose modules are not imported yet: nobody asks for them before the worker is ready.

        :param load: imports them; called once, by `load`.
        """
        self._promised, self._load = frozenset(names), load

    def load(self) -> None:
        """Import what was promised. Idempotent; by the one who listens, before the first command, on any one thread.

        :raises PluginError: a module cannot be imported, or two commands have one name.
        """
        load, self._load, self._promised = self._load, tuple, frozenset()
        self.add(load())

    def add(self, commands: Iterable[ControlCommand]) -> None:
        """Register commands.

        :raises PluginError: two commands of one name.
        """
        for command in commands:
            for name in (command.name, *command.aliases):
                if name in self.commands or name in self._promised:
                    raise PluginError(
                        f"two remote-control commands are named {name!r}", hint="select one of their plugins"
                    )
                self.commands[name] = command

    def call(self, context: Any, name: str, arguments: Mapping[str, Any]) -> Any:
        """The reply of one command; whatever goes wrong is a reply {"error": text}, never an exception."""
        command = self.commands.get(name)
        if command is None:
            return {"error": f"unknown command {name!r:.80}"}
        if refusal := self._refusal(command, arguments):
            return {"error": refusal}
        begun = time.monotonic()
        try:
            return command.handler(context, **arguments)
        except ValueError as error:  # the caller's mistake, told by the handler
            return {"error": f"ValueError: {error}"}
        except Exception as error:  # the boundary of commands: the caller gets the text
            log.exception("command %s failed", command.name, extra={"action": "command_failed"})
            return {"error": f"{type(error).__name__}: {error}"}
        finally:
            if (took := time.monotonic() - begun) > command.deadline_s:
                log.warning("command %s took %.1f s", command.name, took, extra={"action": "command_slow"})

    def _refusal(self, command: ControlCommand, arguments: Mapping[str, Any]) -> str:
        """Why a command is not carried out; "" when it is."""
        if self.permission is None or LEVELS[command.permission] > LEVELS[self.permission]:
            needed = command.permission.value
            log.warning("command %s refused: needs %s", command.name, needed, extra={"action": "denied"})
            return f"{command.name} needs the permission {needed!r} (kw run --control {needed})"
        required = self._required.get(command.name)
        if required is None:
            required = self._required[command.name] = _required(command.handler)
        for key, value in arguments.items():
            kind = command.arguments.get(key)
            if kind is None:
                return f"{command.name} has no argument {key!r:.80}"
            if not fits(value, kind) and (value is not None or key in required):
                return f"{command.name}: {key} must be {kind.__name__}, not {type(value).__name__}"
        missing = sorted(required - arguments.keys())
        return f"{command.name} needs the argument {missing[0]!r}" if missing else ""


def fits(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a kind; a truth value is no number, a whole number is a number."""
    if kind is object or isinstance(value, bool):
        return kind in (object, bool)
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def _required(handler: Callable[..., Any]) -> frozenset[str]:
    """Names of the arguments a handler cannot do without; the context is none of them."""
    parameters = list(inspect.signature(handler).parameters.values())[1:]
    return frozenset(
        each.name
        for each in parameters
        if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    )
