"""The threads that talk to the broker: one fetches, one settles and renews the lease.

The driver blocks with deadlines of its own on these two threads, so the loop never waits for a broker. A lost
connection is mended here, with back-off and jitter, for ever; no boot step is restarted for it. What could
not be settled is kept and settled again: settling twice is harmless by contract.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence

from .drivers import Broker
from .errors import BrokerRefused, BrokerUnavailable
from .loop import Loop
from .types import Delivery, QueueSpec, Settlement

log = logging.getLogger("kernel_worker.broker")

FETCH_TIMEOUT_S = 1.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
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
        deliver: Callable[[list[Delivery]], None],
        held: Callable[[], list[Delivery]],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self.broker = broker
        self.queues = tuple(queues)
        self.connected = False
        self.last_error = ""
        self.fetching = False
        """Whether the fetch thread may still deliver."""
        self._settling = False
        self._deliver = deliver
        self._held = held
        self._on_up = on_up
        self._on_down = on_down
        self._allowed = 0
        self._batch = 1
        self._fetched = 0
        self._mean_bytes = 1024.0
        self._room = threading.Event()
        self._stop_fetch = threading.Event()
        self._usable = threading.Event()
        self._broken = threading.Event()
        self._outbox: queue.SimpleQueue[list[Settlement] | None] = queue.SimpleQueue()
        self._unsettled = 0
        self._fetcher = threading.Thread(target=self._fetch_forever, name="kw-fetch", daemon=True)
        self._settler = threading.Thread(target=self._settle_forever, name="kw-settle", daemon=True)
        self._stop_settle = False

    # -- loop thread

    def start(self) -> None:
        """Begin to connect; `connected` becomes true some time later."""
        self.fetching = self._settling = True
        self._fetcher.start()
        self._settler.start()

    def allow(self, total: int, batch: int) -> None:
        """How many deliveries may have been fetched since the start, and how many make a round trip worth it."""
        self._allowed, self._batch = total, batch
        if total - self._fetched >= batch:
            self._room.set()

    def settle(self, batch: list[Settlement]) -> None:
        """Hand a turn's settlements to the settle thread."""
        self._unsettled += 1
        self._outbox.put(batch)

    @property
    def settled(self) -> bool:
        """Whether everything handed over has been settled."""
        return self._unsettled == 0

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
        self.loop.run_until(lambda: not self.fetching, min(deadline, time.monotonic() + 6.0))
        self.loop.run_until(lambda: self.settled, deadline)
        self._stop_settle = True
        self._outbox.put(None)
        self.loop.run_until(lambda: not self._settling, min(deadline, time.monotonic() + 6.0))
        if not self.fetching and not self._settling:
            self.broker.close()

    # -- fetch thread

    def _fetch_forever(self) -> None:
        delay = BACKOFF_FIRST_S
        while not self._stop_fetch.is_set():
            try:
                self.broker.connect()
                self.broker.declare(self.queues)
                delay = BACKOFF_FIRST_S
                self._report_up()
                self._fetch_until_broken()
            except (BrokerUnavailable, BrokerRefused) as error:
                self._report_down(str(error))
                delay = self._back_off(delay, error)
            except Exception as error:  # a driver's bug must not end fetching in silence
                log.exception("broker driver failed", extra={"action": "broker_failed"})
                self._report_down(f"{type(error).__name__}: {error}")
                delay = self._back_off(delay, error)
        self.fetching = False
        self._usable.set()  # the settle thread no longer waits for a connection from here
        self.loop.post(self._thread_ended)

    def _fetch_until_broken(self) -> None:
        while not self._stop_fetch.is_set():
            if self._broken.is_set():
                raise BrokerUnavailable("the settling connection is lost")
            room = self._allowed - self._fetched
            if room < self._batch:
                self._room.clear()
                if self._allowed - self._fetched < self._batch:  # it may have changed before the clear
                    self._room.wait(FETCH_TIMEOUT_S)
                continue
            limit = max(1, min(room, int(HELD_BYTES / self._mean_bytes)))
            deliveries = self.broker.fetch(limit, FETCH_TIMEOUT_S)
            if deliveries:
                self._fetched += len(deliveries)
                self._mean_bytes = max(256.0, sum(len(d.raw) for d in deliveries) / len(deliveries))
                self.loop.post(self._deliver, deliveries)

    def _back_off(self, delay: float, error: Exception) -> float:
        asked = getattr(error, "retry_after", None)
        self._stop_fetch.wait(asked if asked is not None else delay * random.uniform(0.5, 1.0))
        return min(delay * 2, BACKOFF_MAX_S)

    def _report_up(self) -> None:
        self._broken.clear()
        self.connected, self.last_error = True, ""
        self._usable.set()
        self.loop.post(self._on_up)

    def _report_down(self, error: str) -> None:
        first = self.connected or error != self.last_error
        self.connected, self.last_error = False, error
        self._usable.clear()
        if first:  # the same trouble is told once, not at every attempt
            log.warning("broker is away: %s; trying again", error, extra={"action": "broker_down"})
            self.loop.post(self._on_down, error)

    # -- settle thread

    def _settle_forever(self) -> None:
        renew_every = self.broker.context.lease_s / 3
        renew_at = time.monotonic() + renew_every
        pending: list[Settlement] = []
        counts = 0
        while True:
            if not pending:
                more, counts = self._collect(max(0.0, renew_at - time.monotonic()))
                pending += more
            if pending and self._settle(pending):
                pending = []
                self.loop.post(self._settled, counts)
                counts = 0
            if self._stop_settle and (not pending or not self.connected):
                self._settling = False
                self.loop.post(self._thread_ended)
                return
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + renew_every
                self._renew()

    def _collect(self, timeout: float) -> tuple[list[Settlement], int]:
        batch: list[Settlement] = []
        count = 0
        try:
            item = self._outbox.get(timeout=timeout)
            while item is not None:
                batch += item
                count += 1
                item = self._outbox.get_nowait()
        except queue.Empty:
            pass
        return batch, count

    def _thread_ended(self) -> None:
        """Nothing to do but to turn the loop: somebody waits for the end of the thread."""

    def _settled(self, count: int) -> None:
        self._unsettled -= count

    def _settle(self, batch: list[Settlement]) -> bool:
        try:
            self.broker.settle(batch)
            return True
        except (BrokerUnavailable, BrokerRefused):
            self._lost_connection()
        except Exception:  # a driver's bug: the lease brings these messages back
            log.exception("broker driver failed to settle", extra={"action": "settle_failed"})
            self._lost_connection()
        return False

    def _renew(self) -> None:
        if not self.connected:
            return
        try:
            self.broker.renew(self._held())
        except (BrokerUnavailable, BrokerRefused):
            self._lost_connection()
        except Exception:  # as above: fetching goes on, the lease may lapse and the messages come back
            log.exception("broker driver failed to renew", extra={"action": "renew_failed"})

    def _lost_connection(self) -> None:
        """Have the fetch thread connect again, and wait for it a while."""
        self._usable.clear()
        self._broken.set()
        if self.fetching:
            self.broker.interrupt()
            self._usable.wait(1.0)
            return
        try:  # shutting down: nobody else connects any more
            self.broker.connect()
        except (BrokerUnavailable, BrokerRefused) as error:
            self.last_error = str(error)
            time.sleep(BACKOFF_FIRST_S)
