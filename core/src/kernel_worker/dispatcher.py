"""Admit deliveries, give them to free slots, and settle what comes back.

Runs on the loop thread only. Knows requests, executors and the bus; knows no broker and no pool. Everything
that is sent or settled is collected during a turn of the loop and goes out once, at its end.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

from .bus import Bus, Kind
from .loop import Loop
from .settle import DEFAULT_TASK, decide
from .supervisor import Handle, Supervisor
from .types import Delivery, Outcome, OutcomeKind, Settlement, TaskInfo, Verdict
from .wire import CONCLUDE_HEAD, DONE_RECORD, FLAG_PAYLOAD, FLAG_REDELIVERED, HEAD, RUN_HEAD, Frame

log = logging.getLogger("kernel_worker.dispatcher")

HORIZON_S = 0.01
"""Work given to one slot ahead of time: at most this much, by the run times measured per task."""
MAX_DEPTH = 64
"""Requests one slot holds at most."""
BATCH_S = 0.1
"""Work held ready: about what is finished in this time at the measured rate."""
MAX_HELD = 4000
SURPLUS_S = 0.5
"""Work that waits here longer than this, by the measured rate, is given back for other workers."""
TICK_S = 0.1
RATE_SAMPLE = 200
"""Requests after which the rate is measured before the next tick, so that a burst ramps up at once."""
LIMIT_SLACK_S = 0.05
NAME_LIMIT = 255


@dataclass(slots=True, eq=False)
class Request:
    """The kernel's record of one run of a task."""

    id: str
    task: str
    delivery: Delivery
    info: TaskInfo
    hard: float = 0.0
    soft: float = 0.0
    eta: float = 0.0
    expires: float = 0.0
    cost: float = HORIZON_S
    tag: int = 0
    """Names this run on the wire; given with the slot, so that what one executor gets has rising tags."""
    executor: Handle | None = None
    acked: bool = False
    conclude: OutcomeKind | None = None
    """Set when the task shall not be run (to its end) but this outcome be stored, with `text`."""
    text: str = ""
    final: Settlement | None = None
    """What to do with the delivery once the conclusion is stored."""


class InvalidMessage(Exception):
    """A message that cannot become a request; the text is the reason kept with the dead letter."""


