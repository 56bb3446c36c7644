"""The threads pool keeps the contract of pools, as a whole `kw` worker."""

from __future__ import annotations

from kernel_pool_threads import ThreadsPool
from kernel_worker.testing import PoolContract


class TestThreadsPool(PoolContract):
    driver = ThreadsPool
