"""The correct drivers pass their suites; so a suite asks for nothing impossible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_worker import Broker, BrokerContext, ControlCommand
from kernel_worker.steps import Bootstep
from kernel_worker.testing import (
    BrokerContract,
    ControlContract,
    MakeBackend,
    MakeBroker,
    ResultBackendContract,
    StepContract,
    backend_factory,
    broker_factory,
)
from kernel_worker.testing.broker_lease import LeaseTests

from .reference import COUNT_DOWN, EchoStep, MemoryBroker, MemoryResults, storage_server


class TestMemoryBroker(BrokerContract):
    """Storage in the test's own process."""

    deviations = {"test_processes_killed_while_reserving_lose_nothing": "the memory of one process"}

    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> Iterator[MakeBroker]:
        with broker_factory(MemoryBroker, f"memory:{tmp_path.name}") as make:
            yield make

    @pytest.fixture
    def unreachable_broker(self, tmp_path: Path) -> Callable[[], Broker]:
        return lambda: MemoryBroker(BrokerContext(f"memory://{tmp_path}/nobody-listens"))


class TestServedMemoryBroker(LeaseTests):
    """Storage in a server process, as real brokers have it, and holders that are killed."""

    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> Iterator[MakeBroker]:
        with storage_server(tmp_path) as url, broker_factory(MemoryBroker, url) as make:
            yield make


class TestMemoryResults(ResultBackendContract):
    """Results in the test's own process."""

    deviations = {
        "test_forked_child_stores_while_the_parent_goes_on": "the memory of one process",
        "test_wait_sees_what_another_process_stores": "the memory of one process",
    }

    @pytest.fixture
    def results(self) -> MemoryResults:
        return MemoryResults()

    @pytest.fixture
    def make_backend(self, results: MemoryResults) -> Iterator[MakeBackend]:
        with backend_factory(lambda url, settings: results, "memory:") as make:
            yield make

    @pytest.fixture
    def leftovers(self, results: MemoryResults) -> Callable[[], int]:
        return lambda: results.waiting


class TestEchoStep(StepContract):
    """A step with a thread and descriptors."""

    @pytest.fixture
    def make_step(self) -> Callable[[], Bootstep]:
        return EchoStep


class TestCountDown(ControlContract):
    """A command with arguments and an alias."""

    @pytest.fixture
    def command(self) -> ControlCommand:
        return COUNT_DOWN

    @pytest.fixture
    def arguments(self) -> dict[str, Any]:
        return {"start": 3}
