"""Remote control through the file: broadcasts, and one channel per box for replies. Imports nothing of the kernel.

A broadcast is a row of `kw_broadcast`; rows older than a minute go with the next one, so nothing stays behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernel_result_sqlite.location import parse_url

if TYPE_CHECKING:
    from kernel_result_sqlite.database import Database

    from .broadcast import Listener

HOLDERS = "SELECT name FROM kw_holder WHERE boot = ? AND deadline > ?"


class SqliteMailbox:
    """See `kernel_worker.Mailbox`.

    :param url: `sqlite:///kw.db`.
    :param options: none matters here.
    :param name: `control_exchange`.
    :raises ValueError: the URL is wrong.
    """

    def __init__(self, url: str, options: Mapping[str, Any], name: str = "celery") -> None:
        self._location = parse_url(url)
        self._name = name
        self._listener: Listener | None = None
        self._opened: Database | None = None
        self._interrupted = False

    def listen(self, node: str) -> None:
        """Hear broadcasts from now on."""
        self._open(f"{self._name}.pidbox")

    def expect(self, box: str) -> None:
        """Hear what is replied to the box from now on."""
        self._open(self._channel(box))

    def receive(self, timeout: float) -> list[tuple[Mapping[str, Any], str, bytes]]:
        """See the contract."""
        if self._listener is None:
            raise ConnectionError(f"{self._location.path} is not open")
        if self._interrupted:
            timeout, self._interrupted = 0.0, False
        return [_read(each) for each in self._listener.receive(timeout)]

    def broadcast(self, headers: Mapping[str, Any], body: bytes) -> int | None:
        """Tell all workers that listen now; how many is not known."""
        self._say([(f"{self._name}.pidbox", headers, body)])
        return None

    def roster(self) -> list[str]:
        """Nodes with a lease: the node name is what comes before pid and random part of a holder."""
        from .leases import Lease

        ours = Lease.of("", 0.0)
        rows = self._database().read(
            lambda connection: connection.execute(HOLDERS, (ours.boot, ours.clock())).fetchall()
        )
        return sorted({name.partition("/")[0].rsplit(".", 2)[0] for (name,) in rows})

    def reply(self, letters: Sequence[tuple[str, Mapping[str, Any], bytes]]) -> None:
        """Send replies."""
        self._say([(self._channel(box), headers, body) for box, headers, body in letters])

    def interrupt(self) -> None:
        """Wake `receive`. Any thread."""
        self._interrupted = True
        listener = self._listener
        if listener is not None:
            listener.interrupt()

    def close(self) -> None:
        """Close. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if self._opened is not None:
            self._opened.close()

    def _channel(self, box: str) -> str:
        return f"reply.{self._name}.pidbox.{box}"

    def _open(self, channel: str) -> None:
        from kernel_result_sqlite.database import Database

        from .broadcast import Listener
        from .schema import SCHEMA

        self.close()
        self._listener = Listener(Database(self._location, SCHEMA), channel)

    def _say(self, letters: Sequence[tuple[str, Mapping[str, Any], bytes]]) -> None:
        from .broadcast import say

        rows = [(channel, json.dumps([dict(headers), body.decode()]).encode()) for channel, headers, body in letters]

        def operation(connection: Any) -> None:
            for channel, row in rows:
                say(connection, channel, row)

        self._database().write(operation)

    def _database(self) -> Database:
        if self._opened is None:
            from kernel_result_sqlite.database import Database

            from .schema import SCHEMA

            self._opened = Database(self._location, SCHEMA)
        return self._opened


def _read(row: bytes) -> tuple[Mapping[str, Any], str, bytes]:
    try:
        headers, body = json.loads(row)
        return headers if isinstance(headers, dict) else {}, "application/json", body.encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}, "", b""
