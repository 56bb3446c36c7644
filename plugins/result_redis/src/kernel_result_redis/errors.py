"""What can go wrong between us and a Redis server.

    RedisUnavailable  (ConnectionError)   not reachable now, or lost: try again later
    RedisRefused      (ConnectionError)   reached, and it said no: wrong password, missing rights, too old
    ReplyError                            one command failed; the connection is fine

No text of these holds credentials.
"""

from __future__ import annotations

import re

from .server import Server

_AWAY = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN")
_REFUSED = ("ASK", "CROSSSLOT", "DENIED", "MOVED", "NOAUTH", "NOPERM", "NOPROTO", "WRONGPASS", "WRONGTYPE")
# Redis 6.2 wraps the code of an error inside a script into other text, so it is searched for
_CODE = re.compile(r"\b(" + "|".join(_AWAY + _REFUSED) + r")\b")
_NO_CLUSTER = "Redis Cluster is not supported: use a server without cluster mode"
_HINTS = {
    "ASK": _NO_CLUSTER,
    "BUSY": "another program's script blocks the server: SCRIPT KILL ends it",
    "CLUSTERDOWN": _NO_CLUSTER,
    "CROSSSLOT": _NO_CLUSTER,
    "DENIED": "the server is in protected mode: give it a password, or let it listen on loopback only",
    "LOADING": "the server has just started and reads its data; it will answer soon",
    "MASTERDOWN": "the server is a replica that has lost its primary: the URL must lead to the primary",
    "MISCONF": "the server cannot save to its disk and takes no writes: see its log",
    "MOVED": _NO_CLUSTER,
    "NOREPLICAS": "the server takes no writes without enough replicas (min-replicas-to-write)",
    "NOAUTH": "put the password into the URL: redis://:password@host:6379/0",
    "NOPERM": "grant the user the commands and keys it needs",
    "OOM": "raise maxmemory of the server, or empty queues and results",
    "READONLY": "the server is a replica: the URL must lead to the primary",
    "WRONGPASS": "check user name and password in the URL",
    "WRONGTYPE": "another program uses this key: choose another queue name, database or global_keyprefix",
}


class RedisUnavailable(ConnectionError):
    """The server cannot be reached, the connection is lost, or it cannot work now."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RedisRefused(ConnectionError):
    """The server was reached and said no. `hint` says how to mend it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ReplyError(Exception):
    """The server answered one command with an error."""

    @property
    def code(self) -> str:
        """The word that names the kind of error: OOM, NOSCRIPT, ERR …"""
        text = str(self)[:300]
        found = _CODE.search(text)
        return found.group(1) if found else text.partition(" ")[0]

    def explain(self, server: Server) -> RedisUnavailable | RedisRefused:
        """The same as an error for the caller's caller."""
        text = str(self)[:300]
        message = f"{server}: {text}"
        if self.code in _AWAY or "max number of clients" in text:
            return RedisUnavailable(message, _HINTS.get(self.code, ""))
        return RedisRefused(message, _HINTS.get(self.code, ""))
