"""Fixtures of the fault tests: the application in the test's folder, both brokers by URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.application import write_app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the workers run; holds the application and the ledger."""
    write_app(tmp_path)
    return tmp_path


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    """An empty broker of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{folder / 'kw.db'}"
    redis_url: str = request.getfixturevalue("redis_url")
    return redis_url
