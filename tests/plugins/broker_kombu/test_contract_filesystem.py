"""The broker contract on files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_broker_kombu import FilesystemBroker
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.testing import BrokerContract, broker_factory


class TestFilesystemBroker(BrokerContract):
    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> Iterator[Callable[..., Broker]]:
        with broker_factory(FilesystemBroker, f"filesystem://{tmp_path}/messages") as make:
            yield make

    @pytest.fixture
    def unreachable_broker(self, tmp_path: Path) -> Callable[[], Broker]:
        (tmp_path / "file").touch()
        return lambda: FilesystemBroker(BrokerContext(f"filesystem://{tmp_path}/file/messages"))
