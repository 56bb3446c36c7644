"""Plugin of the kernel process: contributes `kw call` and `kw result`."""

from __future__ import annotations

from kernel_worker.hookspecs import hookimpl
from kernel_worker.registry import Command

kw_api = 1


@hookimpl
def kw_commands() -> list[Command]:
    """The commands; their module is imported when one is used."""
    return [
        Command("call", "kernel_app.cli:call", "Send a task by name; prints its id."),
        Command("result", "kernel_app.cli:result", "Show the result of a task."),
    ]
