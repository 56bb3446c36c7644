"""The prefork pool: one process per slot, forked by a clean fork server. Kernel process; light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kernel_worker import Layout, Pool, PoolCapability


@dataclass(frozen=True, slots=True)
class PreforkOptions:
    """Prefork has no options of its own; concurrency is the worker's."""


class PreforkPool(Pool):
    """`concurrency` processes with one slot each.

    The fork server imports the application once, in one thread and without connections, and forks an
    executor whenever the kernel asks: so a replacement costs a few milliseconds and memory is shared.
    """

    name: ClassVar[str] = "prefork"
    Options: ClassVar[type] = PreforkOptions
    capabilities: ClassVar[frozenset[PoolCapability]] = frozenset(
        {
            PoolCapability.SOFT_LIMIT,
            PoolCapability.HARD_LIMIT,
            PoolCapability.CANCEL,
            PoolCapability.SEVERAL_SLOTS,
            PoolCapability.REPLACE,
        }
    )
    runtime: ClassVar[str] = "kernel_worker.executor:BlockingRuntime"
    spawner: ClassVar[str] = "kernel_pool_prefork.spawner:ForkServerSpawner"

    def layout(self, concurrency: int) -> Layout:
        return Layout(processes=concurrency, slots=1)
