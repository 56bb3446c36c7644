"""The broker contract: everything the docstrings of `kernel_worker.Broker` promise.

    class TestMyBroker(BrokerContract):
        @pytest.fixture
        def make_broker(self, my_server_url):
            with broker_factory(MyBroker, my_server_url) as make:
                yield make

Asked by capability: what a driver does not declare is skipped with that reason. Fixtures a plugin may add:
`unreachable_broker`; class attributes it may set: `short_lease_s`, `urgent_first`, `keeps_returns`, `many`, `deviations`.
"""

from __future__ import annotations

from .broker_dead import DeadLetterTests
from .broker_lease import LeaseTests
from .broker_reserving import ReservingTests
from .broker_settling import SettlingTests
from .broker_storage import StorageTests


class BrokerContract(ReservingTests, SettlingTests, DeadLetterTests, StorageTests, LeaseTests, suite=True):
    """What every broker driver does. Derive from it and give `make_broker`."""
