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
from dataclasses import replace

from . import memory
from .bus import Bus, Kind
from .hard_limits import CANCEL_GRACE_S, HardLimits
from .loop import Loop
from .prefetch import Prefetch
from .request import HORIZON_S, UNKNOWN_S, InvalidMessage, Request, printable, read_request
from .settle import decide
from .supervisor import Handle, Supervisor
from .suspects import Suspects, Suspicion
from .types import Delivery, Outcome, OutcomeKind, Settlement, TaskInfo, Verdict
from .unknown import Unknown
from .wire import CONCLUDE_HEAD, DONE_RECORD, FLAG_PAYLOAD, FLAG_REDELIVERED, HEAD, MAX_UNSTORED, RUN_HEAD, Frame

log = logging.getLogger("kernel_worker.dispatcher")

MAX_DEPTH = 64
"""Requests one slot holds at most."""
TICK_S = 0.1
STALL_S = 0.1
"""How long an executor with several slots that gave work back gets none, unless one of its tasks ends before."""
RECOUNT_S = 0.5
"""How long a message that went back to be counted is waited for, before the next one goes."""
RECOUNT_ALONE_S = 3.0
"""The same for one that runs alone among its like: were the next one counted meanwhile, it could die with this one."""
MAX_CUT_OFF = 10_000
"""Ids remembered at most of messages that were lost with the lease or the connection."""
TERMINATED = "terminated"
"""The reason stored for a task that remote control ended."""


