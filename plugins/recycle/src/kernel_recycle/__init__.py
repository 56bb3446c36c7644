"""The recycle plugin: executors are replaced after a number of tasks or above a size. Kernel process, loop thread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernel_worker import Bootstep, Config, PoolCapability, UsageError, hookimpl, option
from kernel_worker.options import integer

if TYPE_CHECKING:
    from kernel_worker.worker import Worker

kw_api = 1

__all__ = ["RecycleOptions"]


def _bound(value: Any) -> int | None:
    count = integer(value)
    if count < 0:
        raise ValueError(f"{count} is below zero")
    return count or None  # Celery's 0: no bound


@dataclass(frozen=True, slots=True)
class RecycleOptions:
    """Section `recycle`."""

    max_tasks: int | None = option(
        None,
        "--max-tasks-per-child",
        celery="worker_max_tasks_per_child",
        parse=_bound,
        metavar="N",
        help="Replace an executor after this many tasks.",
    )
    max_memory: int | None = option(
        None,
        "--max-memory-per-child",
        celery="worker_max_memory_per_child",
        parse=_bound,
        metavar="KIB",
        help="Replace an executor whose resident memory is larger, in KiB.",
    )


@hookimpl
def kw_options() -> type:
    """The options of this plugin."""
    return RecycleOptions


@hookimpl
def kw_worker_starting(worker: Worker) -> None:
    """Refuse a pool that cannot replace executors, before anything is started."""
    check(worker)


def check(worker: Worker) -> None:
    """:raises UsageError: a bound is set, and the pool cannot keep it."""
    section: RecycleOptions = worker.config.section("recycle")
    if PoolCapability.REPLACE in worker.pool.capabilities:
        return
    for name, flag in (("max_tasks", "--max-tasks-per-child"), ("max_memory", "--max-memory-per-child")):
        if (value := getattr(section, name)) is not None:
            raise UsageError(
                f"pool {worker.pool_name!r} cannot replace its executor ({flag} {value}, set by: "
                f"{worker.config.source('recycle', name)})",
                hint="use -P prefork, or set it to 0",
            )


@hookimpl
def kw_bootsteps(config: Config) -> Iterable[Bootstep]:
    """The step that bounds executors; whether there is a bound is known when the application has loaded."""
    from .step import RecycleStep

    return [RecycleStep()]
