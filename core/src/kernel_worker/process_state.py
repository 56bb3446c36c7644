"""What a task may have changed for those after it: working directory, umask, signal handlers. One-slot executors.

Imports nothing of the kernel. A look costs system calls, and more than a short task is worth: so the functions of
Python that change these things note that they were called (`watch`), and one looks after a task that called one. C code
may have changed something without them: for that one looks every now and then. Where several tasks share a process
none of this is done, because one of them may be using what another one has changed.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from _signal import getsignal  # type: ignore[import-not-found]  # without the enum that costs ten times as much
from collections.abc import Callable
from time import monotonic
from types import ModuleType
from typing import Any

log = logging.getLogger("kernel_worker.executor")

WATCHED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCHLD),
)
_NUMBERS = tuple(int(number) for number in WATCHED)
LOOK_EVERY_S = 0.05
"""After a task that ends so long after the last look one looks in any case: it costs little beside that."""
LONG_S = 0.001
"""The same after one that ran for so long, when no other task waits."""


class Changes:
    """Whether one of the functions was called that change the state of the process. Set by any thread."""

    __slots__ = ("noted",)

    def __init__(self) -> None:
        self.noted = False


_noted_by: list[Changes] = []
"""Of this process, once `watch` was called."""


def watch() -> Changes:
    """Have the functions noted that change the state; the same `Changes` in every call in one process and its forks.

    To be called before the application is imported: it may take the functions under names of its own. Main thread.
    """
    if _noted_by:
        return _noted_by[0]
    changes = Changes()
    _noted_by.append(changes)
    functions: tuple[tuple[ModuleType, str], ...] = (
        *((os, name) for name in ("chdir", "fchdir", "umask")),
        (signal, "signal"),
    )
    for module, name in functions:
        setattr(module, name, _noting(getattr(module, name), changes))
    return changes


def _noting(function: Callable[..., Any], changes: Changes) -> Callable[..., Any]:
    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        changes.noted = True
        return function(*args, **kwargs)

    if function in os.supports_fd:
        os.supports_fd.add(noting)
    return noting


class ProcessState:
    """The state at the time it is made. Main thread."""

    def __init__(self) -> None:
        self._directory = os.getcwd()
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._handlers = [getsignal(number) for number in _NUMBERS]
        self._told = False
        self._changes = watch()
        self._looked_at, self._changes.noted = monotonic(), False

    def restore_after(self, begun: float, is_last: bool) -> None:
        """As `restore`, where the task that began then, or those before it, may have changed something.

        :param is_last: no other one waits, and none may come for long.
        """
        now = monotonic()
        if self._changes.noted or now - self._looked_at > LOOK_EVERY_S or (is_last and now - begun > LONG_S):
            self.restore()

    def restore(self) -> None:
        """Put back what has changed; tell of it once. Between two tasks."""
        changed = []
        if os.umask(self._umask) != self._umask:
            changed.append("the umask")
        try:
            is_there = os.getcwd() == self._directory
        except OSError:  # it was deleted
            is_there = False
        if not is_there:
            changed.append("the working directory")
            self._go_back()
        if [getsignal(number) for number in _NUMBERS] != self._handlers:
            changed.append("signal handlers")
            for number, handler in zip(_NUMBERS, self._handlers, strict=True):
                if handler is not None:  # it was not made in Python
                    signal.signal(number, handler)
        if changed and not self._told:
            self._told = True
            log.warning(
                "a task has changed %s of its process, which is put back (told once)",
                " and ".join(changed),
                extra={"action": "process_state_restored"},
            )
        self._looked_at, self._changes.noted = monotonic(), False

    def _go_back(self) -> None:
        try:
            os.chdir(self._directory)
        except OSError as error:
            log.error("cannot go back to %s: %s", self._directory, error, extra={"action": "directory_lost"})
