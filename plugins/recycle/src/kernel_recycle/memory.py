"""Resident memory of other processes, read by their ids without waiting."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

PROC = Path("/proc")
ASK_S = 2.0


class Memory(Protocol):
    """`read(pids)` gives KiB by process id, without those that have ended; `close()` once at the end."""

    def read(self, pids: Iterable[int]) -> Mapping[int, int]: ...
    def close(self) -> None: ...


class ProcMemory:
    """Linux: a small file per process, a few microseconds each."""

    def __init__(self) -> None:
        self._page_kib = os.sysconf("SC_PAGE_SIZE") // 1024

    def read(self, pids: Iterable[int]) -> dict[int, int]:
        found = {}
        for pid in pids:
            try:
                with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
                    found[pid] = int(file.read(128).split()[1]) * self._page_kib
            except (OSError, IndexError, ValueError):
                continue  # it has ended
        return found

    def close(self) -> None:
        """Nothing is kept open."""


class PsMemory:
    """Elsewhere: `ps`, every two seconds on a thread of its own; `read` gives the last answer."""

    def __init__(self) -> None:
        self._pids: tuple[int, ...] = ()
        self._found: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="kw-recycle", daemon=True)
        self._thread.start()

    def read(self, pids: Iterable[int]) -> dict[int, int]:
        self._pids = tuple(pids)
        return {pid: self._found[pid] for pid in self._pids if pid in self._found}

    def close(self) -> None:
        """End the thread."""
        self._over.set()

    def _ask(self) -> None:
        while not self._over.wait(ASK_S):
            if self._pids:
                self._found = ask_ps(self._pids)


def ask_ps(pids: Iterable[int]) -> dict[int, int]:
    """What `ps` says; blocks for some milliseconds."""
    command = ["ps", "-o", "pid=,rss=", "-p", ",".join(map(str, pids))]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=5.0).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.split() for line in output.splitlines())
    return {int(pair[0]): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit()}


def open_memory() -> Memory:
    """The way this system offers."""
    return ProcMemory() if (PROC / "self" / "statm").exists() else PsMemory()
