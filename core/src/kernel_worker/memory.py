"""Memory that was freed goes back to the system when there is nothing to do.

The C library keeps what lies below memory that is still in use: after a thousand tasks at once that is some megabytes in
each process.
"""

from __future__ import annotations


def give_back() -> None:
    """Takes a few milliseconds. Any thread. Does nothing where the C library is not glibc (`malloc_trim(3)`)."""
    import ctypes  # 1 MB: only for processes that had something to do

    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
