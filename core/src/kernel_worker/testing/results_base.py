"""How the result backend suites make backends."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..drivers import ResultBackend
from ..types import StoredResult
from .contract import Contract
from .messages import task_meta
from .waiting import eventually

MakeBackend = Callable[..., ResultBackend]
"""`make_backend(**settings)` gives a backend over the test's own, at first empty, store. `settings` are the
application's lowercase settings."""


@contextlib.contextmanager
def backend_factory(driver: Callable[[str, Any], ResultBackend], url: str) -> Iterator[MakeBackend]:
    """A `MakeBackend` over one store; every backend it made is closed at the end."""
    made: list[ResultBackend] = []

    def make(**settings: Any) -> ResultBackend:
        backend = driver(url, settings)
        made.append(backend)
        return backend

    yield make
    for backend in reversed(made):
        backend.close()


def stored(task_id: str, state: str = "SUCCESS", *, result: Any = None, expires: float | None = 3600.0) -> StoredResult:
    """One state of one task, to be stored."""
    return StoredResult(task_id, state, task_meta(task_id, state, result), expires)


def state_of(meta: bytes | None) -> str | None:
    """The state in a stored meta; None if there is none."""
    return None if meta is None else str(json.loads(meta)["status"])


def is_final(meta: bytes) -> bool:
    """Whether the meta holds a state that does not change any more, as the client asks."""
    return state_of(meta) in ("SUCCESS", "FAILURE", "REVOKED")


def fork(run: Callable[[], object]) -> int:
    """Call `run` in a forked child; gives the child's pid. Its exit status is 0 when `run` returned."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12 warns of forks beside threads; that is the test
        child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return child


class ResultSuite(Contract, suite=True):
    """Fixtures of all result backend tests."""

    @pytest.fixture
    def make_backend(self) -> Iterator[MakeBackend]:
        """To be given by the plugin, over a store that is empty at the start of every test."""
        raise NotImplementedError("a result backend's test class gives a fixture make_backend, see backend_factory")

    @pytest.fixture
    def backend(self, make_backend: MakeBackend) -> ResultBackend:
        """One backend with default settings."""
        return make_backend()

    @pytest.fixture
    def leftovers(self) -> Callable[[], int]:
        """To be given by the plugin: counts what a wait leaves in the store (subscriptions, waiting rows)."""
        raise NotImplementedError("a result backend's test class gives a fixture leftovers")

    @pytest.fixture
    def unreachable_backend(self) -> Callable[[], ResultBackend]:
        """To be given by the plugin: makes a backend whose store does not answer."""
        pytest.skip("the plugin gives no fixture unreachable_backend")

    def wait_until_gone(self, backend: ResultBackend, task_id: str) -> None:
        """Wait until a result that expires after a second has expired; stores may count in whole seconds."""
        eventually(lambda: backend.fetch(task_id) is None, within_s=4.0, message=f"the expiry of {task_id}")
