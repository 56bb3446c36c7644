"""A page of memory shared by the kernel process and one executor: what each slot is running now.

Imports nothing of the kernel. The executor writes a record when a job starts and when it ends (0.3 µs, no
system call); the kernel reads it when the executor has died, when a time limit is due and for inspection. So
no message says "started", and a dead executor's last job is known for certain. The other way round the kernel
writes until when it holds what it has reserved, which executors look at before they store anything.
"""

from __future__ import annotations

import mmap
import os
import struct

from .lease import NEVER, clock

_RECORD = struct.Struct("@QdQ")  # native: aligned fields are written whole; other forms write byte by byte
"""Tag of the last job that started, monotonic time of its start (0 = it has ended), and the tag up to which every
job of this slot has succeeded with nothing left to store."""
_HELD = struct.Struct("@d")
"""Behind the records: the end of the kernel's lease, on `lease.clock`."""
_END = struct.Struct("@dQ")
_AT_END = 8


class Board:
    """Records of the slots of one executor.

    The tag is written before the time, and a record without a time reads as idle: so a record that is half
    written, or whose writer was stopped half-way, never shows a job with another one's start.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self.fd = fd
        self.slots = slots
        self._held_at = max(1, slots) * _RECORD.size
        self._map = mmap.mmap(fd, self._held_at + _HELD.size)

    @classmethod
    def create(cls, slots: int) -> Board:
        """A new page. Kernel process; the descriptor `fd` is handed to the executor."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("kw-board", os.MFD_CLOEXEC)
        else:  # macOS: an unlinked file does the same
            import tempfile

            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, max(1, slots) * _RECORD.size + _HELD.size)
        board = cls(fd, slots)
        board.hold_until(NEVER)
        return board

    def hold_until(self, held_until: float) -> None:
        """The kernel's lease was renewed. Kernel process."""
        _HELD.pack_into(self._map, self._held_at, held_until)

    @property
    def is_held(self) -> bool:
        """Whether what this executor runs is still its worker's, as far as the kernel knows. Executor."""
        held_until: float = _HELD.unpack_from(self._map, self._held_at)[0]
        return clock() <= held_until

    def start(self, slot: int, tag: int, now: float, done: int) -> None:
        """A job starts in a slot. Executor."""
        _RECORD.pack_into(self._map, slot * _RECORD.size, tag, now, done)

    def idle(self, slot: int, done: int) -> None:
        """The slot's job has ended; `done` as above. Executor."""
        _END.pack_into(self._map, slot * _RECORD.size + _AT_END, 0.0, done)

    def read(self, slot: int) -> tuple[int, float, int]:
        """(running tag or 0, monotonic start, done up to) of a slot."""
        tag, started, done = _RECORD.unpack_from(self._map, slot * _RECORD.size)
        return tag if started else 0, started, done

    def last_started(self, slot: int) -> int:
        """Tag of the job that a slot runs or has run last, 0 = none."""
        tag: int = _RECORD.unpack_from(self._map, slot * _RECORD.size)[0]
        return tag

    def close(self) -> None:
        """Unmap and close; idempotent."""
        if self.fd >= 0:
            self._map.close()
            os.close(self.fd)
            self.fd = -1
