"""Calling a task's function, for workers and for eager runs: coroutines are run to their end."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from threading import get_ident
from types import CoroutineType
from typing import Any


class Coroutines:
    """Event loops for `async def` tasks, one per process and thread, kept from task to task. One per application.

    On pools that are not asyncio's, a coroutine is run to its end before the slot takes the next job.
    """

    def __init__(self) -> None:
        # By process too: a loop that was made before a fork shares its selector with the parent.
        self._runners: dict[tuple[int, int], Any] = {}
        self.elsewhere: Callable[[Any], Any] | None = None
        """Runs coroutines in place of these loops; set in workers whose pool has its own way."""

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run to the end and return the result. The coroutine sees the caller's context variables."""
        if self.elsewhere is not None:
            return self.elsewhere(coroutine)
        import asyncio
        from contextvars import copy_context

        place = (os.getpid(), get_ident())
        runner = self._runners.get(place)
        if runner is None:
            runner = self._runners[place] = asyncio.Runner()
        try:
            return runner.run(coroutine, context=copy_context())
        except BaseException:
            # A time limit may have been raised in the loop itself, with the task still pending in it. Closing
            # cancels what is left and waits for it, so that nothing runs on beside the next job.
            if asyncio.all_tasks(runner.get_loop()):
                del self._runners[place]
                runner.close()
            raise

    def close(self) -> None:
        """Close the loops of this process; those of threads that still run one must not be in use."""
        for place in [place for place in self._runners if place[0] == os.getpid()]:
            self._runners.pop(place).close()

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the function; a coroutine it returns is run to its end."""
        value = function(*args, **kwargs)
        return self.run(value) if type(value) is CoroutineType else value
