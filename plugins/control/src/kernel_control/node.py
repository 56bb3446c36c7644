"""Commands about the node itself: life, clock, settings, memory."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from typing import Any

from kernel_worker import ControlContext, Permission, Secret, control_command
from kernel_worker.control import NO_REPLY

HIDDEN = "********"
_SECRET = re.compile(r"API|TOKEN|KEY|SECRET|PASS|SIGNATURE|DATABASE|CREDENTIAL", re.IGNORECASE)
"""Names whose values are never shown: Celery's words. Routing keys are no secrets, and masked by Celery all the same."""
_MAX_PEER_IDS = 50_000


@control_command()
def ping(context: ControlContext) -> dict[str, str]:
    """Whether the worker is there."""
    return {"ok": "pong"}


@control_command()
def commands(context: ControlContext) -> dict[str, Any]:
    """The commands of this worker, those of its plugins and its application included."""
    table = context.worker.control
    return {
        name: {
            "permission": command.permission.value,
            "arguments": {key: kind.__name__ for key, kind in command.arguments.items()},
            "variadic": command.variadic,
            "help": command.help,
        }
        for name, command in sorted(table.commands.items())
        if name == command.name
    }


@control_command()
def clock(context: ControlContext) -> dict[str, int]:
    """The logical clock."""
    return {"clock": context.clock.value}


@control_command(args={"from_node": str, "revoked": object})
def hello(context: ControlContext, from_node: str, revoked: Any = None) -> dict[str, Any] | None:
    """A worker that starts asks the others what it missed."""
    if from_node == context.node:
        return None
    ids = list(revoked) if isinstance(revoked, (list, dict)) else []
    allowed = context.worker.control.permission is not Permission.READ
    if allowed and ids:
        context.operations.merge_revoked([each for each in ids[:_MAX_PEER_IDS] if isinstance(each, str)])
    return {"revoked": context.operations.revoked_ids(), "clock": context.clock.forward()}


@control_command(permission=Permission.OPERATE, args={"id": str, "topic": str, "action": object})
def election(context: ControlContext, id: str, topic: str, action: Any = None) -> None:
    """Understood, and left to others: this worker never stands for election."""


@control_command(args={"with_defaults": bool}, aliases=["dump_conf"])
def conf(context: ControlContext, with_defaults: bool = False) -> dict[str, Any]:
    """Settings of the application and the worker; secrets are masked."""
    found: dict[str, Any] = {}
    for section, name, value, source in context.config.describe():
        if with_defaults or source != "default":
            found[f"kw_{section}_{name}" if section != "worker" else f"kw_{name}"] = _plain(value)
    found.update(context.worker.app.settings)
    found["broker_url"] = str(context.worker.broker_url)
    return {name: censored(name, value) for name, value in found.items()}


def censored(name: str, value: Any) -> Any:
    """A setting's value without secrets."""
    if isinstance(value, Mapping):
        return {str(key): censored(str(key), each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [censored(name, each) for each in value]
    if isinstance(value, Secret):
        return str(value)
    if isinstance(value, str) and "://" in value:
        return str(Secret(value))
    if _SECRET.search(name) and value is not None and not isinstance(value, bool):
        return HIDDEN
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


@control_command()
def report(context: ControlContext) -> dict[str, str]:
    """Versions and settings, for a bug report."""
    from kernel_worker import __version__

    worker = context.worker
    lines = [
        "",
        f"software -> kw:{__version__} py:{platform.python_version()}",
        f"platform -> system:{platform.system()} arch:{platform.machine()} imp:{platform.python_implementation()}",
        f"worker   -> node:{worker.node} app:{worker.app.name} ({worker.app.kind}) pool:{worker.pool_name}",
        f"transport-> {worker.broker_url}",
        "",
        *(f"{name}: {value!r}" for name, value in sorted(conf.handler(context).items())),
        "",
    ]
    return {"ok": "\n".join(lines)}


@control_command()
def memsample(context: ControlContext) -> str | None:
    """Memory of the kernel process now (resident set)."""
    return _resident()


@control_command(args={"samples": int})
def memdump(context: ControlContext, samples: int = 10) -> str:
    """The same, in words."""
    return f"- rss (end): {_resident() or 'unknown'}.\n"


def _resident() -> str | None:
    try:
        with open("/proc/self/statm", "rb") as file:
            size = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):  # no such file on this system
        return None
    return f"{size / 1024**2:.2f}MB"


@control_command(args={"type": str, "num": int, "max_depth": int})
def objgraph(context: ControlContext, num: int = 200, max_depth: int = 10, type: str = "Request") -> dict[str, str]:
    """Refused: no command writes files."""
    return {"error": "objgraph is not offered: no remote-control command of kw writes a file"}


@control_command(permission=Permission.DESTROY, args={"msg": str})
def shutdown(context: ControlContext, msg: str = "") -> object:
    """Stop the worker as SIGTERM does. Not answered."""
    context.operations.shutdown()
    return NO_REPLY
