"""The executor of the threads pool."""

from __future__ import annotations

from tests.core.many_slots import ManySlots


class TestTheThreadsExecutor(ManySlots):
    runtime = "kernel_pool_threads.runtime:ThreadsRuntime"
