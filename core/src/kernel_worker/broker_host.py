"""The threads that talk to the broker: one fetches, one settles and renews the lease.

The driver blocks with deadlines of its own on these two threads, so the loop never waits for a broker. A lost
connection is mended here, with back-off and jitter, for ever; no boot step is restarted for it. What could
not be settled is kept and settled again: settling twice is harmless by contract. A driver that does not come back
from a call is told; nothing can end that call, but nothing waits for it, either.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .drivers import Broker
from .errors import BrokerRefused, BrokerUnavailable
from .lease import NEVER, Lease, clock
from .loop import Loop
from .types import BrokerCapability, Delivery, QueueSpec, Settlement

log = logging.getLogger("kernel_worker.broker")

FETCH_TIMEOUT_S = 1.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
HANG_S = 10.0
"""A call of the driver that takes longer hangs: drivers have deadlines of about 5 s."""
WATCH_S = 2.5
RENEW_S = 10.0
"""Between two renewals at most, however long the lease: they are what notices a settle connection that has gone silent."""
HELD_BYTES = 64 * 1024 * 1024
"""Bytes of messages to have in one batch at most, by the size of the last ones."""


class BrokerHost:
    """Owns a broker driver. `start` and `stop` on the loop thread; what was fetched is posted to the loop."""

    def __init__(
        self,
        loop: Loop,
        broker: Broker,
        queues: Sequence[QueueSpec],
        *,
        deliver: Callable[[list[Delivery], bool], None],
        held: Callable[[], list[Delivery]],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_marked: Callable[[list[Settlement]], None] = lambda marks: None,
        on_renewed: Callable[[float], None] = lambda held_until: None,
        on_lost: Callable[[list[Delivery]], None] = lambda deliveries: None,
    ) -> None:
        self.loop = loop
        self.broker = broker
        self.queues = self._consumed = tuple(queues)
        self.on_queues_refused: Callable[[], object] = lambda: None
        """Called when the broker refused a change of queues; `queues` are the old ones again."""
        self.connected = False
        self.last_error = ""
        self.hangs = ""
        """The call of the driver that does not come back; "" = none."""
        self.lease = Lease(broker.context.lease_s if BrokerCapability.LEASE in broker.capabilities else 0.0)
        self.fetching = False
        """Whether the fetch thread runs."""
        self._delivering = False
        """Loop thread: whether the loop has not yet seen everything that was fetched."""
        self._settling = False
        self._deliver = deliver
        self._held = held
        self._on_up = on_up
        self._on_down = on_down
        self._on_marked = on_marked
        self._on_renewed = on_renewed
        self._on_lost = on_lost
        self._marking: set[int] = set()
        """`id()` of marks that are handed over and not done. Changed by the loop, only asked by the settle thread."""
        self._renew_now = False
        self._calls: dict[str, float] = {}
        """When each call of the driver that is under way began (monotonic); one entry per thread at most."""
        self._allowed = 0
        self._batch = 1
        self._fetched = 0
        self._mean_bytes = 1024.0
        self._delay = BACKOFF_FIRST_S
        self._connection = threading.Lock()
        """Held while connecting and while settling: by contract a driver connects while no other call is under way."""
        self._room = threading.Event()
        self._stop_fetch = threading.Event()
        self._queues_changed = threading.Event()
        self._usable = threading.Event()
        self._broken = threading.Event()
        self._broken_by = ""
        self._outbox: queue.SimpleQueue[list[Settlement] | None] = queue.SimpleQueue()
        self._handed_over = 0
        """Loop: turns whose settlements were handed to the settle thread."""
        self._carried_out = 0
        """Settle thread: how many of them are settled."""
        self._fetcher = threading.Thread(target=self._fetch_forever, name="kw-fetch", daemon=True)
        self._settler = threading.Thread(target=self._settle_forever, name="kw-settle", daemon=True)
        self._stop_settle = False

    # -- loop thread

    def start(self) -> None:
        """Begin to connect; `connected` becomes true some time later."""
        self.fetching = self._settling = self._delivering = True
        self.loop.call_later(WATCH_S, self._watch)
        self._fetcher.start()
        self._settler.start()

    def allow(self, total: int, batch: int) -> None:
        """How many deliveries may have been fetched since the start, and how many make a round trip worth it."""
        self._allowed, self._batch = total, batch
        if total - self._fetched >= batch:
            self._room.set()

    def settle(self, batch: list[Settlement]) -> None:
        """Hand a turn's settlements to the settle thread."""
        self._handed_over += 1
        self._outbox.put(batch)

    def mark(self, marks: list[Settlement]) -> None:
        """Hand settlements that count a delivery to the settle thread; `on_marked` gets them back when that is done."""
        self._marking.update(map(id, marks))
        self.settle(marks)

    def _marks_settled(self, marks: list[Settlement]) -> None:
        self._marking.difference_update(map(id, marks))
        self._on_marked(marks)

    def _watch(self) -> None:
        """Tell, once, of a call of the driver that does not come back, and that it has come back."""
        if not self.fetching and not self._settling:
            return
        self.loop.call_later(WATCH_S, self._watch)
        now = time.monotonic()
        hanging = next((call for call, begun in list(self._calls.items()) if now - begun > HANG_S), "")
        if hanging == self.hangs:
            return
        self.hangs = hanging
        if hanging:
            text = f"the driver has not come back from {hanging!r} for {HANG_S:g} s"
            log.error("%s: is the connection half open?", text, extra={"action": "broker_hangs", "call": hanging})
            self._on_down(text)
        else:
            log.warning("the driver has come back", extra={"action": "broker_back"})
            if self.connected:
                self._on_up()

    def change_queues(self, queues: Sequence[QueueSpec]) -> None:
        """Consume from these queues from now on. They are declared first, on the fetch thread; that it fails is told
        like any trouble with the broker."""
        if tuple(queues) != self.queues:
            self.queues = tuple(queues)
            self._queues_changed.set()
            self._room.set()
            self.broker.interrupt()

    @property
    def may_deliver(self) -> bool:
        """Whether something may still arrive. Not while the broker is away: nobody need wait for an attempt to connect."""
        return self._delivering and (self.connected or not self.fetching)

    @property
    def settled(self) -> bool:
        """Whether everything handed over has been settled."""
        return self._handed_over == self._carried_out

    def stop_fetching(self) -> None:
        """Fetch nothing more; what is being fetched now still arrives. Does not block."""
        self._stop_fetch.set()
        self._room.set()
        self.broker.interrupt()

    def stop(self, deadline: float) -> None:
        """Settle what is left until the monotonic deadline, then close the driver."""
        if not self._fetcher.ident:
            return
        self.stop_fetching()
        # Away, and nothing to settle: the threads may be in the middle of a long time-out, for nobody.
        away = self.settled and not self.connected
        self.loop.run_until(lambda: away or not self._delivering, min(deadline, time.monotonic() + 6.0))
        self.loop.run_until(lambda: self.settled, deadline)
        self._stop_settle = True
        self._outbox.put(None)
        self.loop.run_until(lambda: away or not self._settling, min(deadline, time.monotonic() + 6.0))
        if not self.fetching and not self._settling:
            self.broker.close()

    # -- fetch thread

    def _fetch_forever(self) -> None:
        while not self._stop_fetch.is_set():
            try:
                with self._connection, self._watched("connect"):
                    self.broker.connect()
                    self.broker.declare(self.queues)
                self._report_up()
                self._fetch_until_broken()
            except (BrokerUnavailable, BrokerRefused) as error:
                self._report_down(str(error), isinstance(error, BrokerRefused))
                self._back_off(error)
            except Exception as error:  # a driver's bug must not end fetching in silence
                log.exception("broker driver failed", extra={"action": "broker_failed"})
                self._report_down(f"{type(error).__name__}: {error}")
                self._back_off(error)
        self.fetching = False
        self._usable.set()  # the settle thread no longer waits for a connection from here
        self.loop.post(self._fetch_ended)

    def _fetch_until_broken(self) -> None:
        while not self._stop_fetch.is_set():
            if self._broken.is_set():
                raise BrokerUnavailable(self._broken_by)
            if self._queues_changed.is_set():
                self._take_queues()
            room = self._allowed - self._fetched
            if room < self._batch:
                self._room.clear()
                if self._allowed - self._fetched < self._batch:  # it may have changed before the clear
                    self._room.wait(FETCH_TIMEOUT_S)
                continue
            limit = max(1, min(room, int(HELD_BYTES / self._mean_bytes)))
            self._calls["fetch"] = time.monotonic()
            try:
                deliveries = self.broker.fetch(limit, FETCH_TIMEOUT_S)
            finally:
                del self._calls["fetch"]
            self._delay = BACKOFF_FIRST_S  # not sooner: a broker may let connect, and refuse everything else
            if deliveries:
                self._fetched += len(deliveries)
                self._mean_bytes = max(256.0, sum(len(d.raw) for d in deliveries) / len(deliveries))
                self.loop.post(self._deliver, deliveries, len(deliveries) >= limit)

    def _take_queues(self) -> None:
        self._queues_changed.clear()
        queues = self.queues
        try:
            self.broker.declare(queues)
            self.broker.consume(queues)
            self._consumed = queues
        except BrokerRefused as error:  # a name or binding that cannot be: what was consumed before goes on
            log.error("queues stay as they were: %s", error, extra={"action": "queues_refused"})
            self.queues = self._consumed
            self.loop.post(self.on_queues_refused)

    def _back_off(self, error: Exception) -> None:
        asked = getattr(error, "retry_after", None)
        self._stop_fetch.wait(asked if asked is not None else self._delay * random.uniform(0.5, 1.0))
        self._delay = min(self._delay * 2, BACKOFF_MAX_S)

    @contextmanager
    def _watched(self, call: str) -> Iterator[None]:
        self._calls[call] = time.monotonic()
        try:
            yield
        finally:
            del self._calls[call]

    def _report_up(self) -> None:
        self._broken.clear()
        self.connected, self.last_error = True, ""
        self.loop.post(self._on_up)
        self._usable.set()
        if self.lease.held_until == NEVER and not self._fetched:
            self.lease.renewed(clock())  # nothing is held yet
            self.loop.post(self._on_renewed, self.lease.held_until)
        elif self.lease.is_over or not self.lease.seconds:
            self._renew_now = True
            self._outbox.put(None)

    def _report_down(self, error: str, refused: bool = False) -> None:
        first = self.connected or error != self.last_error
        if self.connected and not self.lease.seconds:
            # What is held may have ended with the connection. Until the renewal after the next connect has told what
            # is left of it, the executors store nothing.
            self.loop.post(self._on_renewed, clock())
        self.connected, self.last_error = False, error
        self._usable.clear()
        if first:  # the same trouble is told once, not at every attempt
            says = "refuses us" if refused else "is away"
            log.warning("broker %s: %s; trying again", says, error, extra={"action": "broker_down"})
            self.loop.post(self._on_down, error)

    # -- settle thread

    def _settle_forever(self) -> None:
        renew_every = min(self.broker.context.lease_s / 3, RENEW_S)
        renew_at = time.monotonic() + renew_every
        pending: list[Settlement] = []
        counts = 0
        while True:
            more, count = self._collect(0.0 if pending else max(0.0, renew_at - time.monotonic()))
            pending += more
            counts += count
            if pending and self._settle(pending):
                if self._marking:
                    self.loop.post(self._marks_settled, [each for each in pending if id(each) in self._marking])
                pending = []
                self._carried_out += counts
                counts = 0
                if self._stop_fetch.is_set():  # somebody may wait for it; else no turn of the loop is worth it
                    self.loop.post(self._nothing)
            if self._stop_settle and (pending or self._outbox.empty()):  # tried once more, or nothing is left
                self._settling = False
                self.loop.post(self._nothing)
                return
            if time.monotonic() >= renew_at or self._renew_now:
                self._renew_now = False
                renew_at = time.monotonic() + renew_every
                self._renew()

    def _collect(self, timeout: float) -> tuple[list[Settlement], int]:
        batch: list[Settlement] = []
        count = 0
        try:
            item = self._outbox.get(timeout=timeout) if timeout else self._outbox.get_nowait()
            while item is not None:
                batch += item
                count += 1
                item = self._outbox.get_nowait()
        except queue.Empty:
            pass
        return batch, count

    def _fetch_ended(self) -> None:
        # Posted after the last deliveries: were `fetching` asked instead, they might come when nobody settles any more.
        self._delivering = False

    def _nothing(self) -> None:
        """Turns the loop: somebody waits for what the settle thread has done."""

    def _settle(self, batch: list[Settlement]) -> bool:
        """Settle a batch; False when it is to be repeated. Waits for a connection, a second at most."""
        if self.fetching and not self._usable.wait(1.0):
            return False
        try:
            with self._connection, self._watched("settle"):
                self.broker.settle(batch)
            return True
        except BrokerUnavailable as error:
            self._lost_connection(error)
            return False
        except BrokerRefused as error:
            return self._settle_singly(batch, error)
        except Exception as error:
            log.exception("broker driver failed to settle", extra={"action": "settle_failed"})
            return self._settle_singly(batch, error)

    def _settle_singly(self, batch: list[Settlement], cause: Exception) -> bool:
        """Something in a batch cannot be settled: find it, so that it does not block all others for ever."""
        failed: list[Settlement] = []
        for settlement in batch:
            try:
                with self._connection, self._watched("settle"):
                    self.broker.settle([settlement])
            except BrokerUnavailable as error:
                self._lost_connection(error)
                return False
            except Exception:  # told already for the whole batch
                failed.append(settlement)
        if len(failed) == len(batch):  # it may be the broker: try again, later, and with others
            self._lost_connection(cause)
            time.sleep(BACKOFF_FIRST_S)
            return False
        for settlement in failed:  # its lease brings the message back
            log.error(
                "a delivery of queue %s cannot be settled (%s): %s",
                settlement.delivery.queue,
                settlement.verdict.value,
                cause,
                extra={"action": "settlement_dropped", "queue": settlement.delivery.queue},
            )
        return True

    def _renew(self) -> None:
        if not self.connected:
            return
        lease, begun = self.lease, clock()
        held = self._held()
        try:
            with self._connection, self._watched("renew"):
                lost = self.broker.renew(held)
        except (BrokerUnavailable, BrokerRefused) as error:
            self._lost_connection(error)
            return
        except Exception:  # as above: fetching goes on, the lease may lapse and the messages come back
            log.exception("broker driver failed to renew", extra={"action": "renew_failed"})
            lost = ()
        if lost is None and begun > lease.held_until:
            lost = held  # the driver cannot tell; they may be anybody's
        if lost:  # told before the executors hear that they may store again
            self.loop.post(self._on_lost, list(lost))
        lease.renewed(begun)
        self.loop.post(self._on_renewed, lease.held_until)

    def _lost_connection(self, cause: Exception) -> None:
        """Have the fetch thread connect again."""
        if self.fetching:
            self._broken_by = str(cause)
            self._usable.clear()
            self._broken.set()
            self._room.set()
            self.broker.interrupt()
            return
        try:  # shutting down: nobody else connects any more
            with self._connection:
                self.broker.connect()
        except Exception as error:  # told by the exit code: something is left unsettled
            self.last_error = str(error)
            time.sleep(BACKOFF_FIRST_S)
