"""The recycle step keeps the contract of boot steps."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from kernel_recycle import RecycleOptions
from kernel_recycle.step import RecycleStep
from kernel_worker import PoolCapability
from kernel_worker.builtin import Timers
from kernel_worker.config import Config
from kernel_worker.supervisor import Supervisor
from kernel_worker.testing import Stage, StepContract


class TestRecycleStep(StepContract):
    @pytest.fixture
    def make_step(self):
        return RecycleStep

    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        config = Config({"recycle": RecycleOptions(max_tasks=10, max_memory=10**9)})
        pool = SimpleNamespace(capabilities=frozenset(PoolCapability))
        with Stage(config=config, worker=SimpleNamespace(config=config, pool=pool, pool_name="toy")) as stage:
            stage._apis |= {"timer": Timers(stage.loop), "pool": Supervisor(stage.loop)}
            yield stage
