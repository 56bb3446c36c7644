"""The executor of the asyncio pool."""

from __future__ import annotations

from tests.core.many_slots import ManySlots


class TestTheAsyncioExecutor(ManySlots):
    runtime = "kernel_pool_asyncio.runtime:AsyncioRuntime"
