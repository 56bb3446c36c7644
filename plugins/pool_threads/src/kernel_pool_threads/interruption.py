"""An exception raised in another thread, and in nothing but the job it is meant for.

The interpreter raises it between two steps of Python some time after it was asked to: so before the thread goes on to
something else, what was asked for and has not come yet is taken back.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any

from kernel_worker.interrupting import Aim

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exc.restype = ctypes.c_int
_TAKE_BACK = ctypes.py_object()  # NULL


class Interruption:
    """The way into one thread.

    :param thread: its ident.
    """

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._lock = threading.Lock()
        self._tag = 0
        self._asked = False
        self._waiting: Aim | None = None

    def open(self, tag: int) -> None:
        """This job begins. The thread itself; from here on an error may be raised between any two of its steps."""
        self._tag = tag

    def close(self) -> None:
        """The job has ended: from the return of this on nothing is raised. The thread itself.

        An error that is raised meanwhile is dropped: it came too late.
        """
        while True:
            try:
                with self._lock:
                    self._tag = 0
                    self._waiting = None
                    if self._asked:
                        self._asked = False
                        _set_async_exc(self._thread, _TAKE_BACK)
                return
            except BaseException:  # it came in between; nothing more can come when this ends without it
                continue

    def interrupt(self, tag: int, error: BaseException) -> bool:
        """Have `error` raised in the thread, if it runs this job. Any other thread."""
        if self._tag != tag:
            return False
        with self._lock:
            if self._tag != tag:
                return False
            self._waiting = Aim(tag, error)
        self.insist()
        return True

    def insist(self) -> bool:
        """Raise what waits, if the thread has left what an exception would break. Any other thread.

        :return: whether it still waits.
        """
        if self._waiting is None:
            return False
        with self._lock:
            aim = self._waiting
            if aim is None:
                return False
            if aim.must_wait(sys._current_frames().get(self._thread)):
                return True
            self._waiting, self._asked = None, True
            _set_async_exc(self._thread, _class_that_makes(aim.error))
            return False


def _class_that_makes(error: BaseException) -> Any:
    """The interpreter takes a class and makes the instance itself: this class makes the one that is given."""

    class Interrupting(BaseException):
        def __new__(cls) -> Any:
            return error

    return Interrupting
