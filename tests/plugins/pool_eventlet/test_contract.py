"""The eventlet pool keeps the contract of pools, as a whole `kw` worker."""

from __future__ import annotations

import pytest

from kernel_pool_green import EventletPool
from kernel_worker.testing import PoolContract
from kernel_worker.testing.pool_running import RunningTests
from kernel_worker.testing.pool_slots import SlotTests


@pytest.mark.faults
class TestEventletPool(PoolContract):
    """All of it with the long runs: the runtime is gevent's, whose whole contract is held with each run."""

    driver = EventletPool


class TestEventletPoolRuns(RunningTests, SlotTests):
    """Its own library's part: tasks run, many at once, within their limits."""

    driver = EventletPool
