"""Deliberately wrong brokers. Each is the reference with one fault that real drivers have had."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kernel_worker import DeadLetter, Delivery, QueueInfo, QueueSpec, Settlement, Verdict

from .reference import MemoryBroker, MemoryStorage, Message


class WrongBroker(MemoryBroker):
    """Base: a broker over its own kind of storage, so that one wrong server can be told from the right one."""

    Storage: type[MemoryStorage] = MemoryStorage
    storages: dict[str, MemoryStorage] = {}

    def connect(self) -> None:
        key = f"{self.Storage.__name__} {self.context.url}"
        self.storage = self.storages.setdefault(key, self.Storage())


# ---------------------------------------------------------------------- reserving


class LosesOnCrash(WrongBroker):
    """Takes a message off the server and remembers it only in the process."""

    class Storage(MemoryStorage):
        def bring_back(self) -> None:
            for number in [n for n, message in self.messages.items() if message.holder and not message.due]:
                if self.messages[number].holder not in self.leases:
                    del self.messages[number]
            alive = dict(self.leases)
            for holder, (_, end) in alive.items():
                if end < time.monotonic():
                    del self.leases[holder]
            super().bring_back()


class PopsBeforeRegistering(MemoryBroker):
    """Reserves in two steps, as kombu's Redis transport does: a kill between them loses the batch."""

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        popped = self.storage.pop_all(self.context.holder, self.context.lease_s, self.names, limit, timeout)
        time.sleep(0.02)  # the round trip: most victims are killed in it
        self.storage.put_reserved(popped)
        return [self.delivery(*each) for each in popped]


class TwoStepStorage(MemoryStorage):
    """The server of `PopsBeforeRegistering`."""

    def pop_all(self, holder: str, lease_s: float, queues: list[str], limit: int, timeout: float) -> list[Any]:
        taken = self.reserve(holder, lease_s, queues, limit, timeout)
        with self.changed:
            for number, _, _ in taken:
                del self.messages[number]
        return taken

    def put_reserved(self, popped: list[tuple[int, int, Message]]) -> None:
        with self.changed:
            for number, _, message in popped:
                self.messages[number] = message


class LastInFirstOut(WrongBroker):
    """A stack instead of a queue."""

    class Storage(MemoryStorage):
        def publish(self, queue: str, raw: bytes, priority: int) -> None:
            with self.changed:
                number = next(self.serial)
                self.messages[number] = Message(queue, raw, priority, (0, -number))
                self.changed.notify_all()


class IgnoresLimit(WrongBroker):
    """Takes what is there."""

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        return super().fetch(limit + 1, timeout)


class OneByOne(WrongBroker):
    """Declares BATCH_FETCH and reserves one message per fetch."""

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        return super().fetch(min(1, limit), timeout)


class WaitsForTheWholeBatch(WrongBroker):
    """Waits until the limit is reached or the time is over."""

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        got: list[Delivery] = []
        deadline = time.monotonic() + timeout
        while len(got) < limit and time.monotonic() < deadline:
            got += super().fetch(limit - len(got), 0.02)
        return got


class NeverWaits(WrongBroker):
    """Returns at once with nothing: the fetch thread spins."""

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        return super().fetch(limit, 0.0)


class InterruptHangs(WrongBroker):
    """`interrupt` reaches nobody."""

    def interrupt(self) -> None:
        pass


class InterruptIsForgotten(WrongBroker):
    """`interrupt` ends a waiting fetch only; before a fetch it is lost."""

    class Storage(MemoryStorage):
        def reserve(self, holder: str, lease_s: float, queues: list[str], limit: int, timeout: float) -> list[Any]:
            self.interrupted.discard(holder)
            return super().reserve(holder, lease_s, queues, limit, timeout)


class InterruptStays(WrongBroker):
    """Once interrupted, it never waits again."""

    class Storage(MemoryStorage):
        def interrupt(self, holder: str) -> None:
            super().interrupt(holder)
            self.for_ever = holder

        def reserve(self, holder: str, lease_s: float, queues: list[str], limit: int, timeout: float) -> list[Any]:
            if getattr(self, "for_ever", "") == holder:
                timeout = 0.0
            return super().reserve(holder, lease_s, queues, limit, timeout)


