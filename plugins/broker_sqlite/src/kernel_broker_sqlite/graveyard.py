"""The dead letters of a queue: list, find, put back, delete. SQL on a connection the caller gives."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from kernel_worker.types import DeadLetter

EXHUMED_AT_ONCE = 500
"""Letters taken out by one transaction: workers go on reserving and settling between two of them."""

LETTER = """
    SELECT d.id, d.queue, m.raw, d.reason, d.died_at, d.attempts, m.payload
    FROM kw_dead d JOIN kw_message m ON m.id = d.id WHERE d.queue = ?"""
NEWEST = f"{LETTER} ORDER BY d.number DESC LIMIT ?"
ONE = f"{LETTER} AND d.id = ?"
LAST = "SELECT max(number) FROM kw_dead WHERE queue = ?"
OLDEST = "SELECT id FROM kw_dead WHERE queue = ? AND number <= ? ORDER BY number LIMIT ?"
KNOWN = "SELECT id FROM kw_dead WHERE queue = ? AND id IN (SELECT value FROM json_each(?)) ORDER BY number"
# The order in a queue is that of ids: a new one leads to its end.
COPY = "INSERT INTO kw_message (raw, payload) SELECT raw, payload FROM kw_message WHERE id = ?"
WAIT = """
    INSERT INTO kw_waiting (queue, priority, id, attempts, returns, redelivered)
    SELECT queue, priority, last_insert_rowid(), 0, 0, 1 FROM kw_dead WHERE id = ?"""
DROP_LETTER = "DELETE FROM kw_dead WHERE id = ?"
DROP_MESSAGE = "DELETE FROM kw_message WHERE id = ?"


def newest(connection: sqlite3.Connection, queue: str, limit: int) -> list[DeadLetter]:
    """The newest first."""
    return [_letter(row) for row in connection.execute(NEWEST, (queue, max(0, limit)))]


def find(connection: sqlite3.Connection, queue: str, letter_id: str) -> DeadLetter | None:
    """One of them."""
    row = connection.execute(ONE, (queue, number)).fetchone() if (number := _number(letter_id)) else None
    return _letter(row) if row else None


def last(connection: sqlite3.Connection, queue: str) -> int:
    """Number of the newest; 0 = there is none."""
    return connection.execute(LAST, (queue,)).fetchone()[0] or 0


def oldest(connection: sqlite3.Connection, queue: str, until: int) -> list[str]:
    """Ids of some of the oldest that died not after the letter with the number `until`."""
    return [str(number) for (number,) in connection.execute(OLDEST, (queue, until, EXHUMED_AT_ONCE))]


def exhume(connection: sqlite3.Connection, queue: str, ids: Sequence[str], *, replay: bool) -> int:
    """Put letters back at the end of their queue, or delete them; how many were found. Inside a transaction."""
    asked = json.dumps([number for each in ids if (number := _number(each))])
    known: list[tuple[int]] = connection.execute(KNOWN, (queue, asked)).fetchall()
    for row in known:
        if replay:
            connection.execute(COPY, row)
            connection.execute(WAIT, row)
        connection.execute(DROP_LETTER, row)
        connection.execute(DROP_MESSAGE, row)
    return len(known)


def _letter(row: tuple[int, str, bytes, str, float, int, bytes | None]) -> DeadLetter:
    return DeadLetter(str(row[0]), *row[1:])


def _number(letter_id: str) -> int:
    """An id as the number it is; 0, which no message has, for anything else."""
    if letter_id.isascii() and letter_id.isdigit() and len(letter_id) < 19:
        return int(letter_id)
    return 0
