"""The broker contract, held against the @name@ broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_broker_@name@ import @Name@Broker
from kernel_worker import Broker, BrokerContext
from kernel_worker.testing import BrokerContract, MakeBroker, broker_factory


class Test@Name@Broker(BrokerContract):
    many = 500  # every message is written through to the disk

    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> Iterator[MakeBroker]:
        with broker_factory(@Name@Broker, f"@name@:///{tmp_path}/queues") as make:
            yield make

    @pytest.fixture
    def unreachable_broker(self, tmp_path: Path) -> Callable[[], Broker]:
        (tmp_path / "file").write_text("not a folder")
        return lambda: @Name@Broker(BrokerContext(f"@name@:///{tmp_path}/file"))
