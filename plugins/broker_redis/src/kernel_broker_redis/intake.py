"""Reserve messages, wait for more, and bring back what nobody holds any more.

Runs on the fetch thread only, with a connection of its own. Never BRPOP: what a blocking pop hands over is
lost when the process or the link dies before it is written down, so messages move by lua/fetch.lua alone. To
learn of new messages without polling, the lists are read with CLIENT TRACKING: the server sends one push when one
of them changes.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kernel_result_redis.connection import Connection, pack
from kernel_result_redis.errors import RedisUnavailable, ReplyError
from kernel_worker.types import Delivery

from . import scripts
from .envelope import read
from .interrupt import Interrupt
from .layout import Layout
from .peers import restore_entry

log = logging.getLogger(__name__)

_REPLY_BYTES = 16 * 1024 * 1024  # of envelopes in one reply, more or less: bounds memory here and in the server
_PAGE = 500  # entries looked at by one call of release.lua, well below a millisecond of the server's time
_SURVEYED = 100  # entries that one survey brings back at most; a full one is followed by the next at once
_SURVEY_PAUSE_S = 0.05
_POLL_S = (0.005, 0.05)  # shortest and longest pause where the server has no CLIENT TRACKING
_IN_DOUBT_S = 60.0  # for so long a reserve whose reply was lost may still be carried out by the server
_HERD = 3  # so many fruitless wake-ups in a row say that several workers race for each message
_JITTER_S = (0.0003, 0.005)  # per fruitless wake-up, and at most


@dataclass(frozen=True, slots=True)
class Claim:
    """Who reserves, and on what terms; see `kernel_worker.BrokerContext`.

    :param identity: holder and a random part. No other object ever has the same, so tags never collide.
    :param visibility_s: age at which entries of kombu peers come back, kombu's `visibility_timeout`.
    """

    identity: str
    lease_s: float
    max_bytes: int
    visibility_s: float


@dataclass(frozen=True, slots=True)
class _Sources:
    """The queues to take from, and the packed commands that ask for a push when one of them changes."""

    queues: tuple[str, ...]
    arm: bytes


@dataclass(slots=True)
class _Doubt:
    """A reserve without a reply: it may have been carried out, or may be still."""

    first: int
    count: int
    until: float  # monotonic


class Intake:
    """The fetch side of one broker. `attach` gives it a new connection after each loss."""

    def __init__(
        self, layout: Layout, queues: Sequence[str], claim: Claim, interrupt: Interrupt, strategy: str
    ) -> None:
        self._layout = layout
        self._claim = claim
        self._interrupt = interrupt
        self._is_sorted = strategy == "sorted"
        self._rotates = strategy not in ("sorted", "priority")
        self._turn = 0
        self._grave = queues[0]  # whose dead letters take what belongs to no queue
        self.serial = 0
        self._connection: Connection | None = None
        self._doubts: list[_Doubt] = []
        self._tracks = False
        self._fruitless = 0
        self._poll_s = _POLL_S[0]
        self._next_survey = 0.0
        self._next_due = float("inf")
        self._sources = self._make_sources(queues)

    def consume(self, queues: Sequence[str]) -> None:
        """Take from these queues from the next `fetch` on; also none at all. Any thread: replaced in one step."""
        self._sources = self._make_sources(queues)

    def _make_sources(self, queues: Sequence[str]) -> _Sources:
        layout = self._layout
        names = tuple(dict.fromkeys(sorted(queues) if self._is_sorted else queues))
        lists = [key for queue in names for key in layout.list_keys(queue)]
        commands = (
            ("CLIENT", "CACHING", "YES"),
            ("EXISTS", *lists),
            ("CLIENT", "CACHING", "YES"),
            ("EXISTS", *map(layout.parked, names)),
        )
        return _Sources(names, b"".join(map(pack, commands)))

    def attach(self, connection: Connection) -> None:
        """Use a new connection; what an earlier one left in doubt is given back. Raises as scripts do."""
        self._connection = connection
        self._tracks = _begin_tracking(connection)
        self._next_survey = 0.0
        for script in (scripts.FETCH, scripts.SURVEY):
            script.load(connection)
        self._settle_doubts()

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        """See `Broker.fetch`."""
        if self._interrupt.take() or limit < 1:
            return []
        deadline = time.monotonic() + timeout
        if time.monotonic() >= self._next_survey:
            self._survey()
        found = self._reserve(limit)
        while not found:
            now = time.monotonic()
            if now >= self._next_survey:
                self._survey()
            elif now >= deadline:
                break
            elif self._is_empty():
                pushed = self._wait(min(deadline, self._next_survey, self._next_due) - now)
                if self._interrupt.take():
                    break
                if pushed and self._fruitless >= _HERD:
                    self._hold_back()
                    continue
                found = self._reserve(limit)
                if pushed:
                    self._fruitless = self._fruitless // 2 if found else self._fruitless + 1
                continue
            found = self._reserve(limit)
        return found

    # ------------------------------------------------------------------ reserving

    @property
    def _link(self) -> Connection:
        if self._connection is None:
            raise RedisUnavailable("not connected")
        return self._connection

    def _reserve(self, limit: int) -> list[Delivery]:
        """One atomic step. A reply that does not come leaves the step in doubt until the next connection."""
        layout, claim = self._layout, self._claim
        queues = self._sources.queues
        if not queues:
            return []
        if self._rotates:  # every queue is asked first in its turn
            self._turn = (self._turn + 1) % len(queues)
            queues = queues[self._turn :] + queues[: self._turn]
        first, self.serial = self.serial, self.serial + limit
        keys = (layout.unacked, layout.unacked_index, layout.holders, layout.attempts)
        terms = (layout.prefix, layout.sep, claim.identity, claim.lease_s, limit, first, claim.max_bytes)
        link = self._link
        try:
            reply = scripts.FETCH.run(link, keys, (*terms, _REPLY_BYTES, len(layout.steps), *layout.steps, *queues))
        except BaseException:
            if not link.is_open:  # an answer that is an error came before the first pop, see lua/fetch.lua
                self._doubts.append(_Doubt(first, limit, time.monotonic() + _IN_DOUBT_S))
            raise
        (next_due, first_deadline), counts, buried, errors, *groups = reply
        now = time.monotonic()
        self._next_due = now + float(next_due) if next_due else float("inf")
        self._next_survey = min(self._next_survey, now + max(float(first_deadline), 0.0))
        for queue, size in zip(buried[::2], buried[1::2], strict=True):
            log.warning(
                "message of %d bytes in queue %s is larger than %d bytes: moved to the dead letters",
                size,
                queue.decode(),
                claim.max_bytes,
                extra={"action": "message_too_large"},
            )
        if errors and not groups:
            raise ReplyError(errors[0].decode("utf-8", "replace")).explain(link.server)
        return self._deliveries(queues, groups, dict(zip(counts[::2], counts[1::2], strict=True)))

    def _deliveries(self, queues: Sequence[str], groups: list[Any], restored: dict[int, bytes]) -> list[Delivery]:
        found: list[Delivery] = []
        head = f"kw|{self._claim.identity}|"
        for queue_index, step, first, envelopes in groups:
            queue, tail = queues[queue_index], f"|{step.decode()}"
            for serial, raw in enumerate(envelopes, first):
                headers, properties, error = read(raw)
                receipt, redelivered = f"{head}{serial}{tail}", headers.get("redelivered") is True
                delivery = Delivery(queue, raw, headers, receipt, properties, 0, redelivered, None, error)
                if restored and (past := restored.get(serial)) is not None:
                    delivery.redelivered, delivery.recovered = True, past.endswith(b"r")
                    attempts, _, returns = past.rstrip(b"r").partition(b"+")
                    delivery.attempts, delivery.returns = int(attempts), int(returns or 0)
                found.append(delivery)
        return found

    # ------------------------------------------------------------------ waiting

    def _is_empty(self) -> bool:
        """Whether nothing waits; if so, the server will tell when that changes."""
        sources = self._sources
        if not (self._tracks and sources.queues):
            return True
        link = self._link
        link.pushes.clear()
        link.send(sources.arm)
        replies = [link.read() for _ in range(4)]
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply.explain(link.server)
        return replies[1] == 0 and not link.pushes

    def _wait(self, seconds: float) -> bool:
        """Wait for a push, the interrupt or the time; returns whether the server pushed."""
        link = self._link
        if not self._tracks:
            seconds = min(seconds, self._poll_s)
            self._poll_s = min(self._poll_s * 1.5, _POLL_S[1])
        if not link.wait(seconds, self._interrupt.descriptor):
            return False
        link.drain_pushes()
        return self._tracks

    def _hold_back(self) -> None:
        """Wait a little at random, then look again: of many idle workers one is enough for one message."""
        most = min(self._fruitless * _JITTER_S[0], _JITTER_S[1])
        time.sleep(random.uniform(0.0, most))
        if self._is_empty():
            self._fruitless += 1
        else:
            self._fruitless = _HERD - 1

    # ------------------------------------------------------------------ bringing back

    def _survey(self) -> None:
        """Give back what dead holders and vanished kombu peers held."""
        layout, claim, link = self._layout, self._claim, self._link
        self._grave = next(iter(self._sources.queues), self._grave)
        self._next_survey = time.monotonic() + max(claim.lease_s / 3, _SURVEY_PAUSE_S)
        ages = (claim.visibility_s, max(claim.visibility_s, 2 * claim.lease_s))
        dead, peers, orphans = scripts.SURVEY.run(link, (layout.unacked_index, layout.holders), (*ages, _SURVEYED))
        gone = [holder.decode() for holder in dead if holder.decode() != claim.identity]
        if gone:
            count = release(link, layout, gone, died=True)
            log.warning(
                "%d messages of %d lost workers are back in their queues",
                count,
                len(gone),
                extra={"action": "leases_ended", "holders": gone},
            )
        self._requeue([tag.decode() for tag in orphans], "L")
        for tag in peers:
            restore_entry(link, layout, tag, self._grave)
        if len(peers) + len(orphans) >= _SURVEYED:
            self._next_survey = time.monotonic() + _SURVEY_PAUSE_S
        self._settle_doubts()

    def _settle_doubts(self) -> None:
        """Give back what reserves without a reply may have taken. Asked repeatedly: a stalled server may carry
        one out after the connection is gone."""
        now = time.monotonic()
        self._doubts = [doubt for doubt in self._doubts if now < doubt.until]
        for doubt in self._doubts:
            serials = range(doubt.first, doubt.first + doubt.count)
            self._requeue([f"kw|{self._claim.identity}|{n}|{step}" for n in serials for step in self._layout.steps])

    def _requeue(self, tags: list[str], verdict: str = "Q") -> None:
        """Put tags back to the front, in their order. "L": their holder vanished, and may have been running them."""
        layout = self._layout
        keys = (layout.unacked, layout.unacked_index, layout.attempts)
        for start in range(0, len(tags), 1000):
            verdicts = [each for tag in reversed(tags[start : start + 1000]) for each in (verdict, tag, 0, "")]
            scripts.SETTLE.run(self._link, keys, (layout.prefix, layout.sep, *verdicts))


def release(link: Connection, layout: Layout, identities: Sequence[str], *, died: bool) -> int:
    """Give back everything these holders hold, to the front of its lists, and end their leases.

    :param died: they may have been running what they held; a holder that has renewed meanwhile is spared.
    :return: number of messages given back.
    """
    keys = (layout.unacked, layout.unacked_index, layout.attempts, layout.holders)
    cursor, total = b"0", 0
    count: int
    while True:
        args = (layout.prefix, layout.sep, cursor, _PAGE, int(died), *identities)
        cursor, count = scripts.RELEASE.run(link, keys, args)
        total += count
        if cursor == b"0":
            return total


def _begin_tracking(connection: Connection) -> bool:
    """Ask for invalidations of keys read after CLIENT CACHING YES, except by this connection's own writes."""
    try:
        connection.call("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")
    except ReplyError as error:
        log.warning(
            "%s: no CLIENT TRACKING (%s): polling for messages",
            connection.server,
            str(error)[:100],
            extra={"action": "polling"},
        )
        return False
    return True
