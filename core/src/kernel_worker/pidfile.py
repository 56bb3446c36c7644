"""The pidfile: one worker per file, and nobody else's file is ever touched."""

from __future__ import annotations

import fcntl
import os
import stat

from .errors import PidfileError


class Pidfile:
    """Holds a lock on the file as long as the worker lives: a file left by a crash is free again, and a
    living worker's file is not taken, whatever number stands in it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def acquire(self) -> None:
        """Create or take over the file and write this process's id into it.

        :raises PidfileError: a living process holds it, it is no plain file, or it cannot be written.
        """
        taken = False
        while not taken:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise PidfileError(
                    f"pidfile {self.path}: {error.strerror}", hint="choose another path with --pidfile"
                ) from error
            try:
                taken = self._take(fd)
            finally:
                if not taken:
                    os.close(fd)
        self._fd = fd

    def _take(self, fd: int) -> bool:
        """Lock the open file and write into it; False when its holder removed it just before it was locked."""
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            raise PidfileError(
                f"pidfile {self.path} is not a plain file of its own", hint="remove it or choose another path"
            )
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PidfileError(f"pidfile {self.path} is held by a running worker (pid {text or 'unknown'})") from None
        if not os.fstat(fd).st_nlink:
            return False
        if text.isdigit() and int(text) != os.getpid() and _is_alive(int(text)):
            raise PidfileError(
                f"pidfile {self.path} names the living process {text}",
                hint="stop it, or remove the file if it is another program's",
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return True

    def release(self) -> None:
        """Remove the file if it is still ours; idempotent."""
        if self._fd < 0:
            return
        try:
            ours, named = os.fstat(self._fd), os.stat(self.path, follow_symlinks=False)
            if (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
                os.unlink(self.path)
        except OSError:
            pass  # somebody removed it: nothing is left to do
        os.close(self._fd)
        self._fd = -1


def _is_alive(pid: int) -> bool:
    if not 0 < pid < 2**31:
        return False  # garbage: 0 would ask for this process's own group, and larger ones overflow
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's process: alive all the same
    return True
