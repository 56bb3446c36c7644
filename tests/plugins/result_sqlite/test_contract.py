"""The SQLite result backend keeps the result backend contract."""

from __future__ import annotations

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
        """Waiting writes nothing into the file. What it keeps is bounded: see the test of descriptors."""
        return lambda: 0

    @pytest.fixture
    def unreachable_backend(self, tmp_path: Path) -> Callable[[], SqliteResults]:
        return lambda: SqliteResults(f"sqlite:///{tmp_path}/missing/kw.db", {})
