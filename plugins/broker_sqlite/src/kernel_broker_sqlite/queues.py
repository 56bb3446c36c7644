"""Bind, count, purge. SQL on a connection the caller gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from kernel_worker.errors import BrokerRefused
from kernel_worker.types import QueueInfo, QueueSpec

PURGED_AT_ONCE = 2000
"""Deleted by one transaction, some 20 ms: workers go on reserving and settling between two of them."""

BIND = "INSERT OR IGNORE INTO kw_binding (exchange, routing_key, queue) VALUES (?, ?, ?)"
COUNT = """
    SELECT (SELECT count(*) FROM kw_waiting WHERE queue = ?1), (SELECT count(*) FROM kw_held WHERE queue = ?1),
           (SELECT count(*) FROM kw_parked WHERE queue = ?1), (SELECT count(*) FROM kw_dead WHERE queue = ?1)"""
FIRST_WAITING = "SELECT priority, id FROM kw_waiting WHERE queue = ? ORDER BY priority, id LIMIT ?"
DROP_WAITING = "DELETE FROM kw_waiting WHERE queue = ? AND priority = ? AND id = ?"
FIRST_PARKED = "SELECT due, id FROM kw_parked WHERE queue = ? LIMIT ?"
DROP_PARKED = "DELETE FROM kw_parked WHERE due = ? AND id = ?"
DROP_MESSAGE = "DELETE FROM kw_message WHERE id = ?"


def bind(connection: sqlite3.Connection, queues: Sequence[QueueSpec]) -> None:
    """Write down which exchange and routing key lead to which queue. Inside a transaction.

    :raises BrokerRefused: an exchange is not direct.
    """
    for queue in queues:
        if queue.exchange_type != "direct":
            raise BrokerRefused(
                f"queue {queue.name!r} is bound to the {queue.exchange_type} exchange {queue.exchange!r}: "
                "the embedded broker has direct exchanges only",
                hint="use exchange type 'direct', or a broker that can do it (redis, amqp)",
            )
        connection.execute(BIND, (queue.exchange or queue.name, queue.routing_key or queue.name, queue.name))


def count(connection: sqlite3.Connection, queue: str) -> QueueInfo:
    """Count the messages of one queue. Takes some 10 ms per million."""
    return QueueInfo(queue, *connection.execute(COUNT, (queue,)).fetchone())


def purge_some(connection: sqlite3.Connection, queue: str) -> int:
    """Delete some of the waiting and parked messages; how many, 0 when there are none. Inside a transaction."""
    waiting = connection.execute(FIRST_WAITING, (queue, PURGED_AT_ONCE)).fetchall()
    connection.executemany(DROP_WAITING, [(queue, *row) for row in waiting])
    parked = connection.execute(FIRST_PARKED, (queue, PURGED_AT_ONCE - len(waiting))).fetchall()
    connection.executemany(DROP_PARKED, parked)
    connection.executemany(DROP_MESSAGE, [(number,) for _, number in waiting + parked])
    return len(waiting) + len(parked)
