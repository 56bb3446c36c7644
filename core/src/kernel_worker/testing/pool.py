"""The pool contract: what a worker with this pool does, seen from outside.

Black box: `kw run` as a subprocess on the embedded broker, an application with tasks that behave well and
badly, results, and a ledger that the tasks write. Needs the distributions kernel-app, kernel-broker-sqlite
and kernel-result-sqlite.

    class TestThreadsPool(PoolContract):
        driver = ThreadsPool
"""

from __future__ import annotations

from .pool_faults import FaultTests
from .pool_running import RunningTests
from .pool_shutdown import ShutdownTests
from .pool_slots import SlotTests


class PoolContract(RunningTests, SlotTests, FaultTests, ShutdownTests, suite=True):
    """What every pool does. Derive from it and set `driver`."""