class InterruptDropsTheBatch(WrongBroker):
    """A fetch that is interrupted throws away what it has just reserved."""

    class Storage(MemoryStorage):
        def reserve(self, holder: str, lease_s: float, queues: list[str], limit: int, timeout: float) -> list[Any]:
            interrupted = holder in self.interrupted
            taken = super().reserve(holder, lease_s, queues, limit, timeout)
            return [] if interrupted else taken


class TwoHoldersShare(WrongBroker):
    """Looks first and reserves later."""

    class Storage(MemoryStorage):
        def reserve(self, holder: str, lease_s: float, queues: list[str], limit: int, timeout: float) -> list[Any]:
            numbers = self.next_numbers(queues, limit)
            time.sleep(0.002)
            if numbers:
                return self.register(holder, lease_s, [n for n in numbers if n in self.messages])
            return super().reserve(holder, lease_s, queues, limit, timeout)


class FirstQueueFirst(WrongBroker):
    """Serves the next queue when the one before it is empty."""

    class Storage(MemoryStorage):
        def next_numbers(self, queues: list[str], limit: int) -> list[int]:
            self.turn = -1
            return super().next_numbers(queues, limit)


class LosesPriority(WrongBroker):
    """Forgets the priority when it publishes."""

    def publish(self, queue: str, raw: bytes, *, priority: int = 0, payload: bytes | None = None) -> None:
        super().publish(queue, raw)


class RequeueLosesPriority(WrongBroker):
    """A requeued message comes before everything, however urgent that is."""

    class Storage(MemoryStorage):
        def give_back(self, message: Message) -> None:
            super().give_back(message)
            message.priority = -1


# ---------------------------------------------------------------------- settling


class AckLeavesTheMessage(WrongBroker):
    """ACK forgets the reservation and leaves the message."""

    def settle(self, batch: Sequence[Settlement]) -> None:
        super().settle(
            [replace(each, verdict=Verdict.REQUEUE) if each.verdict is Verdict.ACK else each for each in batch]
        )


class AcksOnRequeue(WrongBroker):
    """REQUEUE removes the message."""

    def settle(self, batch: Sequence[Settlement]) -> None:
        super().settle(
            [replace(each, verdict=Verdict.ACK) if each.verdict is Verdict.REQUEUE else each for each in batch]
        )


class AcksTheWholeBatch(WrongBroker):
    """As AMQP's multiple flag used wrongly: one ack also takes what was delivered before it."""

    class Storage(MemoryStorage):
        def carry_out(
            self, number: int, message: Message, verdict: Verdict, reason: str, until: float, count: bool
        ) -> None:
            if verdict is Verdict.ACK:
                for other in [n for n, m in self.messages.items() if m.holder == message.holder and n < number]:
                    del self.messages[other]
            super().carry_out(number, message, verdict, reason, until, count)


class RequeuesToTheBack(WrongBroker):
    """REQUEUE as kombu's reject does it on Redis."""

    class Storage(MemoryStorage):
        def give_back(self, message: Message) -> None:
            super().give_back(message)
            message.place = (1, next(self.serial))


class CountsEveryRequeue(WrongBroker):
    """Every redelivery is an attempt, also the orderly ones."""

    def settle(self, batch: Sequence[Settlement]) -> None:
        super().settle([replace(each, count=each.verdict is Verdict.REQUEUE) for each in batch])


class NeverCounts(WrongBroker):
    """Attempts stay 0: a poison message kills executors for ever."""

    class Storage(MemoryStorage):
        def bring_back(self) -> None:
            super().bring_back()
            for message in self.messages.values():
                message.attempts = 0

        def carry_out(
            self, number: int, message: Message, verdict: Verdict, reason: str, until: float, count: bool
        ) -> None:
            super().carry_out(number, message, verdict, reason, until, False)


class CountsTheDead(WrongBroker):
    """A dead holder's messages are counted, also those it only held."""

    class Storage(MemoryStorage):
        def bring_back(self) -> None:
            before = {number for number, message in self.messages.items() if message.holder}
            super().bring_back()
            for number in before:
                self.messages[number].attempts += not self.messages[number].holder


