"""The solo pool keeps the contract of pools, as a whole `kw` worker."""

from __future__ import annotations

from kernel_pool_solo import SoloPool
from kernel_worker.testing import PoolContract


class TestSoloPool(PoolContract):
    driver = SoloPool
