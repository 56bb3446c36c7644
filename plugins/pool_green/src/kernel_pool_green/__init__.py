"""The green pools: tasks run in greenlets of one process, or of a few. Kernel process; light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kernel_worker import Layout, Pool, PoolCapability


@dataclass(frozen=True, slots=True)
class GreenOptions:
    """The green pools have no options of their own; concurrency is the worker's."""


class GreenPool(Pool):
    """One process with `concurrency` greenlets; `-c 4x250` makes four of 250.

    The standard library is patched before anything else is imported, in the executors alone. A limit is raised while a
    task waits; a task that computes and never waits is ended with its process, and what ran beside it goes back to its
    queue, uncounted.
    """

    Options: ClassVar[type] = GreenOptions
    capabilities: ClassVar[frozenset[PoolCapability]] = frozenset(PoolCapability)

    def layout(self, concurrency: int) -> Layout:
        return Layout(processes=1, slots=concurrency)


class GeventPool(GreenPool):
    """`-P gevent`."""

    name: ClassVar[str] = "gevent"
    runtime: ClassVar[str] = "kernel_pool_green.on_gevent:GeventRuntime"


class EventletPool(GreenPool):
    """`-P eventlet`. Its library is no longer developed: take gevent for something new."""

    name: ClassVar[str] = "eventlet"
    runtime: ClassVar[str] = "kernel_pool_green.on_eventlet:EventletRuntime"
