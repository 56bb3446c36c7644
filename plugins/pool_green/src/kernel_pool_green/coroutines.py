"""`async def` tasks on green pools: one asyncio loop in a native thread runs them, their greenlets wait.

A loop in a greenlet would not do: asyncio knows one running loop per native thread, so while one task's loop waits, no
other task could run one of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from .runtime import GreenRuntime


class _Call:
    """A coroutine on its way to its end, and the greenlet that waits for it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.context: Context = copy_context()
        self.waiting: greenlet = getcurrent()
        self.ended = False
        self.value: Any = None
        self.failure: BaseException | None = None
        self._coroutine = coroutine
        self._errors: deque[BaseException] = deque()
        self._task: asyncio.Task[Any] | None = None

    async def run(self) -> None:
        """In the loop. Keeps what the coroutine returned or raised."""
        self._task = asyncio.current_task()
        try:
            self.value = await self
        except BaseException as failure:
            self.failure = failure
        self.ended = True

    def interrupt(self, error: BaseException) -> None:
        """In the loop: raise an error where the coroutine waits."""
        if not self.ended and self._task is not None:
            self._errors.append(error)
            self._task.cancel()

    def __await__(self) -> Generator[Any, Any, Any]:
        """The coroutine, step by step; a cancellation that stands for an error becomes that error."""
        step: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                awaited = step(value)
            except StopIteration as end:
                return end.value
            try:
                value = yield awaited
                step = self._coroutine.send
            except BaseException as error:
                value, step = error, self._coroutine.throw
                if isinstance(error, asyncio.CancelledError) and self._errors:
                    value = self._errors.popleft()
                    if self._task is not None:
                        self._task.uncancel()


class CoroutineThread:
    """The loop's thread, started when it is first needed."""

    def __init__(self, runtime: GreenRuntime) -> None:
        self._runtime = runtime
        self._started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._submitted: deque[_Call] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end; other greenlets go on meanwhile. What is raised in this greenlet while it waits is
        raised in the coroutine."""
        call = _Call(coroutine)
        self._submitted.append(call)
        if not self._started:
            self._started = True
            self._runtime.native().start_thread(self._serve)
        self._post(self._begin)
        while not call.ended:
            try:
                self._runtime.wait_for_switch()
            except BaseException as error:
                self._post(call.interrupt, error)
        if call.failure is not None:
            raise call.failure
        return call.value

    def _post(self, function: Callable[..., object], *args: Any) -> None:
        if self._loop is not None:  # else it begins with what was submitted
            self._loop.call_soon_threadsafe(function, *args)

    # -- in the thread

    def _serve(self) -> None:
        self._loop = loop = asyncio.new_event_loop()
        loop.call_soon(self._begin)
        loop.run_forever()

    def _begin(self) -> None:
        assert self._loop is not None
        while self._submitted:
            call = self._submitted.popleft()
            task = self._loop.create_task(call.run(), context=call.context)
            self._tasks.add(task)
            task.add_done_callback(lambda task, call=call: self._ended(task, call))  # type: ignore[misc]

    def _ended(self, task: asyncio.Task[None], call: _Call) -> None:
        self._tasks.discard(task)
        self._runtime.soon(lambda: self._runtime.call_in_hub(self._resume, call))

    @staticmethod
    def _resume(call: _Call) -> None:
        call.waiting.switch()
