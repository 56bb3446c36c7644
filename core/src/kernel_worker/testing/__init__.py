"""Executable contracts and what tests of plugins need: suites, envelopes, `kw` as a subprocess.

For tests only; needs pytest, which the kernel itself never imports. Names are imported lazily: an
application under test may use `kernel_worker.testing.ledger` without loading pytest into an executor.

    class TestMyBroker(BrokerContract):
        @pytest.fixture
        def make_broker(self, my_server_url):
            with broker_factory(MyBroker, my_server_url) as make:
                yield make
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .broker import BrokerContract
    from .broker_base import MakeBroker, broker_factory, collect
    from .contract import Contract, requires
    from .control import ControlContract
    from .ledger import Ledger
    from .messages import body_of, envelope, task_meta
    from .pool import PoolContract
    from .processes import WorkerProcess
    from .results import ResultBackendContract
    from .results_base import MakeBackend, backend_factory
    from .steps import Stage, StepContract
    from .waiting import eventually

_HOMES = {
    "BrokerContract": "broker",
    "Contract": "contract",
    "ControlContract": "control",
    "Ledger": "ledger",
    "MakeBackend": "results_base",
    "MakeBroker": "broker_base",
    "PoolContract": "pool",
    "ResultBackendContract": "results",
    "Stage": "steps",
    "StepContract": "steps",
    "WorkerProcess": "processes",
    "backend_factory": "results_base",
    "body_of": "messages",
    "broker_factory": "broker_base",
    "collect": "broker_base",
    "envelope": "messages",
    "eventually": "waiting",
    "requires": "contract",
    "task_meta": "messages",
}

__all__ = [
    "BrokerContract",
    "Contract",
    "ControlContract",
    "Ledger",
    "MakeBackend",
    "MakeBroker",
    "PoolContract",
    "ResultBackendContract",
    "Stage",
    "StepContract",
    "WorkerProcess",
    "backend_factory",
    "body_of",
    "broker_factory",
    "collect",
    "envelope",
    "eventually",
    "requires",
    "task_meta",
]

_ASSERTING = (
    "broker_base",
    "broker_lease",
    "broker_reserving",
    "broker_settling",
    "broker_storage",
    "control",
    "pool_faults",
    "pool_running",
    "pool_shutdown",
    "pool_slots",
    "results",
    "results_waiting",
    "steps",
)


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    if name.endswith("Contract"):
        _explain_failed_asserts()
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def _explain_failed_asserts() -> None:
    """Have pytest show the values in a failed `assert` of a suite, as it does in test files."""
    import pytest

    homes = (f"{__name__}.{module}" for module in _ASSERTING)
    # pytest warns when asked for a module that is imported already
    pytest.register_assert_rewrite(*(home for home in homes if home not in sys.modules))
