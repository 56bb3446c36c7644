"""The result backend contract, held against @Name@Results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_result_@name@ import @Name@Results
from kernel_worker import ResultBackend
from kernel_worker.testing import MakeBackend, ResultBackendContract, backend_factory


class Test@Name@Results(ResultBackendContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Iterator[MakeBackend]:
        with backend_factory(@Name@Results, f"@name@:///{tmp_path}/results") as make:
            yield make

    @pytest.fixture
    def leftovers(self) -> Callable[[], int]:
        return lambda: 0  # waiting only looks: there is nothing it could leave

    @pytest.fixture
    def unreachable_backend(self, tmp_path: Path) -> Callable[[], ResultBackend]:
        (tmp_path / "file").write_text("not a folder")
        return lambda: @Name@Results(f"@name@:///{tmp_path}/file", {})
