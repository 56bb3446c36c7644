"""Wait for a fact instead of sleeping. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_FIRST_STEP_S, _LAST_STEP_S = 0.005, 0.05
_SHARE = 0.05
"""Of the time waited so far: a wait becomes longer by at most this, and leaves the processor to others."""


def eventually(condition: Callable[[], T], *, within_s: float = 10.0, message: str | Callable[[], str] = "") -> T:
    """Call `condition` until it gives something true, and return that.

    :param within_s: seconds after which it has failed.
    :param message: what was waited for; a callable is asked only when it failed, for the state found then.
    :raises AssertionError: it stayed false; an exception of the last call is chained.
    """
    begun = time.monotonic()
    deadline = begun + within_s
    while True:
        is_late = time.monotonic() > deadline  # asked first: the last look is one after the deadline
        error: Exception | None = None
        try:
            value = condition()
            if value:
                return value
        except Exception as caught:  # a condition may raise while what it looks at does not exist yet
            error = caught
        if is_late:
            text = message() if callable(message) else message
            raise AssertionError(f"not within {within_s:g} s: {text or repr(condition)}") from error
        time.sleep(min(max(_FIRST_STEP_S, _SHARE * (time.monotonic() - begun)), _LAST_STEP_S))
