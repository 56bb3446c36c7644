"""Results, seen from who waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .context import running
from .exceptions import KernelAppError, TimeoutError
from .meta import exception_from_meta
from .states import EXCEPTION_STATES, FAILURE, PENDING, PROPAGATE_STATES, READY_STATES, SUCCESS

if TYPE_CHECKING:
    from .app import App

V = TypeVar("V")

NO_BACKEND = "the application has no result backend (result_backend=None), so there is no state to read"


def _refuse_inside_task(allowed: bool) -> None:
    if not allowed and running() is not None:
        raise RuntimeError(
            "a task must not wait for the result of another one: the pool may have no slot left to run it. "
            "Use link= to go on with the result, or get(disable_sync_subtasks=False) if you know better"
        )


class AsyncResult(Generic[V]):
    """The state and result of one task. Each question asks the result backend, until the answer is final.

    Making one costs nothing and subscribes to nothing. Any thread.

    :ivar ignored: the task was sent with `ignore_result`: nothing will be stored, `get` returns None.
    """

    def __init__(self, id: str, app: App, parent: AsyncResult[Any] | None = None) -> None:
        if not isinstance(id, str) or not id:
            raise ValueError(f"a task id is a text, not {id!r}")
        self.id = id
        self.app = app
        self.parent = parent
        self.ignored = False
        self._final: dict[str, Any] | None = None

    # -- asking

    def read(self) -> dict[str, Any]:
        """The stored meta as it is; an exception stays its JSON object. PENDING when nothing is stored.

        :raises OperationalError: the result backend cannot be reached.
        """
        if self._final is not None:
            return self._final
        payload = self._call(lambda backend: backend.fetch(self.id))
        return {"status": PENDING, "result": None} if payload is None else self._keep(payload)

    def _keep(self, payload: bytes) -> dict[str, Any]:
        meta = self.app.codec.read(payload)
        if meta["status"] in READY_STATES:
            self._final = meta
        return meta

    def _call(self, call: Callable[[Any], Any]) -> Any:
        if not self.app.connections.has_results:
            raise KernelAppError(NO_BACKEND)
        return self.app.connections.call_results(call)

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, V], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> V:
        """Wait for the result and return it.

        The result backend tells when it is there, where it can.

        :param timeout: seconds; None waits for ever.
        :param propagate: raise what the task raised; else it is returned.
        :param interval: seconds between calls of `on_interval`.
        :param follow_parents: raise at once what a task raised that this one waits for.
        :param callback: called with id and result.
        :raises TimeoutError: no result in time.
        :raises RuntimeError: called inside a task (unless `disable_sync_subtasks` is False).
        :raises OperationalError: the result backend cannot be reached.
        """
        if self._final is None:
            _refuse_inside_task(not disable_sync_subtasks)
        if self.ignored:
            return cast("V", None)
        if follow_parents and propagate and self.parent is not None:
            self.parent.maybe_throw()
        if self._final is None:
            self._wait(timeout, interval, on_interval)
        value: V = self.maybe_throw() if propagate else self.result
        if callback is not None:
            callback(self.id, value)
        return value

    def _wait(self, timeout: float | None, interval: float, on_interval: Callable[[], object] | None) -> None:
        is_final = self.app.codec.is_final
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            step = left if on_interval is None else interval if left is None else min(interval, left)
            payload = self._call(partial(_wait, self.id, step, is_final))
            if payload is not None:
                self._keep(payload)
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"no result of task {self.id} within {timeout:g} s")
            if on_interval is not None:
                on_interval()

    def maybe_throw(self, propagate: bool = True) -> V:
        """The result as it is now; raises what the task raised."""
        meta = self.read()
        if propagate and meta["status"] in PROPAGATE_STATES:
            raise exception_from_meta(meta.get("result"))
        return cast("V", self._value(meta))

    def _value(self, meta: dict[str, Any]) -> Any:
        if meta["status"] in EXCEPTION_STATES and meta.get("result") is not None:
            return exception_from_meta(meta["result"])
        return meta.get("result")

    @property
    def state(self) -> str:
        """PENDING also when the id is unknown or its result has expired."""
        return str(self.read()["status"])

    status = state

    @property
    def result(self) -> Any:
        """What the task returned or raised, or the meta of another state."""
        return self._value(self.read())

    info = result

    def ready(self) -> bool:
        """Whether it has ended."""
        return self.state in READY_STATES

    def successful(self) -> bool:
        """Whether it has ended well."""
        return self.state == SUCCESS

    def failed(self) -> bool:
        """Whether it has failed."""
        return self.state == FAILURE

    @property
    def traceback(self) -> str | None:
        """The traceback of a failure, as text."""
        return cast("str | None", self.read().get("traceback"))

    @property
    def date_done(self) -> datetime | None:
        """When it ended."""
        text = self.read().get("date_done")
        return datetime.fromisoformat(text) if isinstance(text, str) else None

    @property
    def children(self) -> list[AsyncResult[Any] | GroupResult] | None:
        """Results of what it sent while it ran."""
        stored = self.read().get("children")
        return [result_from_tuple(child, self.app) for child in stored] if isinstance(stored, list) else None

    @property
    def name(self) -> str | None:
        """The task's name, if `result_extended` is on; so for args, kwargs, worker, retries and queue."""
        return cast("str | None", self.read().get("name"))

    @property
    def args(self) -> Any:
        return self.read().get("args")

    @property
    def kwargs(self) -> Any:
        return self.read().get("kwargs")

    @property
    def worker(self) -> str | None:
        return cast("str | None", self.read().get("worker"))

    @property
    def retries(self) -> int | None:
        return cast("int | None", self.read().get("retries"))

    @property
    def queue(self) -> str | None:
        return cast("str | None", self.read().get("queue"))

    def forget(self) -> None:
        """Delete the stored state."""
        self._final = None
        self._call(lambda backend: backend.forget(self.id))

    def as_tuple(self) -> Any:
        """Celery's form of a result: ((id, parent), None)."""
        return [[self.id, self.parent.as_tuple() if self.parent is not None else None], None]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"


