"""The asyncio pool keeps the contract of pools, as a whole `kw` worker."""

from __future__ import annotations

from kernel_pool_asyncio import AsyncioPool
from kernel_worker.testing import PoolContract


class TestAsyncioPool(PoolContract):
    driver = AsyncioPool
