"""One coroutine that is run for a job, into which any exception can be raised. Event loop of the executor.

asyncio can only cancel a task: whatever it waits for is cancelled, and it gets a `CancelledError`. So the coroutine is
stepped here, inside its asyncio task, and gets the exception that was meant in place of that one.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from types import FrameType
from typing import Any

from kernel_worker.interrupting import Aim


class Run:
    """A job's coroutine while it runs.

    :param tag: of the job.
    """

    __slots__ = ("aim", "coroutine", "is_begun", "is_stepping", "tag", "task")

    def __init__(self, tag: int, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.tag = tag
        self.coroutine = coroutine
        self.task: asyncio.Task[Any] | None = None
        self.aim: Aim | None = None
        """To be raised in it, by whichever way is the first."""
        self.is_begun = False
        self.is_stepping = False
        """Whether the interpreter is inside the coroutine now, on the loop's thread."""

    def deliver(self) -> None:
        """Raise the error where the coroutine waits. On the loop, so it is waiting or has ended."""
        task = self.task
        if self.aim is None or task is None or task.done():
            return
        if self.is_begun:
            task.cancel()
        else:
            task.get_loop().call_soon(self.deliver)  # before its first step there is nobody to raise it in

    def interrupt(self, frame: FrameType | None) -> bool:
        """Raise the error in the step that is under way. Signal handler of the loop's thread, which came in `frame`.

        :return: whether it has to wait.
        """
        aim = self.aim
        if aim is None or not self.is_stepping:
            return False
        if aim.must_wait(frame):
            return True
        self.aim = None
        raise aim.error

    @types.coroutine
    def steps(self) -> Generator[Any, Any, Any]:
        """Run the coroutine to its end: what it returns or raises."""
        send, throw = self.coroutine.send, self.coroutine.throw
        self.is_begun = True
        error: BaseException | None = None
        while True:
            try:
                self.is_stepping = True
                awaited = send(None) if error is None else throw(error)
            except StopIteration as end:
                return end.value
            finally:
                self.is_stepping = False
            try:
                yield awaited
                error = None
            except BaseException as raised:  # all go in: what it waited for tells its failures by its own means
                error = self._meant(raised)

    def _meant(self, raised: BaseException) -> BaseException:
        aim = self.aim
        if aim is None or not isinstance(raised, asyncio.CancelledError):
            return raised
        self.aim = None
        assert self.task is not None
        self.task.uncancel()  # else asyncio.timeout() inside it would take its own expiry for this
        return aim.error
