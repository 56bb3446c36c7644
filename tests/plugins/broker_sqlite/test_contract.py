"""The embedded broker keeps the broker contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_broker_sqlite import SqliteBroker
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.testing import BrokerContract, broker_factory


class TestSqliteBroker(BrokerContract):
    short_lease_s = 0.3

    @pytest.fixture
    def make_broker(self, url: str) -> Iterator[Callable[..., Broker]]:
        with broker_factory(SqliteBroker, url) as make:
            yield make

    @pytest.fixture
    def unreachable_broker(self, tmp_path: Path) -> Callable[[], Broker]:
        return lambda: SqliteBroker(BrokerContext(f"sqlite:///{tmp_path}/missing/kw.db"))
