"""The boot step contract: a step may be started, stopped, stopped again, half started, in any order.

class TestHealthServer(StepContract):
    @pytest.fixture
    def make_step(self):
        return lambda: HealthServer(HealthOptions(port=0))

    @pytest.fixture
    def stage(self):
        with Stage(apis={"timer": Timers()}) as stage:
            yield stage
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from ..bus import Bus
from ..loop import Loop
from ..steps import Bootstep
from .contract import Contract
from .waiting import eventually

MakeStep = Callable[[], Bootstep]
GRACE_S = 3.0  # given to a stop that is not the subject of the test
_MAX_USES = 200  # of the context by one start; a step that asks more often is not tried to its end


class Stage:
    """What a step is started on, without a worker: a real loop and bus, and the APIs the test gives.

    Has the attributes of the worker's own context that steps may use: `loop`, `bus`, `config`, `worker`,
    `api(name)` and `wait(condition, what)`.
    """

    def __init__(self, *, apis: Mapping[str, object] | None = None, config: Any = None, worker: Any = None) -> None:
        self.loop = Loop()
        self.bus = Bus()
        self.config = config
        self.worker = worker
        self._apis = dict(apis or {})

    def api(self, name: str) -> object:
        """What the step `name` would have returned from `start`."""
        return self._apis[name]

    def wait(self, condition: Callable[[], object], what: str | Callable[[], str]) -> None:
        """Turn the loop until the condition holds, at most 10 seconds."""
        if not self.loop.run_until(condition, time.monotonic() + 10.0):
            raise AssertionError(f"still waiting for {what if isinstance(what, str) else what()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.close()


class _Broken(Exception):
    """Raised by a stage that is used once too often."""


class _BreakingStage:
    """A stage that works for some uses and then raises: so a start fails at each of its points in turn."""

    def __init__(self, stage: Any, uses: int) -> None:
        self._stage = stage
        self._left = uses

    def __getattr__(self, name: str) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _Broken(f"start was to fail when it asked for {name!r}")
        return getattr(self._stage, name)


class StepContract(Contract, suite=True):
    """What every boot step does. Derive from it and give `make_step`."""

    @pytest.fixture
    def make_step(self) -> MakeStep:
        """To be given by the plugin: makes a fresh step."""
        raise NotImplementedError("a boot step's test class gives a fixture make_step")

    @pytest.fixture
    def stage(self) -> Iterator[Any]:
        """The context of the step; a plugin whose step requires others gives their APIs here."""
        with Stage() as stage:
            yield stage

    def test_step_says_its_name_and_its_place(self, make_step: MakeStep) -> None:
        step = make_step()

        assert isinstance(step.name, str)
        assert step.name
        for others in (step.requires, step.before):
            assert isinstance(others, tuple)
            assert all(isinstance(name, str) and name for name in others)
            assert step.name not in others
        assert not set(step.requires) & set(step.before)

    def test_step_starts_and_stops(self, make_step: MakeStep, stage: Any) -> None:
        step = make_step()

        step.start(stage)
        step.close(stage)
        step.stop(stage, time.monotonic() + GRACE_S)

    def test_making_a_step_starts_nothing(self, make_step: MakeStep) -> None:
        with _leaves_nothing():
            for _ in range(10):
                make_step()

    def test_stop_without_start_does_nothing(self, make_step: MakeStep, stage: Any) -> None:
        make_step().stop(stage, time.monotonic() + GRACE_S)

    def test_stop_twice_is_stop_once(self, make_step: MakeStep, stage: Any) -> None:
        step = make_step()
        step.start(stage)

        step.stop(stage, time.monotonic() + GRACE_S)
        step.stop(stage, time.monotonic() + GRACE_S)

    def test_stop_without_close_stops(self, make_step: MakeStep, stage: Any) -> None:
        with _leaves_nothing():
            step = make_step()
            step.start(stage)
            step.stop(stage, time.monotonic() + GRACE_S)

    def test_close_does_not_block(self, make_step: MakeStep, stage: Any) -> None:
        step = make_step()
        step.start(stage)
        try:
            began = time.monotonic()
            step.close(stage)
            took = time.monotonic() - began
        finally:
            step.stop(stage, time.monotonic() + GRACE_S)

        assert took < 1.4

    def test_stop_keeps_its_deadline(self, make_step: MakeStep, stage: Any) -> None:
        step = make_step()
        step.start(stage)
        step.close(stage)
        began = time.monotonic()

        # A stop that cannot finish in time may raise; the kernel then terminates the step.
        with contextlib.suppress(Exception):
            step.stop(stage, began + 0.2)
        took = time.monotonic() - began
        step.terminate(stage)

        assert took < 0.2 + 1.6

    @pytest.mark.parametrize("before", ["nothing", "start", "start and stop"])
    def test_terminate_ends_at_once_after(self, make_step: MakeStep, stage: Any, before: str) -> None:
        with _leaves_nothing():
            step = make_step()
            if "start" in before:
                step.start(stage)
            if "stop" in before:
                step.stop(stage, time.monotonic() + GRACE_S)
            began = time.monotonic()

            step.terminate(stage)
            step.terminate(stage)
            took = time.monotonic() - began

        assert took < 2.5

    def test_starting_and_stopping_many_times_leaves_nothing(self, make_step: MakeStep, stage: Any) -> None:
        with _leaves_nothing():
            for _ in range(20):
                step = make_step()
                step.start(stage)
                step.close(stage)
                step.stop(stage, time.monotonic() + GRACE_S)

    def test_start_that_fails_at_any_point_can_be_stopped_and_leaves_nothing(
        self, make_step: MakeStep, stage: Any
    ) -> None:
        for uses in range(_MAX_USES):
            with _leaves_nothing(f"start failed after {uses} uses of its context"):
                step = make_step()
                try:
                    step.start(_BreakingStage(stage, uses))
                    failed = False
                except Exception:  # a step may wrap the failure
                    failed = True
                step.stop(stage, time.monotonic() + GRACE_S)
                step.stop(stage, time.monotonic() + GRACE_S)
                step.terminate(stage)
            if not failed:
                return


@contextlib.contextmanager
def _leaves_nothing(when: str = "") -> Iterator[None]:
    """Threads and descriptors are as many afterwards as they were before."""
    threads, descriptors = threading.active_count(), _descriptors()
    yield
    eventually(
        lambda: threading.active_count() <= threads, within_s=5.0, message=lambda: f"threads left {when}: {_names()}"
    )
    eventually(lambda: _descriptors() <= descriptors, within_s=5.0, message=f"descriptors left {when}")


def _descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


def _names() -> str:
    names = sorted(thread.name for thread in threading.enumerate())
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
