"""Wait for a fact instead of sleeping. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_STEP_S = 0.005  # short enough that a wait costs a test nothing, long enough to leave the CPU to others


def eventually(condition: Callable[[], T], *, within_s: float = 5.0, message: str | Callable[[], str] = "") -> T:
    """Call `condition` until it gives something true, and return that.

    :param within_s: seconds after which it has failed.
    :param message: what was waited for; a callable is asked only when it failed, for the state found then.
    :raises AssertionError: it stayed false; an exception of the last call is chained.
    """
    deadline = time.monotonic() + within_s
    while True:
        error: Exception | None = None
        try:
            value = condition()
            if value:
                return value
        except Exception as caught:  # a condition may raise while what it looks at does not exist yet
            error = caught
        if time.monotonic() > deadline:
            text = message() if callable(message) else message
            raise AssertionError(f"not within {within_s:g} s: {text or repr(condition)}") from error
        time.sleep(_STEP_S)
