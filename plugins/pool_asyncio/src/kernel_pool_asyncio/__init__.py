"""The asyncio pool: `async def` tasks run on one event loop, others in threads beside it. Kernel process; light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kernel_worker import Layout, Pool, PoolCapability


@dataclass(frozen=True, slots=True)
class AsyncioOptions:
    """The asyncio pool has no options of its own; concurrency is the worker's."""


class AsyncioPool(Pool):
    """One process with `concurrency` slots; `-c 4x250` makes four of 250.

    A limit is raised inside the coroutine. One that holds the event loop in a task of its own is ended with its process
    at the hard limit, and what ran beside it goes back to its queue, uncounted.
    """

    name: ClassVar[str] = "asyncio"
    Options: ClassVar[type] = AsyncioOptions
    capabilities: ClassVar[frozenset[PoolCapability]] = frozenset(PoolCapability)
    runtime: ClassVar[str] = "kernel_pool_asyncio.runtime:AsyncioRuntime"

    def layout(self, concurrency: int) -> Layout:
        return Layout(processes=1, slots=concurrency)
