"""The @name@ pool: one process per slot, each started afresh. Kernel process; light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kernel_worker import Layout, Pool, PoolCapability, option


@dataclass(frozen=True, slots=True)
class @Name@Options:
    """Section `@name@`."""

    spare: int = option(0, "--@name@-spare", metavar="N", help="Run N tasks fewer at once than --concurrency says.")

    def __post_init__(self) -> None:
        if self.spare < 0:
            raise ValueError(f"spare {self.spare} is below 0")


class @Name@Pool(Pool):
    """`concurrency - spare` processes, at least one.

    Executors run the kernel's `BlockingRuntime`, one task at a time. A pool that runs several at once in a process
    has a `Runtime` of its own in another module and names it in `runtime`; one that does not start
    a new interpreter per process has a `Spawner` and names it in `spawner`.
    """

    name: ClassVar[str] = "@name@"
    Options: ClassVar[type] = @Name@Options
    capabilities: ClassVar[frozenset[PoolCapability]] = frozenset(PoolCapability)

    def layout(self, concurrency: int) -> Layout:
        return Layout(processes=max(1, concurrency - self.options.spare), slots=1)
