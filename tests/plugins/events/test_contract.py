"""The boot step contract held against `events`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kernel_events.options import EventsOptions
from kernel_events.step import EventsStep
from kernel_worker import Secret
from kernel_worker.clock import Clock
from kernel_worker.testing import Stage, StepContract


@pytest.mark.contract
class TestEventsStep(StepContract):
    """With task events on, so that all of it is taken back."""

    @pytest.fixture
    def make_step(self) -> Callable[[], EventsStep]:
        return EventsStep

    @pytest.fixture
    def stage(self, redis_url: str) -> Iterator[Stage]:
        verbose: list[bool] = []
        worker = SimpleNamespace(
            app=SimpleNamespace(settings={}),
            broker_url=Secret(redis_url),
            clock=Clock(),
            dispatcher=None,
            node="w@here",
        )
        config: Any = SimpleNamespace(section=lambda name: EventsOptions(task_events=True))
        timers = SimpleNamespace(every=lambda seconds, callback: None)
        pool = SimpleNamespace(set_verbose=verbose.append)
        with Stage(apis={"timer": timers, "pool": pool}, config=config, worker=worker) as stage:
            worker.bus = stage.bus
            yield stage
            assert all(not subscribers for subscribers in stage.bus.subscribers)
