"""What this worker does not run, and how fast it runs the rest: the admission filter and what commands do to it.

Loop thread. `admit` runs once per message: with nothing revoked and no limit for the task it is two look-ups.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kernel_worker.control import Pending
from kernel_worker.drivers import Permission
from kernel_worker.types import OutcomeKind, Settlement, Verdict

from .keeper import Found, Keeper
from .rates import RateLimit, parse_rate
from .revokes import Revokes

if TYPE_CHECKING:
    from kernel_worker.drivers import RevokeStore
    from kernel_worker.request import Request
    from kernel_worker.supervisor import Handle
    from kernel_worker.worker import Worker

    from .options import LimitsOptions
    from .statedb import Record, StateFile

log = logging.getLogger(__name__)

WAIT_S = 0.1
"""For so long a message waits at a time while it is not known yet what the broker has of revokes."""
LOOK_EVERY_S = 0.05
"""How often it is looked whether a request has begun that is to be ended then."""
SHOWN_IDS = 50


class Limits:
    """Revokes and rate limits of one worker."""

    def __init__(self, worker: Worker, options: LimitsOptions, stores: Sequence[RevokeStore]) -> None:
        self._worker = worker
        self._options = options
        self.revokes = Revokes(options.revokes_max, options.revoke_expires)
        self._ids, self._stamps = self.revokes.ids, self.revokes.stamps
        self._rates: dict[str, RateLimit] = {}
        self._shown_rates: dict[str, str] = {}
        self._to_end: dict[int, int] = {}
        """Tags of requests that are ended when they begin, and the signal that was given with them."""
        self._is_looking = False
        self._is_known = not stores
        """Whether the revokes the broker has were read: until then nothing may run."""
        file = _state_file(options.statedb)
        self.keeper = Keeper(file, stores, self._records, lambda found: worker.loop.post(self._read, found))
        if file is not None:
            self._take_in(file.load(time.time()))

    # -- the filter

    def admit(self, request: Request) -> Settlement | None:
        """See `kw_admission`."""
        if request.conclude is not None:
            return None
        if not self._is_known:
            return Settlement(request.delivery, Verdict.DELAY, until=time.time() + WAIT_S)
        ids = self._ids
        if ((ids and (request.id in ids or not request.id)) or self._stamps) and self._revoke(request):
            return None
        if self._rates and (rate := self._rates.get(request.task)) is not None:
            until = rate.admit(request.id, time.time())
            return Settlement(request.delivery, Verdict.DELAY, until=until) if until else None
        return None

    def has_ended(self, request: Request) -> bool:
        """Whether a request that is not due, or came back before it began, is revoked; then it is concluded."""
        try:
            return request.conclude is None and bool(self._ids or self._stamps) and self._revoke(request)
        except Exception:  # the dispatcher asks in the midst of its accounts: a bug here must not spoil them
            log.exception("revokes of %s were not looked at", ascii(request.id), extra={"action": "filter_failed"})
            return False

    def _revoke(self, request: Request) -> bool:
        """Conclude a request that is revoked. Whether it is."""
        headers = request.delivery.headers
        if not self.revokes.is_revoked(_id_of(request), headers, time.time(), request.eta):
            return False
        request.conclude, request.text = OutcomeKind.REVOKED, "revoked"
        log.info(
            "Discarding revoked task: %s[%s]",
            ascii(request.task)[1:-1],
            ascii(request.id)[1:-1],
            extra={"action": "task_revoked", "task_id": request.id},
        )
        return True

    # -- revokes

    def revoke(self, ids: Sequence[str]) -> None:
        """Do not start these, here or, where the broker keeps it, in any worker that starts later."""
        now = time.time()
        self.revokes.add(ids, now)
        until = now + self.revokes.expires_s
        self.keeper.keep([(task_id, until) for task_id in ids])
        self._sweep()

    def revoke_stamps(self, headers: Mapping[str, Sequence[Any]]) -> None:
        """Do not start tasks stamped so."""
        now = time.time()
        self.revokes.add_stamps(headers, now)
        until = now + self.revokes.expires_s
        self.keeper.keep([((header, str(value)), until) for header, values in headers.items() for value in values])
        self._sweep()

    def end(self, ids: Sequence[str], signal: str | int | None) -> list[str]:
        """End those that run; and, when they begin, those that lie at an executor, which may begin them any moment.

        :param ids: they are revoked already.
        :return: those of them that this worker holds and has not ended.
        :raises ValueError: there is no such signal.
        """
        number = self._worker.operations.signal_number(signal)
        wanted = set(ids)
        found = [request for request in self.held() if request.id in wanted]
        self._to_end.update({each.tag: number for each in found if each.executor is not None and each.conclude is None})
        self._end_what_began()
        if self._to_end and not self._is_looking:
            self._look_later()
        known = {request.id for request in found}
        return [task_id for task_id in ids if task_id in known]

    def _look_later(self) -> None:
        self._is_looking = True
        self._worker.loop.call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._is_looking = False
        self._end_what_began()
        if self._to_end:
            self._look_later()

    def _end_what_began(self) -> None:
        """What has begun is ended, what has ended or come back is forgotten."""
        dispatcher = self._worker.dispatcher
        begun: dict[Handle, set[int]] = {}
        for tag, number in list(self._to_end.items()):
            request = dispatcher.in_flight.get(tag)
            executor = request.executor if request is not None else None
            if executor is None or tag in executor.unstored:
                del self._to_end[tag]
                continue
            if executor not in begun:
                begun[executor] = {executor.board.read(slot)[0] for slot in range(executor.slots)}
            if tag in begun[executor]:
                del self._to_end[tag]
                dispatcher.terminate(request, number)

    def held(self) -> list[Request]:
        """All requests that this worker has and that have not ended."""
        requests = self._worker.dispatcher.requests()
        return [each for each in requests if each.executor is None or each.tag not in each.executor.unstored]

    def when_kept(self, reply: dict[str, str]) -> dict[str, str] | Pending:
        """The reply to a revoke: with `--statedb` it comes when the file has it, so that whoever reads it can rely on it."""
        if not self.keeper.has_file:
            return reply
        pending = Pending()
        self.keeper.when_written(lambda: self._worker.loop.post(pending.done, reply))
        return pending

    def merge(self, ids: Iterable[str]) -> None:
        """Take over what a peer has revoked: no more of it than there is room for, and nothing that is no id."""
        wanted = [task_id for task_id in ids if isinstance(task_id, str) and 0 < len(task_id) <= 255]
        new = [task_id for task_id in wanted[-self.revokes.most :] if task_id not in self.revokes.ids]
        if new and self._worker.control.permission not in (None, Permission.READ):
            now = time.time()
            self.revokes.add(new, now)
            self.keeper.keep([(task_id, now + self.revokes.expires_s) for task_id in new])
            self._sweep()

    def mingle(self) -> None:
        """Ask the other workers what they have revoked, in the background."""
        if self._options.without_mingle:
            return
        from .mingle import mingle

        loop, clock = self._worker.loop, self._worker.clock

        def heard(ids: list[str], peer_clock: Any) -> None:
            clock.adjust(peer_clock)
            loop.post(self.merge, ids)

        mingle(self._worker, self.revoked_ids(), heard)

    def revoked_ids(self) -> list[str]:
        """The ids that are revoked now, oldest first."""
        return self.revokes.current(time.time())

    def _sweep(self) -> None:
        """End what was received and waits for a slot. What an executor holds is given back within moments if it cannot
        start there, and `has_ended` asked then."""
        dispatcher = self._worker.dispatcher
        if dispatcher is None:
            return
        for request in [*dispatcher.ready, *dispatcher.suspects]:
            if request.conclude is None:
                self._revoke(request)

    def _read(self, found: Found | None) -> None:
        """What the broker has, posted by the keeper; None: it cannot be read."""
        self._is_known = True
        if found:
            known = self.revokes.ids
            self._take_in([record for record in found if record[0] not in known])
            self._sweep()

    def _take_in(self, records: Iterable[Record]) -> None:
        now = time.time()
        latest = now + self.revokes.expires_s
        for key, until in sorted(records, key=lambda record: record[1]):
            if isinstance(key, str):
                self.revokes.ids[key] = min(until, latest)
            else:
                self.revokes.stamps[key] = min(until, latest)
        self.revokes.purge(now)

    def _records(self) -> list[Record]:
        return [*list(self.revokes.ids.items()), *list(self.revokes.stamps.items())]

    # -- rates

    def adopt_rates(self) -> None:
        """Take the limits of the application's tasks; one that makes no sense is told and not kept."""
        if self._options.disable_rate_limits:
            return
        for name, info in list(self._worker.app.tasks.items()):
            text = info.rate_limit or self._options.default_rate_limit
            try:
                self.set_rate(name, text)
            except ValueError as error:
                log.error("task %s has no rate limit: %s", name, error, extra={"action": "rate_limit_invalid"})

    def set_rate(self, task: str, limit: object) -> None:
        """Limit the runs of a task from now on; "" or 0: not any more.

        :raises ValueError: `limit` is no rate.
        """
        rate = parse_rate(limit)
        tasks, info = self._worker.app.tasks, self._worker.app.tasks.get(task)
        if info is not None and isinstance(tasks, dict):  # what is shown of the task
            tasks[task] = replace(info, rate_limit=str(limit) if rate else None)
        self._rates.pop(task, None)
        self._shown_rates.pop(task, None)
        if rate and not self._options.disable_rate_limits:
            self._rates[task] = RateLimit(rate)
            self._shown_rates[task] = str(limit)

    @property
    def rates(self) -> Mapping[str, str]:
        """The limits in force, as they were written."""
        return self._shown_rates


def _state_file(path: str | None) -> StateFile | None:
    if not path:
        return None
    from .statedb import StateFile  # late: few workers have one

    return StateFile(path)


def _id_of(request: Request) -> str:
    """The id of a request. Messages of protocol 1 have it in their body, and as correlation id."""
    if request.id:
        return request.id
    found = request.delivery.properties.get("correlation_id")
    return found if isinstance(found, str) else ""
