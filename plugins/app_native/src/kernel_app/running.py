"""Calling a task's function, for workers and for eager runs: coroutines are run to their end."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from threading import get_ident
from types import CoroutineType
from typing import Any


class CoroutineRunner:
    """Event loops for `async def` tasks, one per thread, kept from task to task.

    On pools that are not asyncio's, a coroutine is run to its end before the slot takes the next job.
    """

    def __init__(self) -> None:
        self._runners: dict[int, Any] = {}

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run to the end and return the result. The coroutine sees the caller's context variables."""
        import asyncio
        from contextvars import copy_context

        thread = get_ident()
        runner = self._runners.get(thread)
        if runner is None:
            runner = self._runners[thread] = asyncio.Runner()
        try:
            return runner.run(coroutine, context=copy_context())
        except BaseException:
            # A time limit may have been raised in the loop itself, with the task still pending in it. Closing
            # cancels what is left and waits for it, so that nothing runs on beside the next job.
            if asyncio.all_tasks(runner.get_loop()):
                del self._runners[thread]
                runner.close()
            raise


COROUTINES = CoroutineRunner()


def call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call the function; a coroutine it returns is run to its end."""
    value = function(*args, **kwargs)
    return COROUTINES.run(value) if type(value) is CoroutineType else value