class NeverSaysRecovered(WrongBroker):
    """Gives messages of dead holders away like any other."""

    class Storage(MemoryStorage):
        def bring_back(self) -> None:
            super().bring_back()
            for message in self.messages.values():
                message.recovered = False


class ForgetsTheSuspicion(WrongBroker):
    """A recovered message that was given back unrun is a clean one."""

    class Storage(MemoryStorage):
        def give_back(self, message: Message) -> None:
            super().give_back(message)
            message.recovered = False


class SuspectsForEver(WrongBroker):
    """A mark counts, and leaves the message recovered: it is marked again at every delivery."""

    class Storage(MemoryStorage):
        def carry_out(
            self, number: int, message: Message, verdict: Verdict, reason: str, until: float, count: bool
        ) -> None:
            recovered = message.recovered
            super().carry_out(number, message, verdict, reason, until, count)
            message.recovered = recovered


class MarksInMemory(WrongBroker):
    """Counts a mark when the delivery is settled: a dead holder takes it along."""

    def settle(self, batch: Sequence[Settlement]) -> None:
        super().settle([each for each in batch if each.verdict is not Verdict.MARK])


class MarkGivesBack(WrongBroker):
    """Takes a mark for a requeue that counts."""

    def settle(self, batch: Sequence[Settlement]) -> None:
        super().settle(
            [
                replace(each, verdict=Verdict.REQUEUE, count=True) if each.verdict is Verdict.MARK else each
                for each in batch
            ]
        )


class CountsMarksTwice(WrongBroker):
    """A mark that is repeated counts again."""

    class Storage(MemoryStorage):
        def carry_out(
            self, number: int, message: Message, verdict: Verdict, reason: str, until: float, count: bool
        ) -> None:
            message.marked = False
            super().carry_out(number, message, verdict, reason, until, count)


class CountsMarkOrEnd(WrongBroker):
    """A marked delivery that ends in a lost executor is counted once for two lost runs."""

    class Storage(MemoryStorage):
        def carry_out(
            self, number: int, message: Message, verdict: Verdict, reason: str, until: float, count: bool
        ) -> None:
            super().carry_out(number, message, verdict, reason, until, count and not message.marked)


class CountsNeighbours(WrongBroker):
    """As quorum queues do: a lost executor counts against all messages of the batch."""

    def settle(self, batch: Sequence[Settlement]) -> None:
        count = any(each.count for each in batch)
        super().settle([replace(each, count=count) for each in batch])


class DelayIsRequeue(WrongBroker):
    """Declares DELAY and puts the message back at once."""

    def settle(self, batch: Sequence[Settlement]) -> None:
        super().settle(
            [replace(each, verdict=Verdict.REQUEUE) if each.verdict is Verdict.DELAY else each for each in batch]
        )


class DelayedHoldUpOthers(WrongBroker):
    """As an AMQP queue with per-message TTL: the head of the queue holds up the rest."""

    class Storage(MemoryStorage):
        def next_numbers(self, queues: list[str], limit: int) -> list[int]:
            return [] if any(message.due for message in self.messages.values()) else super().next_numbers(queues, limit)


class DelayResetsAttempts(WrongBroker):
    """Parks a fresh copy."""

    class Storage(MemoryStorage):
        def carry_out(
            self, number: int, message: Message, verdict: Verdict, reason: str, until: float, count: bool
        ) -> None:
            if verdict is Verdict.DELAY:
                message.attempts = 0
            super().carry_out(number, message, verdict, reason, until, count)


class DelayDiesWithItsHolder(WrongBroker):
    """Parks in the holder's memory."""

    class Storage(MemoryStorage):
        def release(self, holder: str) -> None:
            super().release(holder)
            self.messages = {n: message for n, message in self.messages.items() if not message.due}


class DropsDead(WrongBroker):
    """Declares DEAD_LETTER and throws the message away."""

    class Storage(MemoryStorage):
        def bury(self, number: int, message: Message, reason: str) -> None:
            pass


class RewritesDead(WrongBroker):
    """Keeps a parsed and printed copy."""

    class Storage(MemoryStorage):
        def bury(self, number: int, message: Message, reason: str) -> None:
            message.raw = message.raw.replace(b": ", b":")
            super().bury(number, message, reason)


