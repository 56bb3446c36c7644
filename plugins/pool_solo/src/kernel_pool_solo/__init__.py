"""The solo pool: tasks run in the worker's own main thread, the kernel's loop beside it in a second one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kernel_worker import Layout, Pool, PoolCapability


@dataclass(frozen=True, slots=True)
class SoloOptions:
    """Solo has no options of its own."""


class SoloPool(Pool):
    """One slot, no further process: for debugging, small machines and tests.

    Control, leases and shutdown go on while a task runs. A hard time limit raises `TimeLimitExceeded` in the
    task, again and again: the process itself cannot be replaced.
    """

    name: ClassVar[str] = "solo"
    Options: ClassVar[type] = SoloOptions
    capabilities: ClassVar[frozenset[PoolCapability]] = frozenset({PoolCapability.SOFT_LIMIT, PoolCapability.CANCEL})
    runtime: ClassVar[str] = "kernel_worker.executor:BlockingRuntime"
    spawner: ClassVar[str] = "kernel_worker.spawn:InlineSpawner"

    def layout(self, concurrency: int) -> Layout:
        return Layout(processes=1, slots=1, inline=True)
