"""The threads pool: tasks run in threads of one process, or of a few. Kernel process; light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kernel_worker import Layout, Pool, PoolCapability


@dataclass(frozen=True, slots=True)
class ThreadsOptions:
    """Threads has no options of its own; concurrency is the worker's."""


class ThreadsPool(Pool):
    """One process with `concurrency` threads; `-c 4x50` makes four of fifty.

    For work that waits: threads share one interpreter, so they do not compute at once. A time limit acts between two
    steps of Python; a thread that waits in C for longer is ended with its process, and what ran beside it goes back to
    its queue, uncounted.
    """

    name: ClassVar[str] = "threads"
    Options: ClassVar[type] = ThreadsOptions
    capabilities: ClassVar[frozenset[PoolCapability]] = frozenset(PoolCapability)
    runtime: ClassVar[str] = "kernel_pool_threads.runtime:ThreadsRuntime"

    def layout(self, concurrency: int) -> Layout:
        return Layout(processes=1, slots=concurrency)