def _wait(task_id: str, timeout: float | None, is_final: Callable[[bytes], bool], backend: Any) -> Any:
    return backend.wait(task_id, timeout, is_final)


class EagerResult(AsyncResult[V]):
    """The result of a task that ran in this process."""

    def __init__(self, id: str, app: App, state: str, value: Any, traceback: str | None = None) -> None:
        super().__init__(id, app)
        self._final = {"status": state, "result": value, "traceback": traceback, "children": []}

    def _value(self, meta: dict[str, Any]) -> Any:
        return meta["result"]

    def maybe_throw(self, propagate: bool = True) -> V:
        """The result; raises what the task raised."""
        assert self._final is not None
        value = self._final["result"]
        if propagate and self._final["status"] in EXCEPTION_STATES and isinstance(value, BaseException):
            raise value
        return cast("V", value)

    def forget(self) -> None:
        """Nothing is stored."""


class ResultSet:
    """Several results, in order."""

    def __init__(self, results: Iterable[AsyncResult[Any]]) -> None:
        self.results = list(results)

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        callback: Callable[[str, Any], object] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> list[Any]:
        """Wait for all and return their results in order.

        :param timeout: seconds for all together.
        :raises TimeoutError: one was not there in time.
        :raises BaseException: what the first failed one raised, if `propagate`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        values = []
        for result in self.results:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            values.append(result.get(left, propagate, disable_sync_subtasks=disable_sync_subtasks, callback=callback))
        return values

    join = get

    def ready(self) -> bool:
        """Whether all have ended."""
        return all(result.ready() for result in self.results)

    def successful(self) -> bool:
        """Whether all have ended well."""
        return all(result.successful() for result in self.results)

    def failed(self) -> bool:
        """Whether one has failed."""
        return any(result.failed() for result in self.results)

    def waiting(self) -> bool:
        """Whether one has not ended."""
        return not self.ready()

    def completed_count(self) -> int:
        """How many have ended well."""
        return sum(result.successful() for result in self.results)

    def forget(self) -> None:
        """Delete the stored states."""
        for result in self.results:
            result.forget()

    def __iter__(self) -> Iterator[AsyncResult[Any]]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> AsyncResult[Any]:
        return self.results[index]


class GroupResult(ResultSet):
    """The results of a group."""

    def __init__(self, id: str, results: Iterable[AsyncResult[Any]]) -> None:
        super().__init__(results)
        self.id = id

    def as_tuple(self) -> Any:
        """Celery's form: ((id, parent), [members])."""
        return [[self.id, None], [result.as_tuple() for result in self.results]]


def result_from_tuple(stored: Any, app: App) -> AsyncResult[Any] | GroupResult:
    """The result that Celery's tuple form stands for (redis-layout §8, result tuples).

    :raises ValueError: it is none.
    """
    try:
        (id, parent), members = stored
        if members is not None:
            found = [result_from_tuple(member, app) for member in members]
            return GroupResult(id, [result for result in found if isinstance(result, AsyncResult)])
        above = result_from_tuple(parent, app) if parent else None
        return AsyncResult(id, app, above if isinstance(above, AsyncResult) else None)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("a stored child that is no result tuple") from None
