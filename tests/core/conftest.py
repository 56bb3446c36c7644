"""Dispatchers with executors that are played by the test, and a clock that it sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from .puppet import Clock, MakeStage, Stage


@pytest.fixture
def make_stage() -> Iterator[MakeStage]:
    """Makes stages that are closed when the test ends."""
    with ExitStack() as stack:

        def make(*args: Any, **options: Any) -> Stage:
            stage = Stage(*args, **options)
            stack.callback(stage.close)
            return stage

        yield make


@pytest.fixture
def stage(make_stage: MakeStage) -> Stage:
    """One executor with one slot."""
    return make_stage()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the kernel's loop thread."""
    clock = Clock()
    for module in ("dispatcher", "hard_limits", "loop", "prefetch", "supervisor"):
        monkeypatch.setattr(f"kernel_worker.{module}.time", clock)
    return clock
