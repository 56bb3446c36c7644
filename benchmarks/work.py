"""What the task does, the same in every system: sleep, or compute. Standard library only."""

from __future__ import annotations

import hashlib
import time

NAP_S = 0.1
HASHING_S = 0.005
"""Of processor time."""

_block = b"x" * 4096


def nap() -> None:
    """Wait as a task does that asks a server."""
    time.sleep(NAP_S)


async def async_nap() -> None:
    """The same in a coroutine."""
    import asyncio  # not with the module: it takes a fifth of the time in which a worker starts

    await asyncio.sleep(NAP_S)


def digest() -> None:
    """Compute for five milliseconds of the thread's processor time, whatever else runs."""
    end = time.thread_time() + HASHING_S
    while time.thread_time() < end:
        hashlib.sha256(_block).digest()
