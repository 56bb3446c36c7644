"""Carry out verdicts on held messages, in one transaction. SQL on a connection the caller gives.

A receipt is (message id, holder id, reservation number). Only a row that matches all three is touched: what
was lost to another holder, or was delivered to this one again, is left alone, and a repeated batch does nothing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence

from kernel_worker.types import Settlement, Verdict

Receipt = tuple[int, int, int]
Held = tuple[str, int, int, int, int]
REDELIVERED, RECOVERED, MARKED = 1, 2, 3
"""What `redelivered` says beside 0; see `schema`."""

# json_each makes one statement of many ids, whatever their number.
STILL_HELD = """
    SELECT id FROM kw_held WHERE id IN (SELECT value FROM json_each(?)) AND holder = ? AND reservation = ?"""
DROP_HELD = "DELETE FROM kw_held WHERE id IN (SELECT value FROM json_each(?))"
DROP_MESSAGES = "DELETE FROM kw_message WHERE id IN (SELECT value FROM json_each(?))"
HELD = """
    SELECT queue, priority, attempts, returns, redelivered FROM kw_held WHERE id = ? AND holder = ? AND reservation = ?"""
UNHOLD = "DELETE FROM kw_held WHERE id = ?"
MARK = f"""
    UPDATE kw_held SET attempts = attempts + 1, redelivered = {MARKED}
    WHERE id = ? AND holder = ? AND reservation = ? AND redelivered <> {MARKED}"""
WAIT = "INSERT INTO kw_waiting (id, queue, priority, attempts, returns, redelivered) VALUES (?, ?, ?, ?, ?, ?)"
PARK = """
    INSERT INTO kw_parked (due, id, queue, priority, attempts, returns, redelivered) VALUES (?, ?, ?, ?, ?, ?, ?)"""
DIE = "INSERT INTO kw_dead (id, queue, priority, attempts, reason, died_at) VALUES (?, ?, ?, ?, ?, ?)"


def settle(connection: sqlite3.Connection, batch: Sequence[Settlement]) -> None:
    """Carry out all verdicts of a batch."""
    finished: list[Receipt] = []
    for each in batch:
        receipt: Receipt = each.delivery.receipt
        if each.verdict is Verdict.ACK:
            finished.append(receipt)
        elif each.verdict is Verdict.REQUEUE:
            _requeue(connection, receipt, each.count)
        elif each.verdict is Verdict.DELAY:
            _park(connection, receipt, each.until, each.count)
        elif each.verdict is Verdict.MARK:
            connection.execute(MARK, receipt)
        else:
            bury(connection, receipt, each.reason, each.count)
    for (holder, reservation), ids in _by_reservation(finished).items():
        _finish(connection, holder, reservation, ids)


def still_held(connection: sqlite3.Connection, receipts: Sequence[Receipt]) -> set[Receipt]:
    """Those of the receipts that are good still."""
    kept: set[Receipt] = set()
    for whose, ids in _by_reservation(receipts).items():
        kept.update((number, *whose) for (number,) in connection.execute(STILL_HELD, (str(ids), *whose)))
    return kept


def bury(connection: sqlite3.Connection, receipt: Receipt, reason: str, count: bool = False) -> None:
    """Move one held message to the dead letters; its bytes stay where they are."""
    held = _take_back(connection, receipt)
    if held:
        queue, priority, attempts, _, _ = _account(held, count)
        connection.execute(DIE, (receipt[0], queue, priority, attempts, _storable(reason), time.time()))


def _by_reservation(receipts: Iterable[Receipt]) -> dict[tuple[int, int], list[int]]:
    """Message ids by holder and reservation."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, holder, reservation in receipts:
        found.setdefault((holder, reservation), []).append(number)
    return found


def _finish(connection: sqlite3.Connection, holder: int, reservation: int, ids: list[int]) -> None:
    rows = connection.execute(STILL_HELD, (str(ids), holder, reservation)).fetchall()
    held = str([number for (number,) in rows])
    connection.execute(DROP_HELD, (held,))
    connection.execute(DROP_MESSAGES, (held,))


def _requeue(connection: sqlite3.Connection, receipt: Receipt, count: bool) -> None:
    held = _take_back(connection, receipt)
    if held:
        *rest, redelivered = _account(held, count)
        connection.execute(WAIT, (receipt[0], *rest, redelivered or REDELIVERED))


def _park(connection: sqlite3.Connection, receipt: Receipt, until: float, count: bool) -> None:
    held = _take_back(connection, receipt)
    if held:
        due = until if until == until else 0.0  # SQLite stores NaN as NULL; it means no time, so now
        queue, priority, attempts, returns, redelivered = _account(held, False)
        row = (queue, priority, attempts, returns + count, REDELIVERED if count and not redelivered else redelivered)
        connection.execute(PARK, (due, receipt[0], *row))


def _account(held: Held, count: bool) -> Held:
    """What is remembered of a delivery that ended: its mark has counted the one before, `count` counts this one."""
    queue, priority, attempts, returns, redelivered = held
    if count or redelivered == MARKED:
        return queue, priority, attempts + count, returns, REDELIVERED
    return held


def _take_back(connection: sqlite3.Connection, receipt: Receipt) -> Held | None:
    """Queue, priority, attempts, returns and redelivered of a message that was held until here; None if it is not ours."""
    held: Held | None = connection.execute(HELD, receipt).fetchone()
    if held:
        connection.execute(UNHOLD, receipt[:1])
    return held


def _storable(text: str) -> str:
    """SQLite takes no half characters (surrogates), and a reason may quote anybody's bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
