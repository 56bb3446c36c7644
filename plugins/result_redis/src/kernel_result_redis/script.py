"""Lua scripts, called by their digest: one change of state each, atomic on the server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from .connection import Connection, pack
from .errors import RedisUnavailable, ReplyError


class Script:
    """One script. Holds no connection, so one object serves all."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def packed(self, keys: Sequence[Any], args: Iterable[Any]) -> bytes:
        """The call as bytes to be sent."""
        return pack(("EVALSHA", self.sha, len(keys), *keys, *args))

    def run(self, connection: Connection, keys: Sequence[Any], args: Iterable[Any]) -> Any:
        """Call the script; one the server has forgotten (restart, fail-over, SCRIPT FLUSH) is loaded again.

        :raises RedisUnavailable, RedisRefused: as the server's answer says. Nothing is repeated unless the
            server said that it did not know the script.
        """
        call = self.packed(keys, args)
        connection.send(call)
        reply = connection.read()
        if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":
            self.load(connection)
            connection.send(call)
            reply = connection.read()
        if isinstance(reply, ReplyError):
            raise reply.explain(connection.server)
        return reply

    def load(self, connection: Connection) -> None:
        """Make the server know the script."""
        try:
            known = connection.call("SCRIPT", "LOAD", self.text)
        except ReplyError as error:
            raise error.explain(connection.server) from None
        if known.decode() != self.sha:
            raise RedisUnavailable(f"{connection.server}: the server stored another script than {self.name}")
