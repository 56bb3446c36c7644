"""The gevent pool keeps the contract of pools, as a whole `kw` worker."""

from __future__ import annotations

from kernel_pool_green import GeventPool
from kernel_worker.testing import PoolContract


class TestGeventPool(PoolContract):
    driver = GeventPool
