"""The boot step contract held against `limits`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernel_limits.options import LimitsOptions
from kernel_limits.step import LimitsStep
from kernel_worker import Secret
from kernel_worker.registry import Registry
from kernel_worker.testing import Stage, StepContract


@pytest.mark.contract
class TestLimitsStep(StepContract):
    """With a state file and a broker that keeps revokes."""

    @pytest.fixture
    def make_step(self) -> Callable[[], LimitsStep]:
        return LimitsStep

    @pytest.fixture
    def stage(self, redis_url: str, tmp_path: Path) -> Iterator[Stage]:
        worker = SimpleNamespace(
            app=SimpleNamespace(settings={}, tasks={}),
            broker_url=Secret(redis_url),
            dispatcher=None,
            node="w@here",
            operations=SimpleNamespace(),
            selection=Registry.discover().select(),
        )
        config: Any = SimpleNamespace(section=lambda name: LimitsOptions(statedb=str(tmp_path / "state")))
        with Stage(apis={"pool": None}, config=config, worker=worker) as stage:
            worker.loop = stage.loop
            yield stage