class Dispatcher:
    """Requests of one worker, from delivery to settlement."""

    def __init__(
        self,
        loop: Loop,
        supervisor: Supervisor,
        bus: Bus,
        *,
        max_deliveries: int = 3,
        unknown_max_returns: int = 5,
        multiplier: int | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        can_delay: bool = True,
        can_mark: bool = False,
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
        self.suspects = Suspects(can_mark)
        self._marking: dict[int, Request] = {}
        """Requests that wait for their delivery to be counted, by its `id()`."""
        self._recounting: list[Request] = []
        """Those that went back to be counted, until they come again or somebody else has them."""
        self._awaited = 0
        """How many deliveries there will have been when the last of them that is in its queue has come again; 0 = none is."""
        self._cut_off: dict[str, None] = {}
        """Ids of requests that were fenced, and have not come again: this worker lives, so nothing is held against them."""
        self._unknown = Unknown(unknown_max_returns)
        self.parked: set[Request] = set()
        """Requests that are not due, where the broker cannot park them."""
        self.totals: dict[str, int] = {}
        """Runs that have ended, by task."""
        self.closing = False
        self.completed = 0
        self._delayed = 0
        """Requests a filter put off. They go through as fast as tasks that take no time, and count for the prefetch."""
        self.settle_batch: Callable[[list[Settlement]], None] = lambda batch: None
        """Where a turn's settlements go; set by the broker host."""
        self.mark: Callable[[list[Settlement]], None] = lambda batch: None
        """Where marks go; `on_marked` is called when they are done. Set by the broker host."""
        self.allow: Callable[[int, int], None] = lambda total, batch: None
        """Told how many deliveries may be fetched in total since the start, and how many are worth a
        round trip; set by the broker host. A running total needs no lock: only the fetch thread counts up."""
        self.has_ended: Callable[[Request], bool] = lambda request: False
        """Concludes a request that has not begun and never shall; whether it did. Set by the plugin that keeps revokes."""
        self.on_answer: Callable[..., object] = lambda number, reply: None
        """Told the replies of the application's remote-control commands."""
        self._received = 0
        self._released = 0
        self._batch: list[Settlement] = []
        self._marks: list[Settlement] = []
        self._tags = itertools.count(1)
        self._terminated: set[int] = set()
        """Tags of requests that remote control ended while they ran."""
        self._tasks: Mapping[str, TaskInfo] = {}
        self._costs: dict[str, float] = {}
        self._prefetch = Prefetch(multiplier)
        self._limits = (time_limit or 0.0, soft_time_limit or 0.0)
        self._can_delay = can_delay
        self._can_kill = can_kill
        self._hard_limits = HardLimits(loop, supervisor, can_kill)
        self._filters = tuple(filters)
        self._on_up = on_up
        self._on_down = on_down
        self._max_deliveries = max_deliveries
        self._plugins_policy = policy
        self._begun = False
        self._ticking = False
        self._allowed = 0
        supervisor.events = self
        for executor in supervisor.executors.values():
            if executor.up:  # it was faster than we
                self.on_up(executor)
        loop.at_turn_end(self._turn_end)

    def begin(self, tasks: Mapping[str, TaskInfo]) -> None:
        """The application is known: requests for these tasks may come."""
        self._tasks = tasks
        self._begun = True

    @property
    def held(self) -> int:
        """Deliveries that are neither settled nor given up."""
        return self._received - self._released

    @property
    def prefetch_count(self) -> int:
        """Deliveries it may hold now."""
        return max(0, self._allowed - self._released)

    def requests(self) -> list[Request]:
        """All requests in hand. Any thread: copies in one step."""
        waiting = [*list(self.ready), *self.suspects, *list(self._marking.values())]
        return [*waiting, *list(self.parked), *list(self.in_flight.values())]

    def held_deliveries(self) -> list[Delivery]:
        """All deliveries in hand, for the renewal of leases. Any thread."""
        return [request.delivery for request in self.requests() if not request.acked]

    # -- in: deliveries

    def on_deliveries(self, deliveries: Sequence[Delivery], more: bool = False) -> None:
        """Take a batch from the fetch thread (posted to the loop); `more`: there are as many as were asked for."""
        self._received += len(deliveries)
        self._prefetch.more = more
        if self.closing:
            for delivery in deliveries:
                self._settle(Settlement(delivery, Verdict.REQUEUE))
            return
        if not self._ticking:
            self._ticking = True
            self._prefetch.begin(self.completed + self._delayed)
            self.loop.call_later(TICK_S, self._tick)
        now = time.time()
        received = self.bus.subscribers[Kind.RECEIVED]
        for delivery in deliveries:
            try:
                request = self._request(delivery)
            except InvalidMessage as error:
                self._dead(delivery, str(error))
                continue
            if request.conclude is OutcomeKind.UNKNOWN and self._return_unknown(request):
                continue
            if request.eta > now and not self.has_ended(request):
                self._release(request, Settlement(delivery, Verdict.DELAY, until=request.eta))
            elif self._filters or delivery.recovered or delivery.attempts:
                self._admit(request)
            else:
                self.ready.append(request)
            for callback in received:  # now it is known whether it was ended before it was begun (`conclude`)
                callback(request, None)

    def _park(self, request: Request, until: float) -> None:
        """Hold a request until that unix time. It takes no room of the prefetch: else a few stop consumption."""
        self.parked.add(request)
        self.loop.call_later(until - time.time(), self._unpark, request)

    def _unpark(self, request: Request) -> None:
        if request in self.parked:  # not given back meanwhile
            self.parked.discard(request)
            self._admit(request)

    def _admit(self, request: Request) -> None:
        for admission in self._filters:
            try:
                settlement = admission(request)
            except Exception:  # a filter's bug must neither lose the batch nor stop consumption: it admits
                log.exception("admission filter %r failed", admission, extra={"action": "filter_failed"})
                continue
            if settlement is not None:
                self._delayed += settlement.verdict is Verdict.DELAY
                self._release(request, settlement)
                return
        if request.delivery.recovered or request.delivery.attempts:
            self._admit_again(request)
        else:
            self.ready.append(request)

    def _admit_again(self, request: Request) -> None:
        """A message that was lost before, or may have been."""
        delivery = request.delivery
        recounted = next((each for each in self._recounting if each.id == request.id), None)
        self._end_recount(recounted)
        if delivery.recovered and self._was_cut_off(request):
            delivery.recovered = False
        # What cannot be marked goes back first, and comes again with its last loss counted.
        lost = delivery.attempts + (delivery.recovered and self.suspects.can_mark)
        if lost >= self._max_deliveries and self._lost_for_good(request):
            return
        request.suspicion = self.suspects.suspicion(delivery, self.supervisor.layout.slots > 1)
        if request.suspicion is not None:
            self.suspects.add(request, first=recounted is not None)
        else:
            self.ready.append(request)

    def _was_cut_off(self, request: Request) -> bool:
        """Whether its last holder is this worker, which lost its connection and not its life. It may come before it is
        told what was lost: then it is still held."""
        if request.id in self._cut_off:
            del self._cut_off[request.id]
            return True
        return any(held.id == request.id for held in self.in_flight.values())

    def _lost_for_good(self, request: Request) -> bool:
        """Its last holder is gone, and it has no delivery left: it is not run, unless the policy says so."""
        outcome = Outcome(OutcomeKind.LOST, error="Worker exited prematurely: the worker that held it is gone")
        delivery = request.delivery
        is_counted = not delivery.recovered  # by going back: the policy is asked about the delivery before that
        delivery.attempts -= is_counted
        settlement = self._policy(request, outcome)
        delivery.attempts += is_counted
        if settlement.verdict is Verdict.REQUEUE:
            return False
        _log_end(request, outcome, "its worker is gone")
        self.bus.emit(Kind.LOST, request, outcome)
        if delivery.recovered and delivery.attempts >= self._max_deliveries:
            self._settle(settlement)  # what stores its result has ended a worker, too
            return True
        settlement.count = settlement.count and not is_counted
        request.conclude, request.text, request.final = outcome.kind, outcome.error, settlement
        return False

    def _return_unknown(self, request: Request) -> bool:
        """Nobody here knows its task: a newer worker may, so it waits in the queue for a while, a few times."""
        wait_s = self._unknown.wait_s(request.id, request.delivery.returns)
        if wait_s is None:
            return False
        log.warning(
            "task %s[%s] is not known here: back in queue %s for %g s",
            printable(request.task),
            printable(request.id),
            request.delivery.queue,
            wait_s,
            extra={"action": "task_unknown", "task": printable(request.task), "task_id": request.id},
        )
        self._release(request, Settlement(request.delivery, Verdict.DELAY, until=time.time() + wait_s, count=True))
        return True

    def _request(self, delivery: Delivery) -> Request:
        request = read_request(delivery, self._tasks, *self._limits)
        request.cost = self._costs.get(request.task, UNKNOWN_S)
        return request

    # -- through: assignment

    def _assign(self) -> None:
        ready = self.ready
        executors = [h for h in self.supervisor.executors.values() if _is_serving(h) and not h.stalled]
        if self.suspects.waiting:
            self._assign_suspects(executors)
        for handle in executors:
            while ready and _depth(handle) < handle.limit:
                self._give(handle, ready.popleft())
        if not ready:
            return
        # Everyone is busy. Short tasks may wait at a slot, so that one send and one wake-up serve many.
        fair_share = -(-len(ready) // max(1, len(executors)))
        # Where the next free slot is not another one's, which is being counted or waits to be.
        for handle in sorted((h for h in executors if not h.marking and not self.suspects.want(h)), key=_depth):
            share = fair_share
            # Whoever may not use all its slots gets nothing to wait at them: its runtime would begin it at once.
            while ready and share and handle.limit == handle.slots and _depth(handle) < MAX_DEPTH * handle.slots:
                request = ready[0]
                if _waits_s(handle, request) > HORIZON_S or not request.info.acks_late:
                    break
                self._give(handle, ready.popleft())
                share -= 1

    def _assign_suspects(self, executors: Sequence[Handle]) -> None:
        """Each gets a slot of its own; what has to be counted first keeps it until that is done."""
        for handle in executors:
            # Were all sent to be counted at once, those that only wait would be counted.
            while _depth(handle) < handle.limit and len(self._recounting) < self._slots():
                request = self.suspects.take(handle)
                if request is None:
                    break
                if not request.delivery.recovered:
                    self._give(handle, request)
                    continue
                request.executor, request.is_marking = handle, True
                if self.suspects.can_mark:
                    handle.marking += 1
                    self._marking[id(request.delivery)] = request
                    self._marks.append(Settlement(request.delivery, Verdict.MARK))
                else:
                    self._recounting.append(request)
                    self._marks.append(Settlement(request.delivery, Verdict.REQUEUE, count=True))

    def _recounted(self, delivery: Delivery) -> None:
        """It is in its queue again, and counted. Only now its room is free, and there is room for one more until it has
        come: else another one would take it, and those beside it would be counted before it starts."""
        self._released += 1
        # Beyond what may have been asked for already: a fetch that is under way brings others.
        self._awaited = max(self._awaited, self._received, self._allowed) + 1
        for request in [each for each in self._recounting if each.delivery is delivery]:
            wait_s = RECOUNT_ALONE_S if request.suspicion is Suspicion.IN_WORKER else RECOUNT_S
            self.loop.call_later(wait_s, self._end_recount, request)

    def _end_recount(self, request: Request | None) -> None:
        """It has come again, or is not waited for any more."""
        if request in self._recounting:
            self._recounting.remove(request)
            request.is_marking = False

    def on_marked(self, marks: Sequence[Settlement]) -> None:
        """Their deliveries are counted, so they may start, or come again (posted to the loop)."""
        for mark in marks:
            request = self._marking.pop(id(mark.delivery), None)
            if mark.verdict is Verdict.REQUEUE:
                self._recounted(mark.delivery)
            if request is None:
                continue
            handle, request.executor, request.is_marking = request.executor, None, False
            assert handle is not None
            handle.marking -= 1
            mark.delivery.recovered = False
            mark.delivery.attempts += 1
            if request.final is not None:
                request.final.count = False  # the same loss
            if request.is_fenced:
                continue
            if not self.has_ended(request) and self.closing and request.conclude is None:
                self._settle(Settlement(mark.delivery, Verdict.REQUEUE))
            elif handle.up and not handle.retiring and not handle.stalled and handle.key in self.supervisor.executors:
                self._give(handle, request)
            else:
                self.suspects.add(request, first=True)

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
            self._hard_limits.given(handle, request.hard)
        handle.given += 1
        if self.supervisor.succession.max_tasks:
            self.supervisor.succession.given(handle)
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
                shown=str(value.get("shown", "")),
                traceback=str(value.get("traceback", "")),
            )
            request = self._finish(executor, value["tag"], outcome.runtime)
            if request is not None:
                self._conclude(request, outcome)
        elif kind == Frame.RETURNED:
            self._take_back(executor, json.loads(payload))
        elif kind == Frame.ANSWER:
            self.on_answer(**json.loads(payload))
        elif kind == Frame.FENCED:
            self.supervisor.fenced(executor)
        elif kind == Frame.UNSTORED:
            executor.unstored = executor.outstanding.keys() & json.loads(payload)
            executor.stalled = executor.stalled and _depth(executor) >= executor.limit

    def _finish(self, executor: Handle, tag: int, runtime: float) -> Request | None:
        request = executor.outstanding.pop(tag, None)
        if request is None:
            return None  # a damaged executor reports what it does not have
        self.in_flight.pop(tag, None)
        executor.stalled = False
        executor.backlog_s = max(0.0, executor.backlog_s - request.cost) if executor.outstanding else 0.0
        if executor.heir is not None:
            self.supervisor.succession.emptied(executor)
        self.completed += 1
        if request.conclude is None and runtime:  # conclusions ran nothing, and their names are anybody's
            known = self._costs.get(request.task)
            self._costs[request.task] = runtime if known is None else known + 0.2 * (runtime - known)
            self.totals[request.task] = self.totals.get(request.task, 0) + 1
        return None if request.is_fenced else request

    def _policy(self, request: Request, outcome: Outcome) -> Settlement:
        if self._plugins_policy is not None:
            try:
                return self._plugins_policy(request, outcome)
            except Exception:  # a plugin's bug must not leave the delivery unsettled: the kernel's policy decides
                log.exception("settle policy %r failed", self._plugins_policy, extra={"action": "policy_failed"})
        return decide(request.delivery, request.info, outcome, self._max_deliveries)

    def _conclude(self, request: Request, outcome: Outcome) -> None:
        if request.tag in self._terminated:
            self._terminated.discard(request.tag)
            if outcome.kind not in (OutcomeKind.SUCCESS, OutcomeKind.REVOKED):  # whatever it made of being cancelled
                request.conclude, request.text = OutcomeKind.REVOKED, TERMINATED
                request.final = Settlement(request.delivery, Verdict.ACK)
                self.ready.appendleft(request)
                return
        if outcome.kind is OutcomeKind.LOST and request.conclude is None:  # it says so itself: no memory was left
            self._end_lost(request, outcome, outcome.error)
            return
        settlement = request.final or self._policy(request, outcome)
        if outcome.kind is OutcomeKind.INVALID:
            _log_dead(request.delivery, outcome.error, request.id)
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
            executor.given -= request.conclude is None
            request.executor = None
            self._line_up_again(request)
        if executor.heir is not None:
            self.supervisor.succession.emptied(executor)
        executor.stalled = len(executor.outstanding) > len(executor.unstored)  # its long task may have ended in between
        if executor.stalled and executor.slots > 1:
            self.loop.call_later(STALL_S, self._try_again, executor)

    def _try_again(self, executor: Handle) -> None:
        """Several slots: a task held them all, perhaps for a moment, though some may be free."""
        executor.stalled = False

    def _line_up_again(self, request: Request) -> None:
        """First in line again. While closing it goes back to the broker, unless nobody but us has it (it was acked when
        it was handed out) or its end is decided and only to be stored."""
        if request.is_fenced:
            return
        if not self.has_ended(request) and self.closing and not request.acked and request.conclude is None:
            self._settle(Settlement(request.delivery, Verdict.REQUEUE))
        elif request.suspicion is not None:
            self.suspects.add(request, first=True)
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
        else:
            started |= self._ended_unreported(executor)
        held = list(executor.outstanding.values())
        executor.outstanding.clear()
        for request in reversed(held):
            self.in_flight.pop(request.tag, None)
            request.executor = None
            if request.tag not in started or request.is_fenced:
                self._line_up_again(request)
            elif request.conclude is None:
                self._lost(request, executor, reason)
            else:
                self._conclude_again(request, executor, reason)
        self.suspects.gone(executor)
        self._on_down(executor, reason)

    def _conclude_again(self, request: Request, executor: Handle, reason: str) -> None:
        """Its end could not be stored, as its executor died of that or beside it: another one tries, a few times."""
        request.tries += (not executor.doom or executor.at_fault) and request.tag not in executor.unstored
        if request.tries < self._max_deliveries:
            self._line_up_again(request)
            return
        assert request.conclude is not None
        outcome = Outcome(request.conclude, error=request.text)
        log.error(
            "the end of task %s[%s] is not stored: %d executors have died of storing it, the last: %s",
            printable(request.task),
            printable(request.id),
            request.tries,
            reason,
            extra={"action": "conclusion_dropped", "task_id": request.id},
        )
        self._conclude(request, outcome)

    def _ended_unreported(self, executor: Handle) -> set[int]:
        """Several slots: the last job of each slot that runs nothing. Those marked as done are released."""
        ended = set()
        for slot in range(executor.slots):
            running, _, done = executor.board.read(slot)
            last = executor.board.last_started(slot)
            if running or last not in executor.outstanding:
                continue
            if done == last and (request := self._finish(executor, last, 0.0)) is not None:
                self._release(request, Settlement(request.delivery, Verdict.ACK))
            else:
                ended.add(last)
        return ended

    def _lost(self, request: Request, executor: Handle, reason: str) -> None:
        if request.tag in self._terminated:
            self._terminated.discard(request.tag)
            outcome = Outcome(OutcomeKind.REVOKED, error=TERMINATED)
        elif executor.doomed_tag == request.tag:
            outcome = Outcome(OutcomeKind.TIMEOUT, error=f"{request.hard:g}")
        elif (executor.doom and not executor.at_fault) or reason == "retired" or request.tag in executor.unstored:
            # The kernel ended it, or it left in order, or this had ended and no result store took it: not its doing.
            outcome = Outcome(OutcomeKind.CANCELLED, error=reason)
        else:
            outcome = Outcome(OutcomeKind.LOST, error=f"Worker exited prematurely: {reason}")
        self._end_lost(request, outcome, reason)

    def _end_lost(self, request: Request, outcome: Outcome, reason: str) -> None:
        """A run that its executor did not bring to an end: again, or never more."""
        settlement = self._policy(request, outcome)
        _log_end(request, outcome, reason)
        if outcome.kind is not OutcomeKind.REVOKED:  # that is told when it is stored
            self.bus.emit(Kind.LOST, request, outcome)
        if settlement.verdict is Verdict.REQUEUE and not request.acked:
            self._settle(settlement)
            return
        # It will not run again, so somebody may wait for its result: another executor stores it, and
        # only then is the delivery settled.
        request.conclude, request.text, request.final = outcome.kind, outcome.error, settlement
        self.ready.appendleft(request)

    # -- fencing

    def fence(self, deliveries: Sequence[Delivery]) -> None:
        """These became another worker's while our lease was over (posted to the loop): what waits of them is forgotten,
        what runs is ended, and no end of them is stored or settled."""
        lost = {id(delivery) for delivery in deliveries}
        requests = [request for request in self.requests() if id(request.delivery) in lost and not request.acked]
        if not requests:
            return
        running: dict[Handle, list[int]] = {}
        for request in requests:
            request.is_fenced = True
            self._cut_off[request.id] = None
            # For a broker that cannot tell, and still has it here. Settling what is not ours changes nothing.
            self._settle(Settlement(request.delivery, Verdict.REQUEUE))
            if request.tag in self.in_flight and request.executor is not None:
                running.setdefault(request.executor, []).append(request.tag)
        while len(self._cut_off) > MAX_CUT_OFF:
            del self._cut_off[next(iter(self._cut_off))]
        self.ready = deque(request for request in self.ready if not request.is_fenced)
        self.parked = {request for request in self.parked if not request.is_fenced}
        self.suspects.forget_fenced()
        log.warning(
            "the lease was over, and %d messages went to other workers: what runs of them here is ended",
            len(requests),
            extra={"action": "fenced", "executors": [handle.pid for handle in running]},
        )
        for executor, tags in running.items():
            if self._can_kill and executor.slots == 1 and executor.board.read(0)[0] in tags:
                executor.fencing += 1
                self.supervisor.kill(executor, "another worker has taken over what it ran")
            else:
                self.supervisor.fence(executor, tags)

    # -- remote control

    def terminate(self, request: Request, signum: int) -> None:
        """End a running request for good: it becomes REVOKED, whatever it makes of it."""
        executor, request.signum = request.executor, signum
        assert executor is not None
        self._terminated.add(request.tag)
        if self._can_kill and executor.slots == 1:
            self.supervisor.kill(executor, f"task {printable(request.id)} was terminated by remote control")
        else:
            self.supervisor.cancel(executor, request.tag, TERMINATED, 0.0)
            if self._can_kill:
                self.loop.call_later(CANCEL_GRACE_S, self._end_what_goes_on, executor, request)

    def _end_what_goes_on(self, executor: Handle, request: Request) -> None:
        """It was cancelled and still runs: it computes without a pause, or catches everything. Its process is replaced;
        what else ran there is put back without an attempt counted, as at a hard time limit."""
        if executor.outstanding.get(request.tag) is request and not executor.doom:
            self.supervisor.kill(executor, f"task {printable(request.id)} went on after it was terminated")

    def set_time_limits(self, task: str, soft: float | None, hard: float | None) -> bool:
        """Other limits for what is received from now on; whether there is such a task."""
        info = self._tasks.get(task)
        if info is not None:
            self._tasks = {**self._tasks, task: replace(info, soft_time_limit=soft, time_limit=hard)}
        return info is not None

    # -- out: settlements

    def _dead(self, delivery: Delivery, reason: str) -> None:
        _log_dead(delivery, printable(reason))
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
        if self.ready or self.suspects.waiting:
            self._assign()
            self.supervisor.flush_all()
        if self._marks:
            marks, self._marks = self._marks, []
            self.mark(marks)
        if self._batch:
            batch, self._batch = self._batch, []
            self.settle_batch(batch)
        self._update_limit()

    # -- prefetch

    def _update_limit(self) -> None:
        slots = self._slots()
        limit = 0 if self.closing or not self._begun else self._prefetch.limit(slots, self.completed + self._delayed)
        # What only waits for the result store takes no room: else tasks would wait for it, too.
        unstored = sum(len(handle.unstored) for handle in self.supervisor.executors.values()) if limit else 0
        allowed = self._released + limit + len(self.parked) + unstored
        if self.suspects.waiting:
            allowed += self.suspects.blocked
        self._awaited = self._awaited if self._recounting else 0  # what was asked for then is over
        awaited = self._awaited if limit else 0
        if awaited > self._received or allowed != self._allowed:
            self._allowed = max(allowed, awaited)
            # Worth a round trip: a quarter of what may be held, but never so much that a free slot waits for it.
            self.allow(self._allowed, 1 if awaited > self._received else max(1, min(limit // 4, limit - slots + 1)))

    def _slots(self) -> int:
        return sum(h.limit for h in self.supervisor.executors.values() if h.up and not h.retiring)

    def _tick(self) -> None:
        """While there is work: measure the rate, and give back what became too much."""
        handles = [h for h in self.supervisor.executors.values() if _is_serving(h)]
        is_idle = any(_depth(handle) < handle.limit for handle in handles)
        keep = self._prefetch.tick(self._slots(), self.completed + self._delayed, is_idle)
        if len(self.ready) + self.suspects.waiting > keep and not self._recounting:  # it would come behind these
            self._give_up(len(self.ready) + self.suspects.waiting - self.suspects.blocked - keep)
        self._ticking = not self.closing and (self.held > 0 or self._prefetch.rate > 1.0)
        if self._ticking:
            self.loop.call_later(TICK_S, self._tick)
        elif not self.closing:
            memory.give_back()

    def _give_up(self, count: int) -> None:
        """Tasks became longer: what we hold too much belongs to other workers."""
        for _ in range(count):
            if not self.ready:
                request = self.suspects.surplus()
                if request is None:
                    return
            else:
                request = self.ready.pop()
            if request.conclude is not None or request.acked:
                (self.ready.append if request.suspicion is None else self.suspects.add)(request)
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
        for request in reversed(self.suspects.drain()):
            if request.conclude is None:
                self._settle(Settlement(request.delivery, Verdict.REQUEUE))
            else:
                self.suspects.add(request, first=True)
        self._unpark_all()
        self.supervisor.recall()

    def _unpark_all(self) -> None:
        for request in self.parked:
            self._settle(Settlement(request.delivery, Verdict.REQUEUE))
        self.parked.clear()

    def abandon(self) -> None:
        """Nobody is left to run anything: settle what still waits to be concluded, without its result."""
        for request in [*self.ready, *self.suspects.drain(), *self._marking.values()]:
            if request.final is not None:
                self._release(request, request.final)
            else:
                self._settle(Settlement(request.delivery, Verdict.REQUEUE))
        self.ready.clear()
        self._marking.clear()
        self._unpark_all()
        self._turn_end()


_ENDS = {
    OutcomeKind.LOST: "lost its executor",
    OutcomeKind.TIMEOUT: "timed out",
    OutcomeKind.CANCELLED: "was stopped and goes back to its queue",
    OutcomeKind.REVOKED: "was ended by remote control",
}

_EVENTS = {
    OutcomeKind.SUCCESS: Kind.SUCCEEDED,
    **dict.fromkeys((OutcomeKind.FAILURE, OutcomeKind.LOST, OutcomeKind.TIMEOUT), Kind.FAILED),
    OutcomeKind.RETRY: Kind.RETRIED,
    OutcomeKind.REJECT: Kind.REJECTED,
    OutcomeKind.EXPIRED: Kind.EXPIRED,
    OutcomeKind.REVOKED: Kind.REVOKED,
    **dict.fromkeys((OutcomeKind.INVALID, OutcomeKind.UNKNOWN), Kind.DEAD),
}


def _log_end(request: Request, outcome: Outcome, reason: str) -> None:
    log.log(
        logging.INFO if outcome.kind in (OutcomeKind.CANCELLED, OutcomeKind.REVOKED) else logging.ERROR,
        "task %s[%s] %s: %s",
        printable(request.task),
        printable(request.id),
        _ENDS[outcome.kind],
        outcome.error,
        extra={"action": "request_lost", "task_id": request.id, "reason": reason},
    )


def _log_dead(delivery: Delivery, reason: str, task_id: str = "") -> None:
    extra = {"action": "message_dead", "queue": delivery.queue, "task_id": task_id}
    log.error("invalid message on queue %s is kept as dead letter: %s", delivery.queue, reason, extra=extra)


def _is_serving(handle: Handle) -> bool:
    """Whether it takes work. One that keeps as many unstored ends as it may gives back what it is given."""
    return handle.up and not handle.retiring and len(handle.unstored) < MAX_UNSTORED


def _waits_s(handle: Handle, request: Request) -> float:
    """How long a request would wait for a slot: with one, for the end of all that is there; with several, for as many
    ends as wait before it."""
    if handle.slots == 1:
        return handle.backlog_s + request.cost
    depth = _depth(handle)
    return (depth - handle.limit + 1) * max(request.cost, handle.backlog_s / max(1, depth)) / handle.slots


def _depth(handle: Handle) -> int:
    """Requests that still want its slots."""
    return len(handle.outstanding) - len(handle.unstored) + handle.marking
