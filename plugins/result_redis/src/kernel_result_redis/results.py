"""The result backend: Celery's keys, JSON and channels (celery 5.7, backends/redis.py and base.py).

    celery-task-meta-<task id>    string, the task meta as JSON; kept for `result_expires`
    channel named as the key      every stored meta is published there

Any thread, any greenlet; after a fork the child opens connections of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .connection import Connection, pack
from .errors import RedisUnavailable, ReplyError
from .pool import Pool
from .script import Script
from .server import Server, parse

_CHECK_S = 5.0  # after such a silence the key is read again: shows a dead link, and a push that was lost
_RETRY_S = (0.05, 1.0)  # pauses between attempts to connect while waiting, growing
_PATIENCE_S = 20.0  # without a time-out, waiting ends when the server was away for so long
_CHUNK = 1000  # results stored by one call of the script
_WAITERS = 32  # idle subscriber connections kept

with open(os.path.join(os.path.dirname(__file__), "store.lua"), encoding="utf-8") as _file:
    _STORE = Script("store", _file.read())


class RedisResults:
    """Stores and reads task states; see `kernel_worker.ResultBackend`.

    :param url: redis://, rediss://, redis+socket:// or unix://.
    :param settings: the application's lowercase settings; obeyed are result_backend_transport_options
        (global_keyprefix), redis_socket_timeout, redis_socket_connect_timeout, redis_socket_keepalive,
        redis_max_connections, redis_username, redis_password, redis_backend_use_ssl.
    :raises ValueError: the URL or a setting makes no sense.
    """

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        server = _server(url, settings)
        limit = settings.get("redis_max_connections")
        self._prefix = _key_prefix(settings) + "celery-task-meta-"
        self._pool = Pool(server, int(limit or 10), "kw:results")
        self._waiters = Pool(server, min(int(limit or _WAITERS), _WAITERS), "kw:waiting")

    def store(self, results: Sequence[Any]) -> None:
        """Store all and tell those who wait, in one round trip. Idempotent.

        :param results: `kernel_worker.StoredResult`s, the later state of a task after the earlier.
        :raises ConnectionError: the server is away or refuses; some may have been stored.
        """
        for start in range(0, len(results), _CHUNK):
            keys: list[str] = []
            args: list[Any] = []
            for result in results[start : start + _CHUNK]:
                keys.append(self._prefix + result.task_id)
                keep_ms = max(1, int(result.expires * 1000)) if result.expires else 0
                args += (result.state, keep_ms, result.payload)
            with self._pool.lend() as connection:
                _STORE.run(connection, keys, args)

    def fetch(self, task_id: str) -> bytes | None:
        """The stored task meta, or None. Raises ConnectionError."""
        found: bytes | None = self._pool.call("GET", self._prefix + task_id)
        return found

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        """Wait until a meta for which `is_final(meta)` holds is stored; None after `timeout` seconds.

        Told by the server, not asked again and again. A lost connection is opened anew until the time is over.

        :raises ConnectionError: there was no connection when the time was over; without a time-out, none for
            20 s. The server refuses.
        """
        key = self._prefix + task_id
        deadline = None if timeout is None else time.monotonic() + timeout
        give_up, pause = time.monotonic() + _PATIENCE_S, _RETRY_S[0]
        while True:
            try:
                connection = self._waiters.take()
                give_up, pause = time.monotonic() + _PATIENCE_S, _RETRY_S[0]
                return self._listen(connection, key.encode(), deadline, is_final)
            except RedisUnavailable:
                left = (give_up if deadline is None else deadline) - time.monotonic()
                if left <= 0:
                    raise
                time.sleep(min(pause, left))
                pause = min(2 * pause, _RETRY_S[1])

    def forget(self, task_id: str) -> None:
        """Delete what is stored of a task. Raises ConnectionError."""
        self._pool.call("DEL", self._prefix + task_id)

    def close(self) -> None:
        """Close idle connections. Idempotent; the backend can be used again."""
        self._pool.close()
        self._waiters.close()

    # ------------------------------------------------------------------ waiting

    def _listen(
        self, connection: Connection, key: bytes, deadline: float | None, is_final: Callable[[bytes], bool]
    ) -> bytes | None:
        """Subscribe, then read: what is stored in between is published to us. Leaves no subscription."""
        check_s = min(_CHECK_S, connection.server.timeout)
        try:
            connection.send(pack(("SUBSCRIBE", key)) + pack(("GET", key)))
            meta: bytes | None = _answer(connection)
            while meta is None or not is_final(meta):
                left = check_s if deadline is None else min(check_s, deadline - time.monotonic())
                if left <= 0:
                    meta = None
                    break
                push = connection.read_push(left)
                if push is None:  # silence: lost link or lost message show here
                    connection.send(pack(("GET", key)))
                    meta = _answer(connection)
                else:
                    meta = push[2] if push[0] == b"message" and push[1] == key else None
            _unsubscribe(connection, key)
        except BaseException:  # time limits of the calling task too; closing ends the subscription
            connection.close()
            raise
        self._waiters.give(connection)
        return meta


def _answer(connection: Connection) -> Any:
    reply = connection.read()
    if isinstance(reply, ReplyError):
        raise reply.explain(connection.server)
    return reply


def _unsubscribe(connection: Connection, key: bytes) -> None:
    """Leave the connection without subscription and with nothing outstanding; or closed."""
    try:
        connection.send(pack(("UNSUBSCRIBE", key)))
        while push := connection.read_push(connection.server.timeout):
            if push[0] == b"unsubscribe":
                break
        else:
            connection.close()
    except RedisUnavailable:  # nothing is left of it; the answer we have is good
        pass


def _key_prefix(settings: Mapping[str, Any]) -> str:
    """Celery's rule: an underscore is added unless the prefix ends in one of `: _ - .`."""
    prefix = str((settings.get("result_backend_transport_options") or {}).get("global_keyprefix") or "")
    return f"{prefix}_" if prefix and prefix[-1] not in ":_-." else prefix


def _server(url: str, settings: Mapping[str, Any]) -> Server:
    options = dict(settings.get("result_backend_transport_options") or {})
    names = ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "username", "password", "client_name")
    options |= {name: value for name in names if (value := settings.get(f"redis_{name}")) is not None}
    if settings.get("redis_backend_use_ssl"):
        options["ssl"] = settings["redis_backend_use_ssl"]
    return parse(url, options)
