"""The executor of the gevent pool."""

from __future__ import annotations

from tests.core.many_slots import ManySlots


class TestTheGeventExecutor(ManySlots):
    runtime = "kernel_pool_green.on_gevent:GeventRuntime"