class Dispatcher:
    """Requests of one worker, from delivery to settlement."""

    def __init__(
        self,
        loop: Loop,
        supervisor: Supervisor,
        bus: Bus,
        *,
        max_deliveries: int = 3,
        multiplier: int | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        can_delay: bool = True,
        can_kill: bool = True,
        filters: Sequence[Callable[[Request], Settlement | None]] = (),
        policy: Callable[[Request, Outcome], Settlement] | None = None,
        on_up: Callable[[Handle], object] = lambda executor: None,
        on_down: Callable[[Handle, str], object] = lambda executor, reason: None,
    ) -> None:
        self.loop = loop
        self.supervisor = supervisor
        self.bus = bus
        self.ready: deque[Request] = deque()
        self.in_flight: dict[int, Request] = {}
        """Requests that executors hold, by tag."""
        self._parked: set[Request] = set()
        """Requests that are not due, where the broker cannot park them."""
        self.closing = False
        self.completed = 0
        self.settle_batch: Callable[[list[Settlement]], None] = lambda batch: None
        """Where a turn's settlements go; set by the broker host."""
        self.allow: Callable[[int, int], None] = lambda total, batch: None
        """Told how many deliveries may be fetched in total since the start, and how many are worth a
        round trip; set by the broker host. A running total needs no lock: only the fetch thread counts up."""
        self._received = 0
        self._released = 0
        self._batch: list[Settlement] = []
        self._tags = itertools.count(1)
        self._tasks: Mapping[str, TaskInfo] = {}
        self._costs: dict[str, float] = {}
        self._multiplier = multiplier
        self._limits = (time_limit or 0.0, soft_time_limit or 0.0)
        self._can_delay = can_delay
        self._can_kill = can_kill
        self._filters = tuple(filters)
        self._on_up = on_up
        self._on_down = on_down
        self._max_deliveries = max_deliveries
        self._plugins_policy = policy
        self._rate = 0.0
        self._rate_at = time.monotonic()
        self._rate_from = 0
        self._pace_at = 0.0
        self._pace_from = 0
        self._slow = False
        self._begun = False
        self._ticking = False
        self._allowed = 0
        supervisor.events = self
        loop.at_turn_end(self._turn_end)

    def begin(self, tasks: Mapping[str, TaskInfo]) -> None:
        """The application is known: requests for these tasks may come."""
        self._tasks = tasks
        self._begun = True

    @property
    def held(self) -> int:
        """Deliveries that are neither settled nor given up."""
        return self._received - self._released

    def held_deliveries(self) -> list[Delivery]:
        """All deliveries in hand, for the renewal of leases. Any thread: copies in one step."""
        requests = [*list(self.ready), *list(self._parked), *list(self.in_flight.values())]
        return [request.delivery for request in requests]

    # -- in: deliveries

    def on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        """Take a batch from the fetch thread (posted to the loop)."""
        self._received += len(deliveries)
        if self.closing:
            for delivery in deliveries:
                self._settle(Settlement(delivery, Verdict.REQUEUE))
            return
        if not self._ticking:
            self._ticking = True
            self._rate_at, self._rate_from = time.monotonic(), self.completed
            self._pace_at, self._pace_from, self._slow = self._rate_at, self.completed, False
            self.loop.call_later(TICK_S, self._tick)
        now = time.time()
        received = self.bus.subscribers[Kind.RECEIVED]
        for delivery in deliveries:
            try:
                request = self._request(delivery)
            except InvalidMessage as error:
                self._dead(delivery, str(error))
                continue
            for callback in received:
                callback(request, None)
            if request.eta > now:
                self._release(request, Settlement(delivery, Verdict.DELAY, until=request.eta))
            elif self._filters:
                self._admit(request)
            else:
                self.ready.append(request)

    def _park(self, request: Request, until: float) -> None:
        """Hold a request until that unix time. It takes no room of the prefetch: else a few stop consumption."""
        self._parked.add(request)
        self.loop.call_later(until - time.time(), self._unpark, request)

    def _unpark(self, request: Request) -> None:
        if request in self._parked:  # not given back meanwhile
            self._parked.discard(request)
            self._admit(request)

    def _admit(self, request: Request) -> None:
        for admission in self._filters:
            try:
                settlement = admission(request)
            except Exception:  # a filter's bug must neither lose the batch nor stop consumption: it admits
                log.exception("admission filter %r failed", admission, extra={"action": "filter_failed"})
                continue
            if settlement is not None:
                self._release(request, settlement)
                return
        self.ready.append(request)

    def _request(self, delivery: Delivery) -> Request:
        if delivery.error is not None:
            raise InvalidMessage(delivery.error)
        headers = delivery.headers
        task = headers.get("task")
        if task is None:  # protocol 1: everything lies in the body, which only the executor reads
            return Request("", "", delivery, DEFAULT_TASK, *self._limits)
        task_id = headers.get("id")
        if not _is_name(task):
            raise InvalidMessage(f"header 'task' is not a name: {task!r:.80}")
        if not _is_name(task_id):
            raise InvalidMessage(f"header 'id' is not an id: {task_id!r:.80}")
        info = self._tasks.get(task)
        request = Request(task_id, task, delivery, info or DEFAULT_TASK)
        if info is None:
            request.conclude, request.text = OutcomeKind.UNKNOWN, printable(task)
        request.cost = self._costs.get(task, HORIZON_S)
        request.hard = info.time_limit if info is not None and info.time_limit else self._limits[0]
        request.soft = info.soft_time_limit if info is not None and info.soft_time_limit else self._limits[1]
        limits = headers.get("timelimit")
        if limits is not None and limits != [None, None]:
            self._header_limits(request, limits)
        if (eta := headers.get("eta")) is not None:
            request.eta = unix_time(eta, "eta")
        if (expires := headers.get("expires")) is not None:
            request.expires = unix_time(expires, "expires")
        return request

    @staticmethod
    def _header_limits(request: Request, limits: Any) -> None:
        try:
            hard, soft = limits
            for value in (hard, soft):
                if value is not None and (isinstance(value, bool) or not 0 <= value < 1e9):
                    raise ValueError
        except (TypeError, ValueError):
            raise InvalidMessage(f"header 'timelimit' is not [hard, soft] in seconds: {limits!r:.80}") from None
        request.hard = hard or request.hard
        request.soft = soft or request.soft

    # -- through: assignment

    def _assign(self) -> None:
        ready = self.ready
        executors = [h for h in self.supervisor.executors.values() if h.up and not h.retiring and not h.stalled]
        for handle in executors:
            while ready and _depth(handle) < handle.slots:
                self._give(handle, ready.popleft())
        if not ready:
            return
        # Everyone is busy. Short tasks may wait at a slot, so that one send and one wake-up serve many.
        fair_share = -(-len(ready) // max(1, len(executors)))
        for handle in sorted(executors, key=_depth):
            share = fair_share
            while ready and share and _depth(handle) < MAX_DEPTH * handle.slots:
                request = ready[0]
                if handle.backlog_s + request.cost > HORIZON_S * handle.slots or not request.info.acks_late:
                    break
                self._give(handle, ready.popleft())
                share -= 1

    def _give(self, handle: Handle, request: Request) -> None:
        if request.conclude is None and request.expires and request.expires <= time.time():
            request.conclude, request.text = OutcomeKind.EXPIRED, "expired"
        delivery = request.delivery
        request.tag = next(self._tags)
        handle.outstanding[request.tag] = request
        handle.backlog_s += request.cost
        self.in_flight[request.tag] = request
        request.executor = handle
        queue = delivery.queue.encode()
        payload = delivery.payload
        flags = (FLAG_REDELIVERED if delivery.redelivered else 0) | (FLAG_PAYLOAD if payload is not None else 0)
        head = RUN_HEAD.pack(
            request.tag, request.hard, request.soft, delivery.attempts, flags, len(queue), len(delivery.raw)
        )
        body = head + queue + delivery.raw + (payload or b"")
        if request.conclude is not None:
            text = request.text.encode()
            body = CONCLUDE_HEAD.pack(request.conclude, len(text)) + text + body
            handle.channel.queue(HEAD.pack(len(body), Frame.CONCLUDE) + body)
            return
        handle.channel.queue(HEAD.pack(len(body), Frame.RUN) + body)
        if not request.info.acks_late and not request.acked:
            request.acked = True
            self._batch.append(Settlement(delivery, Verdict.ACK))
        if request.hard:
            self._watch_limits(handle, request.hard + LIMIT_SLACK_S)
        if self.bus.subscribers[Kind.STARTED]:
            self.bus.emit(Kind.STARTED, request)

    # -- back: outcomes

    def on_up(self, executor: Handle) -> None:
        """A further executor is ready; the turn's end gives it work."""
        self._on_up(executor)

    def on_frame(self, executor: Handle, kind: int, payload: bytes) -> None:
        """Outcomes from an executor."""
        if kind == Frame.DONE:
            now_succeeded = self.bus.subscribers[Kind.SUCCEEDED]
            for tag, _, runtime in DONE_RECORD.iter_unpack(payload):
                request = self._finish(executor, tag, runtime)
                if request is None:
                    continue
                if self._plugins_policy is not None:
                    self._release(request, self._policy(request, Outcome(OutcomeKind.SUCCESS, runtime)))
                else:
                    self._release(request, Settlement(request.delivery, Verdict.ACK))
                if now_succeeded:
                    self.bus.emit(Kind.SUCCEEDED, request, Outcome(OutcomeKind.SUCCESS, runtime))
        elif kind == Frame.ENDED:
            value = json.loads(payload)
            # Read whole before the request is taken out: a damaged executor's nonsense must leave it in hand.
            outcome = Outcome(
                OutcomeKind(value["kind"]),
                float(value["runtime"]),
                str(value["error"]),
                bool(value["requeue"]),
                float(value["until"]),
            )
            request = self._finish(executor, value["tag"], outcome.runtime)
            if request is not None:
                self._conclude(request, outcome)
        elif kind == Frame.RETURNED:
            self._take_back(executor, json.loads(payload))
        elif kind == Frame.UNSTORED:
            executor.unstored = max(0, min(int(json.loads(payload)), len(executor.outstanding)))
            executor.stalled = executor.stalled and _depth(executor) >= executor.slots

    def _finish(self, executor: Handle, tag: int, runtime: float) -> Request | None:
        request = executor.outstanding.pop(tag, None)
        if request is None:
            return None  # a damaged executor reports what it does not have
        self.in_flight.pop(tag, None)
        executor.stalled = False
        executor.backlog_s = max(0.0, executor.backlog_s - request.cost) if executor.outstanding else 0.0
        self.completed += 1
        if request.conclude is None and runtime:  # conclusions ran nothing, and their names are anybody's
            known = self._costs.get(request.task)
            self._costs[request.task] = runtime if known is None else known + 0.2 * (runtime - known)
        return request

    def _policy(self, request: Request, outcome: Outcome) -> Settlement:
        if self._plugins_policy is not None:
            try:
                return self._plugins_policy(request, outcome)
            except Exception:  # a plugin's bug must not leave the delivery unsettled: the kernel's policy decides
                log.exception("settle policy %r failed", self._plugins_policy, extra={"action": "policy_failed"})
        return decide(request.delivery, request.info, outcome, self._max_deliveries)

    def _conclude(self, request: Request, outcome: Outcome) -> None:
        settlement = request.final or self._policy(request, outcome)
        if outcome.kind is OutcomeKind.INVALID:
            log.error(
                "invalid message on queue %s is kept as dead letter: %s",
                request.delivery.queue,
                outcome.error,
                extra={"action": "message_dead", "task_id": request.id},
            )
        self._release(request, settlement)
        kind = _EVENTS.get(outcome.kind)
        if kind is not None:
            self.bus.emit(kind, request, outcome)

    def _take_back(self, executor: Handle, tags: Sequence[int]) -> None:
        """Requests an executor held behind a long one: first in line again, for others."""
        for tag in sorted(tags, reverse=True):
            request = executor.outstanding.pop(tag, None)
            if request is None:
                continue
            self.in_flight.pop(tag, None)
            executor.backlog_s = max(0.0, executor.backlog_s - request.cost)
            request.executor = None
            self._line_up_again(request)
        executor.stalled = _depth(executor) > 0  # its long task may have ended in between

    def _line_up_again(self, request: Request) -> None:
        """First in line again. While closing it goes back to the broker, unless nobody but us has it (it was acked when
        it was handed out) or its end is decided and only to be stored."""
        if self.closing and not request.acked and request.conclude is None:
            self._settle(Settlement(request.delivery, Verdict.REQUEUE))
        else:
            self.ready.appendleft(request)

    def on_down(self, executor: Handle, reason: str) -> None:
        """An executor died: what it ran is lost or timed out, what it only held goes first in line again."""
        started = {executor.board.read(slot)[0] for slot in range(executor.slots)} - {0}
        if executor.slots == 1:
            _, _, done = executor.board.read(0)
            for tag in [tag for tag in executor.outstanding if tag <= done]:
                request = self._finish(executor, tag, 0.0)
                if request is not None:
                    self._release(request, Settlement(request.delivery, Verdict.ACK))
            # What ran to its end without that being reported counts as started, too: a task that closes
            # descriptors ends well and kills its executor all the same, again and again.
            last = executor.board.last_started(0)
            started |= {tag for tag in executor.outstanding if tag <= last}
        held = list(executor.outstanding.values())
        executor.outstanding.clear()
        for request in reversed(held):
            self.in_flight.pop(request.tag, None)
            request.executor = None
            if request.tag in started and request.conclude is None:
                self._lost(request, executor, reason)
            else:
                self._line_up_again(request)
        self._on_down(executor, reason)

    def _lost(self, request: Request, executor: Handle, reason: str) -> None:
        if executor.doomed_tag == request.tag:
            outcome = Outcome(OutcomeKind.TIMEOUT, error=f"{request.hard:g}")
        elif (executor.doom and not executor.at_fault) or reason == "retired":
            # The kernel ended it, or it left in order with ends that no result store took: not this request's doing.
            outcome = Outcome(OutcomeKind.CANCELLED, error=reason)
        else:
            outcome = Outcome(OutcomeKind.LOST, error=f"Worker exited prematurely: {reason}")
        settlement = self._policy(request, outcome)
        log.log(
            logging.INFO if outcome.kind is OutcomeKind.CANCELLED else logging.ERROR,
            "task %s[%s] %s: %s",
            printable(request.task),
            printable(request.id),
            _ENDS[outcome.kind],
            outcome.error,
            extra={"action": "request_lost", "task_id": request.id, "reason": reason},
        )
        self.bus.emit(Kind.LOST, request, outcome)
        if settlement.verdict is Verdict.REQUEUE and not request.acked:
            self._settle(settlement)
            return
        # It will not run again, so somebody may wait for its result: another executor stores it, and
        # only then is the delivery settled.
        request.conclude, request.text, request.final = outcome.kind, outcome.error, settlement
        self.ready.appendleft(request)

    def _watch_limits(self, executor: Handle, delay_s: float) -> None:
        """Look at the limits of an executor's requests in `delay_s` seconds at the latest. One timer for each executor:
        those of requests that ended long ago would keep them all in memory until their limit."""
        pending = executor.limit_check
        if pending is not None:
            if pending.when <= time.monotonic() + delay_s:
                return
            pending.cancel()
        executor.limit_check = self.loop.call_later(delay_s, self._check_limits, executor)

    def _check_limits(self, executor: Handle) -> None:
        executor.limit_check = None
        limited = [request for request in executor.outstanding.values() if request.hard]
        if not limited:
            return  # or it has ended, and its board with it
        records = (executor.board.read(slot) for slot in range(executor.slots))
        started = {tag: at for tag, at, _ in records}
        now, wait_s = time.monotonic(), 1e9
        for request in limited:
            left_s = request.hard - (now - started.get(request.tag, now))
            if left_s > 0:
                wait_s = min(wait_s, left_s + 0.001)
            elif self._can_kill and executor.slots == 1:
                self.supervisor.kill(executor, f"hard time limit of {request.hard:g} s", request.tag)
                return
            else:
                self.supervisor.cancel(executor, request.tag, "time_limit", request.hard)
                wait_s = min(wait_s, 1.0)  # a task may catch it: say it again
        self._watch_limits(executor, wait_s)

    # -- out: settlements

    def _dead(self, delivery: Delivery, reason: str) -> None:
        log.error(
            "invalid message on queue %s is kept as dead letter: %s",
            delivery.queue,
            printable(reason),
            extra={"action": "message_dead", "queue": delivery.queue},
        )
        self._settle(Settlement(delivery, Verdict.DEAD, reason))

    def _release(self, request: Request, settlement: Settlement) -> None:
        if settlement.verdict is Verdict.DELAY and not self._can_delay:
            if not self.closing:
                self._park(request, settlement.until)
                return
            settlement = Settlement(settlement.delivery, Verdict.REQUEUE)
        if request.acked and settlement.verdict in (Verdict.ACK, Verdict.DEAD):
            self._released += 1  # acked when it started (early ack): nothing is left to settle
        else:
            self._settle(settlement)

    def _settle(self, settlement: Settlement) -> None:
        self._released += 1
        self._batch.append(settlement)

    def _turn_end(self) -> None:
        if self.ready:
            self._assign()
            self.supervisor.flush_all()
        if self._batch:
            batch, self._batch = self._batch, []
            self.settle_batch(batch)
        if self.completed - self._rate_from >= RATE_SAMPLE:
            self._measure_rate()
        self._update_limit()

    # -- prefetch

    def _update_limit(self) -> None:
        slots = self._slots()
        if self._slow and self.completed - self._pace_from >= 2 * slots:
            self._slow = False
        limit = slots
        if slots and not self._slow:
            limit += min(MAX_HELD, int(self._rate * BATCH_S) + min(slots, 4))
        if self._multiplier:
            limit = min(limit, slots * self._multiplier)
        if self.closing or not self._begun:
            limit = 0
        # What only waits for the result store takes no room: else tasks would wait for it, too.
        unstored = sum(handle.unstored for handle in self.supervisor.executors.values()) if limit else 0
        allowed = self._released + limit + len(self._parked) + unstored
        if allowed != self._allowed:
            self._allowed = allowed
            # Worth a round trip: a quarter of what may be held, but never so much that a free slot waits for it.
            self.allow(allowed, max(1, min(limit // 4, limit - slots + 1)))

    def _slots(self) -> int:
        return sum(h.slots for h in self.supervisor.executors.values() if h.up and not h.retiring)

    def _measure_rate(self) -> float:
        """Requests per second since the last measurement; the rate kept only rises here."""
        now = time.monotonic()
        rate = (self.completed - self._rate_from) / max(1e-3, now - self._rate_at)
        self._rate_at, self._rate_from = now, self.completed
        self._rate = max(self._rate, rate)
        return rate

    def _tick(self) -> None:
        """While there is work: let the rate fall, and give back what became too much."""
        before = self._rate
        rate = self._measure_rate()
        self._rate = rate if rate > before else 0.5 * before + 0.5 * rate
        self._notice_pace()
        keep = 0 if self._slow else int(self._rate * SURPLUS_S) + 4 * self._slots()
        if len(self.ready) > keep:
            self._give_up(len(self.ready) - keep)
        self._ticking = not self.closing and (self.held > 0 or self._rate > 1.0)
        if self._ticking:
            self.loop.call_later(TICK_S, self._tick)

    def _notice_pace(self) -> None:
        """Slow: all slots were busy and did not end two tasks each in half a second. Then nothing is held but what
        runs: whatever waits behind such tasks is better off with another worker."""
        now = time.monotonic()
        handles = [h for h in self.supervisor.executors.values() if h.up and not h.retiring]
        is_idle = any(_depth(handle) < handle.slots for handle in handles)
        if is_idle or self.completed - self._pace_from >= 2 * self._slots():
            self._slow = False
        elif now - self._pace_at > SURPLUS_S:
            self._slow = True
        else:
            return
        self._pace_at, self._pace_from = now, self.completed

    def _give_up(self, count: int) -> None:
        """Tasks became longer: what we hold too much belongs to other workers."""
        for _ in range(count):
            request = self.ready.pop()
            if request.conclude is not None or request.acked:
                self.ready.append(request)
                return
            self._settle(Settlement(request.delivery, Verdict.REQUEUE))

    # -- ending

    def close(self) -> None:
        """Take nothing more; return at once what has not started."""
        self.closing = True
        concluding = [request for request in self.ready if request.conclude is not None or request.acked]
        for request in reversed(self.ready):
            if request.conclude is None and not request.acked:
                self._settle(Settlement(request.delivery, Verdict.REQUEUE))
        self.ready = deque(concluding)
        self._unpark_all()
        self.supervisor.recall()

    def _unpark_all(self) -> None:
        for request in self._parked:
            self._settle(Settlement(request.delivery, Verdict.REQUEUE))
        self._parked.clear()

    def abandon(self) -> None:
        """Nobody is left to run anything: settle what still waits to be concluded, without its result."""
        while self.ready:
            request = self.ready.popleft()
            if request.final is not None:
                self._release(request, request.final)
            else:
                self._settle(Settlement(request.delivery, Verdict.REQUEUE))
        self._unpark_all()
        self._turn_end()


_ENDS = {
    OutcomeKind.LOST: "lost its executor",
    OutcomeKind.TIMEOUT: "timed out",
    OutcomeKind.CANCELLED: "was stopped and goes back to its queue",
}

_EVENTS = {
    OutcomeKind.SUCCESS: Kind.SUCCEEDED,
    OutcomeKind.FAILURE: Kind.FAILED,
    OutcomeKind.RETRY: Kind.RETRIED,
    OutcomeKind.REJECT: Kind.REJECTED,
    OutcomeKind.EXPIRED: Kind.EXPIRED,
    OutcomeKind.REVOKED: Kind.REVOKED,
    OutcomeKind.LOST: Kind.FAILED,
    OutcomeKind.TIMEOUT: Kind.FAILED,
    OutcomeKind.INVALID: Kind.DEAD,
    OutcomeKind.UNKNOWN: Kind.DEAD,
}


def _is_name(value: object) -> TypeGuard[str]:
    """Whether a header may serve as name or id: short text without halves of surrogate pairs, which JSON can
    smuggle in and which nothing can send or store."""
    if type(value) is not str or not 0 < len(value) <= NAME_LIMIT:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _depth(handle: Handle) -> int:
    """Requests that still want its slots."""
    return len(handle.outstanding) - handle.unstored


def unix_time(value: Any, header: str) -> float:
    """An ISO 8601 header as unix time; naive values are UTC (wire-protocol, reading rules).

    :raises InvalidMessage: it is not a time.
    """
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (TypeError, ValueError, OverflowError):
        raise InvalidMessage(f"header {header!r} is not an ISO 8601 time: {value!r:.80}") from None


def printable(text: str) -> str:
    """Untrusted text, cut and escaped for logs and terminals."""
    return ascii(text[:120])[1:-1] if not text.isascii() or not text.isprintable() else text[:120]
