"""The SQLite result backend keeps the result backend contract."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_result_sqlite import SqliteResults
from kernel_worker.testing import ResultBackendContract
from kernel_worker.testing.results_base import MakeBackend, backend_factory


class TestSqliteResults(ResultBackendContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Iterator[MakeBackend]:
        with backend_factory(SqliteResults, f"sqlite:///{tmp_path}/kw.db") as make:
            yield make

    @pytest.fixture
    def leftovers(self) -> Callable[[], int]:
        """Waiting leaves nothing in the file; what it may forget is a descriptor that watches it."""
        return lambda: sum("inotify" in name for name in _open_descriptors())

    @pytest.fixture
    def unreachable_backend(self, tmp_path: Path) -> Callable[[], SqliteResults]:
        return lambda: SqliteResults(f"sqlite:///{tmp_path}/missing/kw.db", {})


def _open_descriptors() -> list[str]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            pass  # the one that listed the folder
    return found
