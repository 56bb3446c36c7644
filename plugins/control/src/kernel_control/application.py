"""The commands of the application: described by `AppInfo.commands`, run in its executors. Loop thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kernel_worker import ControlCommand, Permission
from kernel_worker.control import Pending

if TYPE_CHECKING:
    from kernel_worker import ControlContext

_KINDS: Mapping[str, type] = {kind.__name__: kind for kind in (str, int, float, bool, list, dict, object)}


def application_commands(commands: Mapping[str, Mapping[str, Any]]) -> list[ControlCommand]:
    """The commands of the application: their handlers run in its executors, not here.

    :param commands: `AppInfo.commands`.
    """
    return [_application_command(name, about) for name, about in commands.items()]


def _application_command(name: str, about: Mapping[str, Any]) -> ControlCommand:
    def ask(context: ControlContext, **arguments: Any) -> Pending:
        pending = Pending()
        context.operations.call_application(name, arguments, pending.done)
        return pending

    kinds = {argument: _KINDS.get(kind, object) for argument, kind in about["arguments"].items()}
    return ControlCommand(
        name, ask, Permission(about["permission"]), kinds, about["help"], variadic=about.get("variadic", "")
    )
