"""The prefork pool keeps the contract of pools, as a whole `kw` worker."""

from __future__ import annotations

from kernel_pool_prefork.pool import PreforkPool
from kernel_worker.testing import PoolContract


class TestPreforkPool(PoolContract):
    driver = PreforkPool
