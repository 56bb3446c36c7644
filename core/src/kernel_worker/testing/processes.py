"""`kw` as a subprocess: started, watched, signalled, and never left behind. Standard library only.

A worker has a process group of its own and carries a mark in its environment, by which every process that
descends from it is found, also those whose parent has died (on systems with /proc).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from .waiting import eventually

_MARK = "KW_TEST_FAMILY"
_numbers = itertools.count(1)


class WorkerProcess:
    """One run of `kw`, by default `kw run`.

    :param arguments: after `kw`, e.g. ("run", "-A", "app", "-P", "solo").
    :param cwd: working directory; the output goes to a file in it.
    :param env: variables added to this process's environment.
    """

    def __init__(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self.arguments = list(arguments)
        self._log = cwd / f"kw-{next(_numbers)}.log"
        self._mark = uuid.uuid4().hex
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kernel_worker.cli", *self.arguments],
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {}), _MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the kernel process; also the id of its process group."""
        return self._process.pid

    @property
    def output(self) -> str:
        """Everything it and its children printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.poll()

    def wait_for_output(self, text: str, *, within_s: float = 20.0) -> Self:
        """Wait until `text` was printed.

        :raises AssertionError: it was not in time, or the process has ended; with the output.
        """

        def printed() -> bool:
            return text in self.output or self.exit_code is not None

        eventually(printed, within_s=within_s, message=lambda: f"{text!r} in the output:\n{self.output}")
        assert text in self.output, f"kw ended with {self.exit_code} before it printed {text!r}:\n{self.output}"
        return self

    def wait_until_ready(self, *, within_s: float = 20.0) -> Self:
        """Wait for the `ready` line."""
        return self.wait_for_output(" ready.", within_s=within_s)

    def signal(self, number: int) -> None:
        """Send a signal to the kernel process."""
        self._process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole process group, as a terminal or a service manager does."""
        os.killpg(self.pid, number)

    def wait(self, *, within_s: float = 30.0) -> int:
        """Wait for its end; the exit code.

        :raises AssertionError: it still runs; with the output.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(within_s)
        raise AssertionError(f"kw {' '.join(self.arguments)} still runs after {within_s:g} s:\n{self.output}")

    def stop(self, *, within_s: float = 30.0) -> int:
        """SIGTERM and wait; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(within_s=within_s)

    def family(self) -> set[int]:
        """Ids of all living processes that descend from this run, itself included."""
        found = {self.pid} if self.exit_code is None else set()
        mark = f"{_MARK}={self._mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended in between, or not ours
                # a process that has ended and was not yet waited for has no environment any more
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
        return found

    def kill(self) -> None:
        """SIGKILL to everything that is left of this run, and wait until it is gone. Idempotent."""
        for pid in sorted(self.family(), key=lambda pid: pid != self.pid):  # the kernel first: it would replace others
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)

        def gone() -> bool:
            left = self.family()
            for pid in left:  # born while the others were killed
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        eventually(gone, within_s=10, message=lambda: f"the end of {self.family()}")
