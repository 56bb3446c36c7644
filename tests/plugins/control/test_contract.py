"""The contracts of steps and commands, held against those of this plugin."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernel_control.node import clock, ping
from kernel_control.queues import pause
from kernel_control.requests import time_limit
from kernel_control.step import ControlStep
from kernel_worker import AppInfo, ControlCommand, Secret
from kernel_worker.clock import Clock
from kernel_worker.control import ControlTable
from kernel_worker.testing import ControlContract, Stage, StepContract


class Operations:
    """What commands ask of the kernel."""

    def set_time_limits(self, task: str, soft: float | None, hard: float | None) -> bool:
        return task == "proj.add"

    def pause(self, names: list[str]) -> list[str]:
        return names


class CommandContract(ControlContract):
    @pytest.fixture
    def context(self) -> Any:
        return SimpleNamespace(operations=Operations(), clock=Clock(3))


class TestPing(CommandContract):
    @pytest.fixture
    def command(self) -> ControlCommand:
        return ping


class TestClock(CommandContract):
    @pytest.fixture
    def command(self) -> ControlCommand:
        return clock


class TestPause(CommandContract):
    @pytest.fixture
    def command(self) -> ControlCommand:
        return pause

    @pytest.fixture
    def arguments(self) -> dict[str, Any]:
        return {"queue": "mail"}


class TestTimeLimit(CommandContract):
    @pytest.fixture
    def command(self) -> ControlCommand:
        return time_limit

    @pytest.fixture
    def arguments(self) -> dict[str, Any]:
        return {"task_name": "proj.add", "soft": 1.5, "hard": 2}


class TestControlStep(StepContract):
    @pytest.fixture
    def make_step(self) -> Callable[[], ControlStep]:
        return lambda: ControlStep("read")

    @pytest.fixture
    def stage(self, tmp_path: Path) -> Iterator[Stage]:
        mailbox = SimpleNamespace(target="kernel_broker_sqlite.mailbox:SqliteMailbox")
        worker = SimpleNamespace(
            node="w1@host",
            app=AppInfo("proj", "native"),
            broker_url=Secret(f"sqlite:///{tmp_path}/kw.db"),
            selection=SimpleNamespace(mailboxes={"sqlite": mailbox}),
            control=ControlTable(),
            operations=Operations(),
            clock=Clock(),
        )
        with Stage(apis={"consumer": None}, worker=worker) as stage:
            yield stage


def test_every_command_of_the_distribution_is_well_declared() -> None:
    points = [
        each
        for each in importlib.metadata.entry_points(group="kernel_worker.control")
        if "kernel_control" in each.value
    ]

    for point in points:
        command = point.load()
        assert isinstance(command, ControlCommand)
        assert command.name == point.name
        assert command.help
        assert not command.variadic or command.variadic in command.arguments
    assert len(points) >= 25
