"""Plugin of the kernel process: contributes `kw call` and `kw result`, and has applications told of their worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_worker.hookspecs import hookimpl
from kernel_worker.registry import Command

if TYPE_CHECKING:
    from kernel_worker.worker import Worker

kw_api = 1


@hookimpl
def kw_commands() -> list[Command]:
    """The commands; their module is imported when one is used."""
    return [
        Command("call", "kernel_app.cli:call", "Send a task by name; prints its id."),
        Command("result", "kernel_app.cli:result", "Show the result of a task."),
    ]


@hookimpl
def kw_worker_ready(worker: Worker) -> None:
    """The signal `worker_ready`, in one executor."""
    worker.supervisor.notify("worker_ready")


@hookimpl
def kw_worker_closing(worker: Worker, reason: str) -> None:
    """The signal `worker_shutdown`: the same executor sends it when it ends."""
    worker.supervisor.notify("worker_shutdown")
