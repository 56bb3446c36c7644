"""Take messages from the front of queues, in one transaction. SQL on a connection the caller gives."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .settling import bury

FETCH_BYTES = 32 * 1024 * 1024
"""One fetch stops when it has taken so much: a hundred large messages must not fill the memory."""
RELEASED_AT_ONCE = 1000
"""Parked messages brought back by one transaction: a bounded delay for the others who want to write."""

LOOK = """
    SELECT EXISTS (SELECT 1 FROM kw_waiting WHERE queue IN ({})), (SELECT min(due) FROM kw_parked)"""
PEEK = "SELECT priority FROM kw_waiting WHERE queue = ? ORDER BY priority, id LIMIT ?"
# CROSS JOIN is SQLite's way to say which table is the outer one. length() of a BLOB does not read it.
TAKE = """
    SELECT w.priority, w.id, w.attempts, w.returns, w.redelivered, length(m.raw) + ifnull(length(m.payload), 0) AS size,
           CASE WHEN length(m.raw) + ifnull(length(m.payload), 0) <= ?2 THEN m.raw END,
           CASE WHEN length(m.raw) + ifnull(length(m.payload), 0) <= ?2 THEN m.payload END
    FROM kw_waiting w CROSS JOIN kw_message m ON m.id = w.id
    WHERE w.queue = ?1 ORDER BY w.priority, w.id LIMIT ?3"""
HOLD = """
    INSERT INTO kw_held (id, holder, reservation, queue, priority, attempts, returns, redelivered)
    SELECT id, ?, ?, queue, priority, attempts, returns, redelivered FROM kw_waiting
    WHERE queue = ? AND (priority, id) <= (?, ?)"""
UNWAIT = "DELETE FROM kw_waiting WHERE queue = ? AND (priority, id) <= (?, ?)"
LAST_DUE = "SELECT due, id FROM kw_parked WHERE due <= ? ORDER BY due, id LIMIT 1 OFFSET ?"
RELEASE = """
    INSERT INTO kw_waiting (queue, priority, id, attempts, returns, redelivered)
    SELECT queue, priority, id, attempts, returns, redelivered FROM kw_parked WHERE (due, id) <= (?, ?)"""
UNPARK = "DELETE FROM kw_parked WHERE (due, id) <= (?, ?)"
LARGEST_ID = (1 << 63) - 1


@dataclass(slots=True)
class Taken:
    """One reserved message."""

    queue: str
    id: int
    attempts: int
    returns: int
    redelivered: int  # as in `schema`
    raw: bytes
    payload: bytes | None


@dataclass(slots=True)
class Order:
    """What one fetch asks for.

    :param queues: in the order of their turn.
    :param holder: id of who takes.
    :param reservation: number of this fetch.
    :param largest: messages of more bytes are buried instead.
    """

    queues: Sequence[str]
    limit: int
    holder: int
    reservation: int
    largest: int
    bytes_left: int = FETCH_BYTES


def look(connection: sqlite3.Connection, queues: Sequence[str]) -> tuple[bool, float | None]:
    """Whether something waits in the queues, and when the next parked message of any queue is due. Only reads."""
    waiting, due = connection.execute(LOOK.format(",".join("?" * len(queues))), queues).fetchone()
    return bool(waiting), due


def release_due(connection: sqlite3.Connection, now: float) -> None:
    """Let parked messages whose time has come wait in their queues again, as old as they are."""
    last = connection.execute(LAST_DUE, (now, RELEASED_AT_ONCE - 1)).fetchone() or (now, LARGEST_ID)
    connection.execute(RELEASE, last)
    connection.execute(UNPARK, last)


def reserve(connection: sqlite3.Connection, order: Order) -> list[Taken]:
    """Take up to `order.limit` messages: by priority, and within one priority each queue in turn."""
    if len(order.queues) == 1:
        return _take(connection, order, order.queues[0], order.limit)
    peeked = {
        queue: [priority for (priority,) in connection.execute(PEEK, (queue, order.limit))] for queue in order.queues
    }
    turns = take_turns(peeked, order.limit)
    taken = {queue: deque(_take(connection, order, queue, turns.count(queue))) for queue in dict.fromkeys(turns)}
    # A queue may have given less than its turns: too large ones, or too many bytes in all.
    return [taken[queue].popleft() for queue in turns if taken[queue]]


def take_turns(peeked: Mapping[str, Iterable[int]], limit: int) -> list[str]:
    """Which queue gives the next message, and the next, ...

    :param peeked: for each queue, in the order of their turn, the priorities of its first messages.
    """
    turns: list[tuple[int, int, int, str]] = []
    for place, (queue, priorities) in enumerate(peeked.items()):
        before: dict[int, int] = {}
        for priority in priorities:
            turn = before[priority] = before.get(priority, -1) + 1
            turns.append((priority, turn, place, queue))
    turns.sort()
    return [queue for *_, queue in turns[:limit]]


def _take(connection: sqlite3.Connection, order: Order, queue: str, count: int) -> list[Taken]:
    taken: list[Taken] = []
    too_large: list[tuple[int, int]] = []
    last: tuple[int, int] | None = None
    rows = connection.execute(TAKE, (queue, order.largest, count))
    for priority, number, attempts, returns, redelivered, size, raw, payload in rows:
        if order.bytes_left <= 0:
            break
        last = (priority, number)
        if raw is None:
            too_large.append((number, size))
            continue
        order.bytes_left -= size
        taken.append(Taken(queue, number, attempts, returns, redelivered, raw, payload))
    rows.close()
    if last is not None:
        # What was read is a run of neighbours, and nobody else can write meanwhile.
        connection.execute(HOLD, (order.holder, order.reservation, queue, *last))
        connection.execute(UNWAIT, (queue, *last))
    for number, size in too_large:
        reason = f"too large: {size} bytes, at most {order.largest} are delivered"
        bury(connection, (number, order.holder, order.reservation), reason)
    return taken
