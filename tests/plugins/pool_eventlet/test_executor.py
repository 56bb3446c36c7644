"""The executor of the eventlet pool."""

from __future__ import annotations

from tests.core.many_slots import ManySlots


class TestTheEventletExecutor(ManySlots):
    runtime = "kernel_pool_green.on_eventlet:EventletRuntime"