class OldestDeadFirst(WrongBroker):
    """Lists dead letters the wrong way round: the limit hides the new ones."""

    class Storage(MemoryStorage):
        def dead_letters(self, queue: str, limit: int) -> Any:
            return self.dead[queue][::-1][:limit]


class FindsTheNewestOnly(WrongBroker):
    """Looks for a dead letter among those it would list."""

    def dead_letter(self, queue: str, id: str) -> DeadLetter | None:
        return next((letter for letter in self.dead_letters(queue) if letter.id == id), None)


class ReplaysACopy(WrongBroker):
    """Puts a dead letter back and keeps it."""

    def replay_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        letters = [letter for letter in self.dead_letters(queue, 1 << 30) if ids is None or letter.id in ids]
        for letter in letters:
            self.publish(queue, letter.raw)
        return len(letters)


class ReplaysToTheFront(WrongBroker):
    """A message that kills comes first again."""

    class Storage(MemoryStorage):
        def exhume(self, queue: str, ids: Sequence[str] | None, replay: bool) -> int:
            before = set(self.messages)
            found = super().exhume(queue, ids, replay)
            for number in set(self.messages) - before:
                self.messages[number].place = (-1, number)
            return found


class ReplayLosesPriority(WrongBroker):
    """Replays everything as urgent."""

    class Storage(MemoryStorage):
        def exhume(self, queue: str, ids: Sequence[str] | None, replay: bool) -> int:
            self.buried = dict.fromkeys(self.buried, 0)
            return super().exhume(queue, ids, replay)


class DropsEverything(WrongBroker):
    """Deletes all dead letters when one is named."""

    def drop_dead(self, queue: str, ids: Sequence[str] | None = None) -> int:
        return super().drop_dead(queue)


class ConsumesTheOldQueues(WrongBroker):
    """Changes the context and goes on with the queues it had."""

    def consume(self, queues: Sequence[QueueSpec]) -> None:
        names = self.names
        super().consume(queues)
        self.names = names


class SettlesTwice(WrongBroker):
    """A repeated batch does it again."""

    class Storage(MemoryStorage):
        def held(self, holder: str, number: int, receipt: int) -> Message | None:
            found = super().held(holder, number, receipt)
            if found is None and number in self.gone:
                self.messages[number] = found = self.gone[number]
            return found

        def carry_out(
            self, number: int, message: Message, verdict: Verdict, reason: str, until: float, count: bool
        ) -> None:
            self.gone[number] = message
            super().carry_out(number, message, verdict, reason, until, count)

        def __post_init__(self) -> None:
            super().__post_init__()
            self.gone: dict[int, Message] = {}


class ReceiptIsTheTag(WrongBroker):
    """Knows its messages by tag and holder only: an old settlement hits the next delivery."""

    class Storage(MemoryStorage):
        def held(self, holder: str, number: int, receipt: int) -> Message | None:
            message = self.messages.get(number)
            return message if message and message.holder == holder else None


class StopsAtTheFirstLost(WrongBroker):
    """A delivery that is no longer ours ends the batch."""

    class Storage(MemoryStorage):
        def settle(self, holder: str, verdicts: list[tuple[int, int, str, str, float, bool]]) -> None:
            for verdict in verdicts:
                if self.held(holder, verdict[0], verdict[1]) is None:
                    return
                super().settle(holder, [verdict])


# ---------------------------------------------------------------------- leases


class DoesNotFence(WrongBroker):
    """Whoever knows the tag may settle it, whoever has it now."""

    class Storage(MemoryStorage):
        def held(self, holder: str, number: int, receipt: int) -> Message | None:
            return self.messages.get(number)


class NeverBringsBack(WrongBroker):
    """Messages of a dead holder stay with it, as with an hour of visibility time-out."""

    class Storage(MemoryStorage):
        def bring_back(self) -> None:
            self.leases.clear()
            super().bring_back()


class RenewDoesNothing(WrongBroker):
    """A task longer than the lease runs twice, as with kombu's Redis transport."""

    def renew(self, held: Sequence[Delivery]) -> list[Delivery]:
        return []


