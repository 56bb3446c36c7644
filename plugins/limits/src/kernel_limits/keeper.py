"""The thread that makes revokes outlive this process: the state file, and the broker where it can keep them.

`begin`, `keep` and `refresh` on the loop thread; what was read is posted back to it. Nobody waits for this thread:
while the disk or the broker refuse, revokes are held in memory only, which is told once a minute.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernel_worker.drivers import RevokeStore

    from .statedb import Record, StateFile

log = logging.getLogger(__name__)

COMPLAIN_S = 60.0
RETRY_S = (0.2, 10.0)

Found = list[tuple[str, float]]


class Keeper:
    """Writes revokes down, and reads what others wrote.

    :param file: None without `--statedb`.
    :param stores: where the broker keeps revokes, one for each of its URLs; the next is tried when one is away.
    :param everything: all records of this worker; called on this thread, must copy in one step.
    :param on_read: called on this thread with what the broker has, whenever that was read; None = it cannot be read.
    """

    def __init__(
        self,
        file: StateFile | None,
        stores: Sequence[RevokeStore],
        everything: Callable[[], list[Record]],
        on_read: Callable[[Found | None], None],
    ) -> None:
        self._file = file
        self._stores = deque(stores)
        self._everything = everything
        self._on_read = on_read
        self._jobs: queue.SimpleQueue[list[Record] | Callable[[], object] | None] = queue.SimpleQueue()
        self._waiting: list[Callable[[], object]] = []
        self._must_read = bool(stores)
        self._unwritten: list[Record] = []
        self._unshared: list[Record] = []
        self._ending = threading.Event()
        self._complained: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="kw-limits", daemon=True)

    @property
    def has_file(self) -> bool:
        """Whether there is a `--statedb`."""
        return self._file is not None

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to write to or read from."""
        return self._file is not None or bool(self._stores)

    def begin(self) -> None:
        """Start; the broker's revokes are read first."""
        if self.is_needed:
            self._thread.start()

    def keep(self, records: list[Record]) -> None:
        """Write these down, soon."""
        if self.is_needed:
            self._jobs.put(records)

    def when_written(self, callback: Callable[[], object]) -> None:
        """Call this, on the keeper's thread, when what was to be kept so far is in the file, or could not be written."""
        self._jobs.put(callback)

    def refresh(self) -> None:
        """Read what the broker has again: broadcasts may have been missed."""
        if self._stores:
            self._must_read = True
            self._jobs.put([])

    def stop(self, deadline: float) -> None:
        """Write what is left until the monotonic deadline, and end. Idempotent; also when never begun."""
        self._ending.set()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))

    # -- the thread

    def _run(self) -> None:
        pause_s = RETRY_S[0]
        while True:
            is_written = self._write()
            self._tell()
            is_done = is_written & self._share()
            if self._ending.is_set() and self._jobs.empty():
                break
            if is_done:
                pause_s = RETRY_S[0]
                self._collect(None)
            else:
                self._ending.wait(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, RETRY_S[1])
                self._collect(0.0)
        if self._file is not None:
            self._file.close()
        for store in self._stores:
            store.close()

    def _collect(self, timeout: float | None) -> None:
        """Take what is to be written, waiting for the first."""
        try:
            job = self._jobs.get() if timeout is None else self._jobs.get_nowait()
            while True:
                if callable(job):
                    self._waiting.append(job)
                elif job:
                    if self._file is not None:
                        self._unwritten += job
                    if self._stores:
                        self._unshared += job
                job = self._jobs.get_nowait()
        except queue.Empty:
            pass

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def _write(self) -> bool:
        if self._file is None or not self._unwritten:
            return True
        everything = self._everything
        try:
            self._file.write(self._unwritten, len(everything()), everything)
        except OSError as error:
            self._unwritten = self._unwritten[:1]  # reminds of writing everything, which is what comes next
            self._complain(f"--statedb {self._file.path}", error.strerror or str(error))
            return False
        self._unwritten = []
        return True

    def _share(self) -> bool:
        if not self._stores:
            return True
        store = self._stores[0]
        try:
            by_time: dict[float, list[str]] = {}
            for key, until in self._unshared:
                if isinstance(key, str):
                    by_time.setdefault(until, []).append(key)
            for until, ids in by_time.items() if store.takes_copies else ():
                store.add(ids, until)
            self._unshared = []
            if self._must_read:
                self._must_read = False
                self._on_read(store.read())
        except Exception as error:  # the boundary of the thread: memory holds what cannot be kept elsewhere
            self._must_read = True
            store.close()
            self._stores.rotate(-1)
            del self._unshared[: -len(self._everything()) or None]
            if type(error).__name__.endswith("Refused") or not isinstance(error, ConnectionError):
                self._on_read(None)  # trying again will not help: no message shall wait for it
            self._complain("the broker", str(error) or type(error).__name__)
            return False
        return True

    def _complain(self, where: str, why: str) -> None:
        now = time.monotonic()
        if now - self._complained.get(where, -COMPLAIN_S) >= COMPLAIN_S:
            self._complained[where] = now
            log.error(
                "revokes cannot be kept in %s, only in memory: %s", where, why, extra={"action": "revokes_unkept"}
            )
