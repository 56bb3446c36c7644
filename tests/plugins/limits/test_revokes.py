"""The set of revoked tasks: expiry, bounds, stamps."""

from __future__ import annotations

import sys
import time

import pytest

from kernel_limits.revokes import KEPT_S, MAX_STAMPS, Revokes

NOW = 1_800_000_000.0


def test_revoked_id_is_revoked_until_its_expiry() -> None:
    revokes = Revokes(100, 60.0)
    revokes.add(["a"], NOW)

    assert revokes.is_revoked("a", {}, NOW + 59)
    assert not revokes.is_revoked("a", {}, NOW + 61)
    assert not revokes.is_revoked("b", {}, NOW)


def test_revoke_holds_after_its_expiry_for_tasks_that_were_not_due_when_it_came() -> None:
    revokes = Revokes(100, 60.0)
    revokes.add(["a"], NOW)
    revokes.add_stamps({"customer": ["x"]}, NOW)
    stamped = {"stamped_headers": ["customer"], "stamps": {"customer": "x"}}
    month = NOW + 30 * 86_400

    assert revokes.is_revoked("a", {}, month, due=month)
    assert revokes.is_revoked("any", stamped, month, due=month)
    assert not revokes.is_revoked("a", {}, month)
    assert not revokes.is_revoked("a", {}, month, due=NOW - 1), "it was due before: whoever sent it has sent it again"
    assert revokes.current(month) == []


def test_expired_ids_are_forgotten_after_a_year() -> None:
    revokes = Revokes(100, 60.0)
    revokes.add(["a", "b"], NOW)

    revokes.add(["c"], NOW + 60 + KEPT_S)

    assert list(revokes.ids) == ["c"]
    assert revokes.forgotten == 0


def test_revoking_again_makes_it_the_newest() -> None:
    revokes = Revokes(2, 60.0)
    revokes.add(["a", "b"], NOW)
    revokes.add(["a"], NOW + 1)

    revokes.add(["c"], NOW + 2)

    assert list(revokes.ids) == ["a", "c"]


def test_a_million_revokes_keep_memory_and_time_bounded() -> None:
    revokes = Revokes(50_000, 10_800.0)
    begun = time.monotonic()

    for part in range(1000):
        revokes.add([f"{part}-{number}" for number in range(1000)], NOW)

    assert len(revokes.ids) == 50_000
    assert revokes.forgotten == 950_000
    assert sys.getsizeof(revokes.ids) < 16 * 1024 * 1024
    assert time.monotonic() - begun < 10
    assert revokes.is_revoked("999-999", {}, NOW)


@pytest.mark.parametrize("stamp", ["x", ["y", "x"], ("x",)], ids=["text", "list", "tuple"])
def test_task_with_a_revoked_stamp_is_revoked(stamp: object) -> None:
    revokes = Revokes(10, 60.0)
    revokes.add_stamps({"customer": ["x"]}, NOW)

    assert revokes.is_revoked("any", {"stamped_headers": ["customer"], "stamps": {"customer": stamp}}, NOW)
    assert not revokes.is_revoked("any", {"stamped_headers": ["customer"], "stamps": {"customer": "z"}}, NOW)
    assert not revokes.is_revoked("any", {"stamped_headers": ["other"], "stamps": {"other": stamp}}, NOW)
    assert not revokes.is_revoked("any", {"stamped_headers": ["customer"], "stamps": {"customer": stamp}}, NOW + 61)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"stamped_headers": None, "stamps": {}},
        {"stamped_headers": "customer", "stamps": "customer"},
        {"stamped_headers": [1, None, {}], "stamps": {"customer": "x"}},
        {"stamped_headers": ["customer"], "stamps": {}},
        {"stamped_headers": ["customer"], "stamps": {"customer": {"deep": []}}},
    ],
    ids=repr,
)
def test_strange_stamps_revoke_nothing(headers: dict[str, object]) -> None:
    revokes = Revokes(10, 60.0)
    revokes.add_stamps({"customer": ["x"]}, NOW)

    assert not revokes.is_revoked("any", headers, NOW)


def test_stamps_are_bounded_too() -> None:
    revokes = Revokes(10, 60.0)

    revokes.add_stamps({"customer": range(3 * MAX_STAMPS)}, NOW)

    assert len(revokes.stamps) == MAX_STAMPS