class ShortestLeaseWins(WrongBroker):
    """Judges others' messages by its own lease, as kombu's visibility time-out does."""

    class Storage(MemoryStorage):
        def reserve(self, holder: str, lease_s: float, queues: list[str], limit: int, timeout: float) -> list[Any]:
            soon = time.monotonic() + lease_s
            self.leases = {name: (lease_s, min(end, soon)) for name, (_, end) in self.leases.items()}
            return super().reserve(holder, lease_s, queues, limit, timeout)


class TakesBackWhatItLost(WrongBroker):
    """Renewing makes the messages its own again."""

    def renew(self, held: Sequence[Delivery]) -> list[Delivery]:
        lost = super().renew(held)
        for delivery in held:
            message = self.storage.messages.get(delivery.receipt[0])
            if message:
                message.holder, message.receipt = self.context.holder, delivery.receipt[1]
        return lost


class KeepsTheLossToItself(WrongBroker):
    """Says at a renewal that all is held still: what others run now goes on here."""

    def renew(self, held: Sequence[Delivery]) -> list[Delivery]:
        super().renew(held)
        return []


class ReturnsAreAttempts(WrongBroker):
    """Counts a delay for want of the task like a lost executor."""

    class Storage(MemoryStorage):
        def carry_out(
            self, number: int, message: Message, verdict: Verdict, reason: str, until: float, count: bool
        ) -> None:
            message.attempts += count and verdict is Verdict.DELAY
            super().carry_out(number, message, verdict, reason, until, count)


class ClosedHolderWaitsForItsLease(WrongBroker):
    """`close` gives nothing back."""

    def close(self) -> None:
        pass


class CloseCounts(WrongBroker):
    """An orderly stop counts as a lost executor."""

    class Storage(MemoryStorage):
        def release(self, holder: str) -> None:
            for message in self.messages.values():
                message.attempts += message.holder == holder
            super().release(holder)


class CloseGivesBackEverything(WrongBroker):
    """`close` also gives back what other holders have."""

    class Storage(MemoryStorage):
        def release(self, holder: str) -> None:
            for other in {message.holder for message in self.messages.values()}:
                super().release(other)


class ReconnectForgets(WrongBroker):
    """A new connection is a new holder."""

    connects = 0

    def connect(self) -> None:
        super().connect()
        self.connects += 1
        self.context = replace(self.context, holder=f"{self.context.holder}/{self.connects}")


# ---------------------------------------------------------------------- the rest


class RaisesOnStrangeBytes(WrongBroker):
    """Parses before it looks: one bad message stops the worker."""

    def delivery(self, number: int, receipt: int, message: Message) -> Delivery:
        delivery = super().delivery(number, receipt, message)
        if delivery.error:
            raise ValueError(delivery.error)
        return delivery


class DropsStrangeBytes(WrongBroker):
    """Acknowledges what it cannot read."""

    def fetch(self, limit: int, timeout: float) -> list[Delivery]:
        got = super().fetch(limit, timeout)
        self.settle([Settlement(each, Verdict.ACK) for each in got if each.error])
        return [each for each in got if not each.error]


class NoSizeLimit(WrongBroker):
    """Delivers messages of any size."""

    def too_large(self, delivery: Delivery) -> bool:
        return False


class PurgesEverything(WrongBroker):
    """Purge also takes what is in flight."""

    class Storage(MemoryStorage):
        def purge(self, queue: str) -> int:
            waiting = super().purge(queue)
            self.messages = {n: message for n, message in self.messages.items() if message.queue != queue}
            return waiting


class PurgeForgetsParked(WrongBroker):
    """Purge leaves the parked messages."""

    class Storage(MemoryStorage):
        def purge(self, queue: str) -> int:
            parked = {n: message for n, message in self.messages.items() if message.due}
            for number in parked:
                del self.messages[number]
            gone = super().purge(queue)
            self.messages |= parked
            return gone


class SizeIsTheWaiting(WrongBroker):
    """Counts the waiting messages only."""

    def size(self, queue: str) -> QueueInfo:
        return QueueInfo(queue, super().size(queue).waiting)
