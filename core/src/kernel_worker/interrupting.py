"""Where nothing may be raised in a task from outside.

An exception that comes between any two steps of Python may come between the taking of a lock and the `try` behind it.
The lock then stays taken: that of a log handler stops every thread that ever logs, that of a queue whoever uses it.
Logging moreover swallows what is raised in a handler, so that a limit would never end the task; an import leaves half a
module. So a limit waits until the task has left such code. Imports of the kernel only what an executor needs.
"""

from __future__ import annotations

import logging
import threading
import time
from types import FrameType

INSIST_S = 0.001
"""How often it is looked whether the task has left such code."""
PATIENCE_S = 1.0
"""After so long it is raised all the same: a handler may wait for a server that does not answer."""

_WHOLE = frozenset({logging.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"})
_LOCKS = threading.__file__
_WAITS = frozenset({"wait", "wait_for", "join", "_wait_for_tstate_lock"})


def is_guarded(frame: FrameType | None) -> bool:
    """Whether an exception in this innermost frame of a thread would leave something locked, or be swallowed. Any thread."""
    if frame is not None and frame.f_code.co_filename == _LOCKS and frame.f_code.co_name not in _WAITS:
        return True
    while frame is not None:
        if frame.f_code.co_filename in _WHOLE:
            return True
        frame = frame.f_back
    return False


class Aim:
    """An error that is to be raised in one job.

    :param tag: of the job.
    """

    __slots__ = ("error", "tag", "until")

    def __init__(self, tag: int, error: BaseException) -> None:
        self.tag = tag
        self.error = error
        self.until = time.monotonic() + PATIENCE_S

    def must_wait(self, frame: FrameType | None) -> bool:
        """Whether it is not to be raised in this frame now."""
        return is_guarded(frame) and time.monotonic() < self.until
