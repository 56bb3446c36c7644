"""`kw`: the command line. Nothing is imported here but what must begin before all else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from kernel_worker import early

__all__ = ["main"]

_LATE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of `kw`; returns the exit code."""
    words = sys.argv[1:] if args is None else args
    _open_standard_descriptors()
    begun = early.Early()

    def stop(*_: object) -> None:
        # No exception: whatever is being imported or composed just then would be blamed for it.
        begun.close()
        os._exit(0)

    if args is None and words[:1] == ["run"]:
        # Until the worker has handlers of its own; the default would leave without taking the interpreter along.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, stop)
    if words[:1] == ["run"]:
        begun = early.begin(words[1:])
    try:
        from .group import run_command

        return run_command(words, begun)
    finally:
        begun.close()
        if args is None and words[:1] == ["run"]:
            # An interpreter that ends gives signals their defaults back: one that comes late would be the exit status.
            for number in _LATE:
                signal.signal(number, signal.SIG_IGN)


def _open_standard_descriptors() -> None:
    """Lead 0, 1 and 2 to the null device where the caller closed them (`kw run >&-`). Else a socket would get such a
    number, and what a task's program prints would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number: this one
