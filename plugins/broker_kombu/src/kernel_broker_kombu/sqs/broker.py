"""The worker's side of `sqs://`. Runs in the kernel process; boto3's clients serve all its threads.

A standard queue of SQS delivers in no order, and now and then twice; that is the server's.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import BrokerRefused, BrokerUnavailable, ConfigError
from kernel_worker.types import BrokerCapability, DeadLetter, Delivery, QueueInfo, QueueSpec, Settlement, Verdict

from ..refusing import refuse_what_cannot_be
from .dead import DeadLetters
from .errors import SqsAway, SqsRefused
from .messages import UNTIL, Receipt
from .publisher import INSTALL
from .queues import BATCH, Outgoing, Queues
from .receiving import Receiver
from .settings import FIFO, SqsSettings, dead_queue

THREADS = 8
"""Calls under way at once: one takes some ten milliseconds and settles ten messages."""
LONGEST_LEASE_S = 43_200.0
"""SQS keeps nothing invisible for longer than twelve hours after it was received."""
CLOSE_S = 2.0


class SqsBroker(Broker):
    """Amazon SQS; see `kernel_worker.Broker` for the contract.

    :raises ConfigError: the URL or an option is wrong, boto3 is missing, or a queue asks for what SQS cannot do.
    """

    capabilities: ClassVar[frozenset[BrokerCapability]] = frozenset(
        {
            BrokerCapability.DELAY,
            BrokerCapability.LEASE,
            BrokerCapability.DEAD_LETTER,
            BrokerCapability.ATTEMPTS,
            BrokerCapability.BATCH_FETCH,
        }
    )

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        if importlib.util.find_spec("boto3") is None:
            raise ConfigError("sqs:// needs boto3, which is not installed", hint=INSTALL)
        try:
            self._settings = SqsSettings.of(context.url, context.options)
        except ValueError as error:
            raise ConfigError(f"broker_url or broker_transport_options: {error}") from error
        refuse_what_cannot_be("sqs", context.queues, self.capabilities, ("direct",))
        self._lease_s = min(LONGEST_LEASE_S, max(1.0, math.ceil(context.lease_s)))
        self._queues = Queues(self._settings)
        self._receiver: Receiver | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._dead = DeadLetters(self._queues, self._carry_out)
        self._held: dict[str, Receipt] = {}
        """By message id: what `close` gives back. Added to by the fetch thread, taken from by the settle thread."""
        self._interrupted = False

    def connect(self) -> None:
        """See that SQS answers. What is held stays held: leases belong to messages, not to connections."""
        with self._kernel_errors():
            queue = self.context.queues[0].name if self.context.queues else "celery"
            self._queues.exists(queue)
        if self._receiver is None:
            self._receiver = Receiver(self._queues, lambda: self._lease_s)
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kw-sqs-settle")

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Make the queues, and those of their dead letters.

        :raises BrokerRefused: queues are predefined, and one of them, or its dead letters', is not.
        """
        with self._kernel_errors():
            for queue in queues:
                self._queues.url(queue.name)
                try:
                    self._queues.url(dead_queue(queue.name))
                except SqsRefused as error:
                    raise BrokerRefused(
                        f"{error}, and queue {queue.name!r} needs it for its dead letters",
                        hint=f"make that queue, and add it to broker_transport_options['predefined_queues']: "
                        f"{dead_queue(queue.name)!r}",
                    ) from error

    # -- fetching

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        """Reserve up to `limit` deliveries, ten in a call; see the contract."""
        if self._receiver is None:
            raise BrokerUnavailable("sqs:// is not connected")
        names = list(dict.fromkeys(queue.name for queue in self.context.queues))
        deadline = time.monotonic() + timeout
        while True:
            with self._kernel_errors():
                receipts = self._receiver.receive(names, limit, max(0.0, deadline - time.monotonic()))
                deliveries = self._deliver(receipts)
            # What was parked again or too large is no reason to return.
            if deliveries or not receipts or time.monotonic() >= deadline:
                return deliveries

    def _deliver(self, receipts: Sequence[Receipt]) -> list[Delivery]:
        found: list[Delivery] = []
        for receipt in receipts:
            known = self._held.get(receipt.id)
            if known is not None and known.is_ours:
                # SQS delivers twice now and then. It is one run all the same, settled by the newest handle.
                known.handle, known.ours_until = receipt.handle, receipt.ours_until
                continue
            self._held[receipt.id] = receipt
            delivery = receipt.delivery()
            size = len(delivery.raw)
            if receipt.number(UNTIL) > time.time() + 1:
                self._replace([Settlement(delivery, Verdict.DELAY, until=receipt.number(UNTIL))])
            elif size > self.context.max_message_bytes:
                reason = f"too large: {size} bytes, at most {self.context.max_message_bytes} are delivered"
                self._replace([Settlement(delivery, Verdict.DEAD, reason)])
            else:
                found.append(delivery)
        return found

    def interrupt(self) -> None:
        """Make a waiting `fetch`, or else the next one, return at once."""
        if self._receiver is not None:
            self._receiver.interrupt()

    # -- settling

    def settle(self, batch: Sequence[Settlement]) -> None:
        """Carry out the verdicts, ten in a call and several calls at once. What is not ours any more is left alone."""
        if self._threads is None:
            raise BrokerUnavailable("sqs:// is not connected")
        acks: dict[str, list[Receipt]] = {}
        releases: dict[str, list[Receipt]] = {}
        copies: list[Settlement] = []
        for each in batch:
            receipt: Receipt = each.delivery.receipt
            if not receipt.is_ours:
                self._forget(receipt)
            elif each.verdict is Verdict.ACK:
                acks.setdefault(receipt.queue, []).append(receipt)
            elif each.verdict is Verdict.REQUEUE and receipt.queue.endswith(FIFO) and not each.count:
                releases.setdefault(receipt.queue, []).append(receipt)  # a copy would lose its place
            elif each.verdict is not Verdict.MARK:
                copies.append(each)
        with self._kernel_errors():
            for queue, receipts in acks.items():
                self._carry_out("delete", queue, receipts, 0)
            for queue, receipts in releases.items():
                self._carry_out("release", queue, receipts, 0)
            if copies:
                self._replace(copies)

    def _replace(self, batch: Sequence[Settlement]) -> None:
        """Send copies to where the verdicts say, then delete the messages: a crash between the two doubles them."""
        outgoing: dict[str, list[tuple[Receipt, Outgoing]]] = {}
        for each in batch:
            receipt: Receipt = each.delivery.receipt
            target = receipt.queue
            if each.verdict is Verdict.DEAD:
                target, copy = dead_queue(target), receipt.letter(each.reason, count=each.count)
            elif each.verdict is Verdict.DELAY:
                copy = receipt.later(each.until, count=each.count)
            else:
                copy = receipt.again(count=each.count)
            outgoing.setdefault(target, []).append((receipt, copy))
        for target, pairs in outgoing.items():
            try:
                self._queues.send(target, [copy for _, copy in pairs])
            finally:
                sent: dict[str, list[Receipt]] = {}
                for receipt, copy in pairs:
                    if copy.sent:
                        sent.setdefault(receipt.queue, []).append(receipt)
                for queue, receipts in sent.items():
                    self._carry_out("delete", queue, receipts, 0)

    def renew(self, held: Sequence[Delivery]) -> Sequence[Delivery]:
        """Keep the deliveries invisible for another lease; those that are not ours any more."""
        ours: dict[str, list[Receipt]] = {}
        for each in held:
            if each.receipt.is_ours:
                ours.setdefault(each.receipt.queue, []).append(each.receipt)
        with self._kernel_errors():
            for queue, receipts in ours.items():
                self._carry_out("renew", queue, receipts, int(self._lease_s))
        return [each for each in held if not each.receipt.is_settled and not each.receipt.is_ours]

    def _carry_out(self, operation: str, queue: str, receipts: Sequence[Receipt], visibility: int) -> None:
        """Delete, release or renew, ten in a call.

        :raises SqsAway: something is left to be done.
        """
        chunks = [receipts[start : start + BATCH] for start in range(0, len(receipts), BATCH)]

        def work(chunk: Sequence[Receipt]) -> None:
            self._one_call(operation, queue, chunk, visibility)

        if len(chunks) < 2 or self._threads is None:
            for chunk in chunks:
                work(chunk)
        else:
            list(self._threads.map(work, chunks))

    def _one_call(self, operation: str, queue: str, chunk: Sequence[Receipt], visibility: int) -> None:
        entries: list[dict[str, Any]] = [
            {"Id": str(number), "ReceiptHandle": receipt.handle} for number, receipt in enumerate(chunk)
        ]
        began = time.monotonic()
        if operation == "delete":
            answer = self._queues.call("delete_message_batch", queue, Entries=entries)
        else:
            entries = [entry | {"VisibilityTimeout": visibility} for entry in entries]
            answer = self._queues.call("change_message_visibility_batch", queue, Entries=entries)
        again = ""
        for done in answer.get("Successful", ()):
            self._done(chunk[int(done["Id"])], operation, began)
        for failed in answer.get("Failed", ()):
            if failed.get("SenderFault"):  # its receipt is not valid any more: it is another holder's, or gone
                chunk[int(failed["Id"])].ours_until = 0.0
                self._forget(chunk[int(failed["Id"])])
            else:
                again = str(failed.get("Code"))
        if again:
            raise SqsAway(f"SQS: {again}")

    def _done(self, receipt: Receipt, operation: str, began: float) -> None:
        if operation == "renew":
            receipt.ours_until = began + self._lease_s
        else:
            receipt.is_settled = True
            self._forget(receipt)

    def _forget(self, receipt: Receipt) -> None:
        if self._held.get(receipt.id) is receipt:  # and not a later delivery of the same message
            del self._held[receipt.id]

    # -- the rest

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        """Append one envelope to a queue; a body that is kept apart has no place in it."""
        if payload is not None:
            raise BrokerRefused("a message of SQS has its body in the envelope")
        with self._kernel_errors():
            self._queues.send(queue, [Outgoing(self._queues.encode(raw))])

    def purge(self, queue: str) -> int:
        """Delete the waiting and parked messages of a queue, as many as SQS says there are.

        SQS purges everything at once, what is in flight included. So what waits is received and deleted instead, and
        only what is parked beside nothing else is purged.
        """
        info = self.size(queue)
        count = 0
        with self._kernel_errors():
            while received := self._receive_some(queue):
                self._carry_out("delete", queue, received, 0)
                count += len(received)
            if info.parked and not self._numbers(queue)[1]:
                self._queues.call("purge_queue", queue)
                count += info.parked
        return count

    def _receive_some(self, queue: str) -> list[Receipt]:
        answer = self._queues.call(
            "receive_message", queue, MaxNumberOfMessages=BATCH, WaitTimeSeconds=0, VisibilityTimeout=30
        )
        return [Receipt(queue, each, time.monotonic() + 30) for each in answer.get("Messages") or ()]

    def size(self, queue: str) -> QueueInfo:
        """Count the messages of a queue, whoever holds them. SQS counts approximately."""
        with self._kernel_errors():
            waiting, in_flight, parked = self._numbers(queue)
            dead = sum(self._numbers(dead_queue(queue)))
            return QueueInfo(queue, waiting, in_flight, parked, dead)

    def _numbers(self, queue: str) -> tuple[int, int, int]:
        if not self._queues.exists(queue):
            return 0, 0, 0
        names = ("", "NotVisible", "Delayed")
        answer = self._queues.call(
            "get_queue_attributes", queue, AttributeNames=[f"ApproximateNumberOfMessages{name}" for name in names]
        )
        found = answer.get("Attributes") or {}
        waiting, in_flight, parked = (int(found.get(f"ApproximateNumberOfMessages{name}", 0)) for name in names)
        return waiting, in_flight, parked

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """The newest dead letters of a queue, newest first, among the first ten thousand that SQS gives."""
        with self._kernel_errors():
            return self._dead.newest(queue, limit)

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        """One dead letter by its id."""
        with self._kernel_errors():
            return next((letter for letter in self._dead.newest(queue, None) if letter.id == id), None)

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Put dead letters back into their queue."""
        with self._kernel_errors():
            return self._dead.replay(queue, ids)

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        """Delete dead letters."""
        with self._kernel_errors():
            return self._dead.drop(queue, ids)

    def close(self) -> None:
        """Give back what is reserved but unsettled, without counting. Idempotent."""
        receiver, self._receiver = self._receiver, None
        threads, self._threads = self._threads, None
        if receiver is None:
            return
        receiver.interrupt()
        late = receiver.close(CLOSE_S)
        left = [receipt for receipt in (*self._held.values(), *late) if receipt.is_ours]
        self._held.clear()
        try:
            self._replace([Settlement(each.delivery(), Verdict.REQUEUE) for each in left if not _keeps_place(each)])
            for queue in {each.queue for each in left if _keeps_place(each)}:
                kept = [each for each in left if each.queue == queue]
                self._carry_out("release", queue, kept, 0)
        except (SqsAway, SqsRefused):
            pass  # the lease brings them back
        if threads is not None:
            threads.shutdown(wait=False)

    @contextmanager
    def _kernel_errors(self) -> Iterator[None]:
        try:
            yield
        except SqsRefused as error:
            raise BrokerRefused(str(error)) from error
        except SqsAway as error:
            raise BrokerUnavailable(str(error), retry_after=error.retry_after) from error


def _keeps_place(receipt: Receipt) -> bool:
    return receipt.queue.endswith(FIFO)
