"""Remote control over Redis, as kombu's pidbox has it on the wire. Imports nothing of the kernel.

    PUBLISH /<db>.<name>.pidbox                     a broadcast: one envelope, heard by all who subscribe
    _kombu.binding.reply.<name>.pidbox              set; member <box> sep sep <box>.reply.<name>.pidbox: somebody waits
    LPUSH <box>.reply.<name>.pidbox                 a reply: one envelope

One connection for all of it, own and never shared with consumption: RESP3 lets a subscriber send commands. Reply lists
expire; the binding of a client that was killed is taken away by whoever answered it.

Facts: kombu 5.7, pidbox.py and transport/redis.py, checked by running both sides.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from kernel_result_redis.connection import Connection, pack
from kernel_result_redis.errors import RedisUnavailable, ReplyError
from kernel_result_redis.server import parse

from .interrupt import Interrupt
from .layout import Layout

REPLY_KEPT_MS = 20_000
"""How long a reply waits for its reader, who polls all the time while it is alive."""
BINDING_KEPT_S = 45.0
"""How long after the last answer a binding stays that its owner did not take away."""
LOOK_S = 28.0
"""How often a worker looks through all bindings: one it sees twice belongs to a client that was killed and whose worker
is gone, too. A client that waits for longer than this for one reply binds anew with its next call."""
CHECK_S = 5.0
"""A quiet connection is asked for a sign of life this often: a subscriber would never notice its end otherwise."""
MOST_AT_ONCE = 100


class RedisMailbox:
    """See `kernel_worker.Mailbox`.

    :param url: redis://, rediss://, redis+socket:// or unix://.
    :param options: `broker_transport_options`.
    :param name: `control_exchange`.
    :raises ValueError: the URL or an option makes no sense.
    """

    def __init__(self, url: str, options: Mapping[str, Any], name: str = "celery") -> None:
        self._server = parse(url, options)
        self._layout = Layout(options, self._server.db)
        self._channel = self._layout.channel(f"{name}.pidbox", "")
        self._replies = f"reply.{name}.pidbox"
        self._link: Connection | None = None
        self._box = ""
        self._answered: dict[str, float] = {}
        self._looked_at = time.monotonic()
        self._seen: frozenset[bytes] = frozenset()
        self._checked_at = 0.0
        self._interrupt = Interrupt()

    def listen(self, node: str) -> None:
        """Subscribe to broadcasts."""
        link = self._connect("kw:control")
        link.send(pack(("SUBSCRIBE", self._channel)))
        deadline = time.monotonic() + self._server.timeout
        while (push := link.read_push(max(0.0, deadline - time.monotonic()))) is not None:
            if isinstance(push, ReplyError):
                raise push.explain(self._server)
            if push[0] == b"subscribe":
                return
        raise RedisUnavailable(f"{self._server}: no answer to a subscription")

    def expect(self, box: str) -> None:
        """Bind the box, as a Celery client does: peers answer nobody else."""
        self._connect("kw:control-client")
        self._box = box
        self._call(("SADD", self._layout.binding_sets(self._replies)[0], self._binding(box)))

    def receive(self, timeout: float) -> list[tuple[Mapping[str, Any], str, bytes]]:
        """See the contract."""
        link = self._linked()
        return self._read_box(timeout) if self._box else self._read_channel(link, timeout)

    def broadcast(self, headers: Mapping[str, Any], body: bytes) -> int | None:
        """Publish to all workers that listen now; how many there are."""
        if self._link is None:
            self._connect("kw:control-client")
        return int(self._call(("PUBLISH", self._channel, _envelope(headers, body, self._channel))))

    def roster(self) -> list[str]:
        """Nodes with a lease: the node name is what comes before pid and random part of a holder."""
        seconds, micro = self._call(("TIME",))
        now = int(seconds) + int(micro) / 1e6
        holders = self._call(("ZRANGEBYSCORE", self._layout.holders, repr(now), "+inf"))
        return sorted({each.decode("utf-8", "replace").partition("/")[0].rsplit(".", 2)[0] for each in holders})

    def reply(self, letters: Sequence[tuple[str, Mapping[str, Any], bytes]]) -> None:
        """Send replies; those nobody waits for any more are dropped."""
        link, layout = self._linked(), self._layout
        bindings = layout.binding_sets(self._replies)[0]
        asked = link.pipeline([("SISMEMBER", bindings, self._binding(box)) for box, _, _ in letters])
        commands: list[tuple[Any, ...]] = []
        for (box, headers, body), is_bound in zip(letters, asked, strict=True):
            if isinstance(is_bound, ReplyError):
                raise is_bound.explain(self._server)
            if is_bound:
                key = layout.list_key(self._queue(box), 0)
                commands += [("LPUSH", key, _envelope(headers, body, self._replies, box))]
                commands += [("PEXPIRE", key, REPLY_KEPT_MS)]
                self._answered[box] = time.monotonic() + BINDING_KEPT_S
        for answer in link.pipeline(commands) if commands else ():
            if isinstance(answer, ReplyError):
                raise answer.explain(self._server)

    def interrupt(self) -> None:
        """Wake `receive`. Any thread."""
        self._interrupt.set()

    def close(self) -> None:
        """Take the box away and close. Idempotent."""
        if self._box and self._link is not None:
            try:
                self._forget([self._box])
            except ConnectionError:
                pass  # it expires, and whoever answered takes the binding away
        self._box = ""
        self._hang_up()
        self._interrupt.close()

    # ------------------------------------------------------------------ receiving

    def _read_channel(self, link: Connection, timeout: float) -> list[tuple[Mapping[str, Any], str, bytes]]:
        self._forget_unread()
        now = time.monotonic()
        if now - self._checked_at > CHECK_S:
            self._call(("PING",))
            self._checked_at = now
        if not link.pushes and not self._interrupt.take():
            link.wait(timeout, self._interrupt.descriptor)
        self._interrupt.take()
        link.drain_pushes()
        pushes, link.pushes = link.pushes, []
        return [_read(push[2]) for push in pushes if push[0] == b"message"]

    def _read_box(self, timeout: float) -> list[tuple[Mapping[str, Any], str, bytes]]:
        key = self._layout.list_key(self._queue(self._box), 0)
        deadline = time.monotonic() + timeout
        while True:
            # In slices: a call may not be silent for longer than the connection's time-out.
            left = min(deadline - time.monotonic(), self._server.timeout / 2)
            popped = self._call(("BRPOP", key, f"{max(0.01, left):.3f}"))
            if popped is not None:
                more = self._call(("RPOP", key, MOST_AT_ONCE)) or []
                return [_read(raw) for raw in (popped[1], *more)]
            if time.monotonic() >= deadline:
                return []

    # ------------------------------------------------------------------ connection

    def _connect(self, name: str) -> Connection:
        self._hang_up()
        self._interrupt.open()
        self._link = Connection.open(self._server, name)
        self._checked_at = time.monotonic()
        return self._link

    def _linked(self) -> Connection:
        if self._link is None:
            raise RedisUnavailable(f"{self._server}: not connected")
        return self._link

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _call(self, command: tuple[Any, ...]) -> Any:
        try:
            return self._linked().call(*command)
        except ReplyError as error:
            raise error.explain(self._server) from None

    # ------------------------------------------------------------------ boxes

    def _queue(self, box: str) -> str:
        return f"{box}.{self._replies}"

    def _binding(self, box: str) -> str:
        return self._layout.binding(self._queue(box), "direct", box)

    def _forget_unread(self) -> None:
        """Take away the bindings of clients that were killed: nothing else ever would."""
        now = time.monotonic()
        over = [box for box, due in self._answered.items() if due < now]
        if over:
            for box in over:
                del self._answered[box]
            self._forget(over)
        if now - self._looked_at > LOOK_S:
            self._looked_at = now
            self._look_for_orphans()

    def _look_for_orphans(self) -> None:
        """Take away the bindings that were here at the last look already."""
        key = self._layout.binding_sets(self._replies)[0]
        bound = frozenset(self._call(("SMEMBERS", key)))
        orphans = sorted(bound & self._seen)
        self._seen = bound - self._seen
        if orphans:
            queues = [each.decode("utf-8", "replace").rpartition(self._layout.sep)[2] for each in orphans]
            lists = [self._layout.list_key(queue, 0) for queue in queues]
            self._linked().pipeline([("SREM", key, *orphans), ("DEL", *lists)])

    def _forget(self, boxes: Sequence[str]) -> None:
        bindings = [self._binding(box) for box in boxes]
        commands = [("SREM", each, *bindings) for each in self._layout.binding_sets(self._replies)]
        self._linked().pipeline([*commands, ("DEL", *(self._layout.list_key(self._queue(box), 0) for box in boxes))])


def _envelope(headers: Mapping[str, Any], body: bytes, exchange: str, key: str = "") -> bytes:
    """kombu's virtual envelope."""
    envelope = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": dict(headers),
        "properties": {
            "delivery_mode": 1,
            "delivery_info": {"exchange": exchange, "routing_key": key},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(envelope).encode()


def _read(raw: bytes) -> tuple[Mapping[str, Any], str, bytes]:
    """An envelope from anybody; what is none has no content type."""
    try:
        envelope = json.loads(raw)
        headers, body = envelope.get("headers"), envelope["body"]
        if (envelope.get("properties") or {}).get("body_encoding") == "base64":
            data = base64.b64decode(body)
        else:
            data = body.encode()
        return headers if isinstance(headers, dict) else {}, str(envelope.get("content-type") or ""), data
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}, "", b""
