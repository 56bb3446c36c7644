"""Carry out verdicts on held messages, in one transaction. SQL on a connection the caller gives.

A receipt is (message id, holder id, reservation number). Only a row that matches all three is touched: what
was lost to another holder, or was delivered to this one again, is left alone, and a repeated batch does nothing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from kernel_worker.types import Settlement, Verdict

Receipt = tuple[int, int, int]

# json_each makes one statement of many ids, whatever their number.
STILL_HELD = """
    SELECT id FROM kw_held WHERE id IN (SELECT value FROM json_each(?)) AND holder = ? AND reservation = ?"""
DROP_HELD = "DELETE FROM kw_held WHERE id IN (SELECT value FROM json_each(?))"
DROP_MESSAGES = "DELETE FROM kw_message WHERE id IN (SELECT value FROM json_each(?))"
HELD = """
    SELECT queue, priority, attempts, redelivered FROM kw_held WHERE id = ? AND holder = ? AND reservation = ?"""
UNHOLD = "DELETE FROM kw_held WHERE id = ?"
WAIT = "INSERT INTO kw_waiting (queue, priority, id, attempts, redelivered) VALUES (?, ?, ?, ?, 1)"
PARK = "INSERT INTO kw_parked (due, id, queue, priority, attempts, redelivered) VALUES (?, ?, ?, ?, ?, ?)"
DIE = "INSERT INTO kw_dead (id, queue, priority, attempts, reason, died_at) VALUES (?, ?, ?, ?, ?, ?)"


def settle(connection: sqlite3.Connection, batch: Sequence[Settlement]) -> None:
    """Carry out all verdicts of a batch."""
    finished: dict[tuple[int, int], list[int]] = {}
    for each in batch:
        receipt: Receipt = each.delivery.receipt
        if each.verdict is Verdict.ACK:
            finished.setdefault(receipt[1:], []).append(receipt[0])
        elif each.verdict is Verdict.REQUEUE:
            _requeue(connection, receipt, each.count)
        elif each.verdict is Verdict.DELAY:
            _park(connection, receipt, each.until)
        else:
            bury(connection, receipt, each.reason, each.count)
    for (holder, reservation), ids in finished.items():
        _finish(connection, holder, reservation, ids)


def bury(connection: sqlite3.Connection, receipt: Receipt, reason: str, count: bool = False) -> None:
    """Move one held message to the dead letters; its bytes stay where they are."""
    held = _take_back(connection, receipt)
    if held:
        queue, priority, attempts, _ = held
        connection.execute(DIE, (receipt[0], queue, priority, attempts + count, _storable(reason), time.time()))


def _finish(connection: sqlite3.Connection, holder: int, reservation: int, ids: list[int]) -> None:
    rows = connection.execute(STILL_HELD, (str(ids), holder, reservation)).fetchall()
    held = str([number for (number,) in rows])
    connection.execute(DROP_HELD, (held,))
    connection.execute(DROP_MESSAGES, (held,))


def _requeue(connection: sqlite3.Connection, receipt: Receipt, count: bool) -> None:
    held = _take_back(connection, receipt)
    if held:
        queue, priority, attempts, _ = held
        connection.execute(WAIT, (queue, priority, receipt[0], attempts + count))


def _park(connection: sqlite3.Connection, receipt: Receipt, until: float) -> None:
    held = _take_back(connection, receipt)
    if held:
        due = until if until == until else 0.0  # SQLite stores NaN as NULL; it means no time, so now
        connection.execute(PARK, (due, receipt[0], *held))


def _take_back(connection: sqlite3.Connection, receipt: Receipt) -> tuple[str, int, int, int] | None:
    """Queue, priority, attempts and redelivered of a message that was held until here; None if it is not ours."""
    held: tuple[str, int, int, int] | None = connection.execute(HELD, receipt).fetchone()
    if held:
        connection.execute(UNHOLD, receipt[:1])
    return held


def _storable(text: str) -> str:
    """SQLite takes no half characters (surrogates), and a reason may quote anybody's bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
