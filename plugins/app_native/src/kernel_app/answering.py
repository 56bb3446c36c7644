"""Remote-control commands of an application: what `@app.control_command` makes. Runs in executors, on any thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PERMISSIONS = ("read", "operate", "destroy")
KINDS = ("str", "int", "float", "bool", "list", "dict", "object")


@dataclass(frozen=True, slots=True)
class AppCommand:
    """One command.

    :param arguments: name to the name of its type.
    """

    name: str
    function: Callable[..., Any]
    permission: str
    arguments: Mapping[str, str]
    variadic: str
    help: str

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        name: str,
        permission: str,
        args: Mapping[str, type],
        variadic: str,
        help: str,
    ) -> AppCommand:
        """Made of a function; see `App.control_command`."""
        name = name or function.__name__
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of a command: small letters, digits and underscores")
        if permission not in PERMISSIONS:
            raise ValueError(f"permission {permission!r} is none of {', '.join(PERMISSIONS)}")
        kinds = {argument: kind.__name__ for argument, kind in args.items()}
        if strange := [kind for kind in kinds.values() if kind not in KINDS]:
            raise ValueError(f"an argument of type {strange[0]} cannot come as JSON (types: {', '.join(KINDS)})")
        about = help or (function.__doc__ or "").strip().partition("\n")[0]
        return cls(name, function, permission, kinds, variadic, about)

    def described(self) -> dict[str, Any]:
        """What the kernel is told of it."""
        return {
            "permission": self.permission,
            "arguments": dict(self.arguments),
            "variadic": self.variadic,
            "help": self.help,
        }
