"""The autoscaler's boot step keeps the contract of boot steps."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from kernel_autoscale import AutoscaleOptions
from kernel_autoscale.step import AutoscalerStep
from kernel_worker.builtin import Timers
from kernel_worker.testing import Stage, StepContract


class TestAutoscalerStep(StepContract):
    @pytest.fixture
    def make_step(self):
        return lambda: AutoscalerStep(AutoscaleOptions(bounds=(4, 1)))

    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        with Stage(worker=SimpleNamespace()) as stage:
            stage._apis["timer"] = Timers(stage.loop)
            yield stage
