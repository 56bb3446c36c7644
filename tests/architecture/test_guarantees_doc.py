"""docs/guarantees.md names tests that exist, and has a row for every fault."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()
CONTRACTS = {"BrokerContract": "broker*.py", "PoolContract": "pool*.py"}
FAULTS = 62


def sources(place: str) -> list[str]:
    """The source of a test file, or of all parts of a contract; nothing when it does not exist."""
    if place in CONTRACTS:
        return [path.read_text() for path in (ROOT / "core/src/kernel_worker/testing").glob(CONTRACTS[place])]
    path = ROOT / "tests" / place
    return [path.read_text()] if path.is_file() else []


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`((?:[\w/]+/test_\w+\.py|BrokerContract|PoolContract)(?:::test_\w+)?)`", TEXT)
    missing = []
    for name in named:
        place, _, test = name.partition("::")
        found = sources(place)
        if not found or (test and not any(f"def {test}(" in source for source in found)):
            missing.append(name)

    assert len(named) > 100, "the expression finds the names"
    assert missing == []


def test_every_fault_has_a_row_with_a_test_or_says_that_there_is_none() -> None:
    rows = re.findall(r"^\| F(\d\d) \|(.*)$", TEXT, re.MULTILINE)

    assert {int(number) for number, _ in rows} == set(range(1, FAULTS + 1))
    assert [
        row for _, row in rows if "`" not in row.rpartition(" | ")[2] and not re.search("not tested|storms", row)
    ] == []
