"""The boot step contract, held against the @name@ plugin's step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from kernel_plugin_@name@ import @Name@Options, @Name@Step
from kernel_worker import Bootstep
from kernel_worker.testing import Stage, StepContract


class Timers:
    """Keeps what it is told to call, instead of the worker's timers."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], object]]] = []

    def every(self, seconds: float, callback: Callable[[], object]) -> None:
        self.calls.append((seconds, callback))


@pytest.fixture
def timers() -> Timers:
    return Timers()


class Test@Name@Step(StepContract):
    @pytest.fixture
    def make_step(self) -> Callable[[], Bootstep]:
        return lambda: @Name@Step(@Name@Options(interval=5.0))

    @pytest.fixture
    def stage(self, timers: Timers) -> Iterator[Stage]:
        with Stage(apis={"timer": timers}) as stage:
            yield stage

    def test_says_that_the_worker_is_alive_until_it_closes(
        self, make_step: Callable[[], Bootstep], stage: Stage, timers: Timers, caplog: pytest.LogCaptureFixture
    ) -> None:
        step = make_step()
        step.start(stage)
        ((seconds, tell),) = timers.calls

        with caplog.at_level(logging.WARNING):
            tell()
            step.close(stage)
            tell()

        assert seconds == 5.0
        assert [record.message for record in caplog.records] == ["alive for 0 s"]


def test_interval_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0"):
        @Name@Options(interval=0)
