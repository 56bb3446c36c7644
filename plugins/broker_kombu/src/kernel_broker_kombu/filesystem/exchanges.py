"""Which queues are bound to an exchange: kombu's tables, one JSON file per exchange. Imports nothing of the kernel.

    <control_folder>/<exchange>.exchange    [[routing key, pattern, queue], …]

`pattern` is the routing key of a topic binding as a regular expression, else "".
"""

from __future__ import annotations

import fcntl
import json
import os
import re

TYPES = ("direct", "topic", "fanout")
_NAME = re.compile(r"[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*")
_WORD = {"*": r"[^\.]+", "#": r".*?"}
"""As kombu writes them, so that a binding made by both is one row."""


def bind(folder: str, exchange: str, kind: str, routing_key: str, queue: str) -> None:
    """Add a binding; one that is there already stays one.

    :param kind: direct, topic or fanout.
    :raises LookupError: an exchange cannot have this name.
    :raises OSError: the folder cannot be used.
    """
    row = [routing_key, _pattern(routing_key) if kind == "topic" else "", queue]
    path = _path(folder, exchange)
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with open(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # kombu locks the same way
        table = _rows(file.read())
        if row not in table:
            file.seek(0)
            file.write(json.dumps([row, *table]).encode())
            file.truncate()


def bound(folder: str, exchange: str, kind: str, routing_key: str) -> list[str]:
    """The queues that a message to this exchange goes to, each once.

    :raises LookupError: an exchange cannot have this name.
    """
    try:
        with open(_path(folder, exchange), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            table = _rows(file.read())
    except FileNotFoundError:
        return []
    return list(dict.fromkeys(queue for key, pattern, queue in table if _fits(kind, key, pattern, routing_key)))


def _fits(kind: str, key: str, pattern: str, routing_key: str) -> bool:
    if kind == "fanout":
        return True
    if kind == "topic":
        return re.match(pattern or _pattern(key), routing_key) is not None
    return key == routing_key


def _pattern(routing_key: str) -> str:
    words = (_WORD.get(word) or re.escape(word) for word in routing_key.split("."))
    return "^" + r"\.".join(words) + "$"


def _rows(text: bytes) -> list[list[str]]:
    try:
        found = json.loads(text or b"[]")
        return [[key or "", pattern or "", queue or ""] for key, pattern, queue in found]
    except (ValueError, TypeError):  # cut off by a crash of its writer: as if it was not there yet
        return []


def _path(folder: str, exchange: str) -> str:
    if not _NAME.fullmatch(exchange):
        raise LookupError(f"exchange {exchange!r} cannot be a file name: only letters, digits and . _ - are possible")
    return os.path.join(folder, f"{exchange}.exchange")
