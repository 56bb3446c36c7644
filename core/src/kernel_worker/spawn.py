"""How executors come into being: by exec, or inline on the worker's main thread.

Runs on the loop thread of the kernel process, which never forks: a forking pool brings a fork server of its own
(`kernel_pool_prefork`). A spawner knows nothing of requests.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from .board import Board
from .loop import Loop
from .wire import Frame, pack_json


class SpawnEvents(Protocol):
    """What a spawner tells its supervisor. Loop thread."""

    def on_loaded(self, info: dict[str, Any]) -> None: ...
    def on_failed(self, failure: dict[str, Any]) -> None: ...
    def on_born(self, key: int, pid: int) -> None: ...
    def on_exited(self, key: int, status: int) -> None: ...


@dataclass(slots=True)
class Birth:
    """One executor to be made: its key, and the executor's ends of channel and board."""

    key: int
    sock: socket.socket
    board: Board
    slots: int
    index: int = 0
    """Its number, from 1, for the names of log files; 0: it is in the kernel process."""


class Spawner(ABC):
    """Makes executors, kills them, and reports how they ended.

    :param hello: the HELLO value every executor (or the fork server) gets.
    """

    preloads = False
    """Whether `start` loads the application before the first executor is asked for."""
    can_kill = True
    """Whether `kill` ends an executor."""

    def __init__(self, loop: Loop, hello: dict[str, Any], events: SpawnEvents) -> None:
        self.loop = loop
        self.hello = hello
        self.events = events
        self.prestarted: Any = None
        """What was begun for this pool ahead of all else (`kernel_worker.early`); used by `start`."""

    def start(self) -> None:
        """Begin. A preloading spawner reports `on_loaded` or `on_failed` later."""

    @abstractmethod
    def spawn(self, birth: Birth) -> None:
        """Begin to make one executor; `on_born` comes later. Takes over `birth.sock`."""

    @abstractmethod
    def kill(self, key: int, number: int) -> None:
        """Send a signal to an executor; one that has ended is ignored."""

    def stop(self) -> None:
        """End what is left, at once. Idempotent."""


class ExecSpawner(Spawner):
    """Each executor is a fresh Python process."""

    def __init__(self, loop: Loop, hello: dict[str, Any], events: SpawnEvents) -> None:
        super().__init__(loop, hello, events)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def spawn(self, birth: Birth) -> None:
        fds = (birth.sock.fileno(), birth.board.fd)
        process = subprocess.Popen(
            python_command("kernel_worker.executor_main:process_main", *fds, birth.slots),
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
        )
        birth.sock.close()
        self._processes[birth.key] = process
        watch_exit(self.loop, process, self._exited, birth.key)
        self.events.on_born(birth.key, process.pid)

    def _exited(self, key: int, status: int) -> None:
        self._processes.pop(key, None)
        self.events.on_exited(key, status)

    def kill(self, key: int, number: int) -> None:
        process = self._processes.get(key)
        if process is not None:
            process.send_signal(number)

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self._processes.values():
            process.wait(5)
        self._processes.clear()


class InlineSpawner(Spawner):
    """The one executor is the worker's main thread."""

    can_kill = False

    def __init__(self, loop: Loop, hello: dict[str, Any], events: SpawnEvents) -> None:
        super().__init__(loop, hello, events)
        self.on_birth: Any = None
        """Set by the worker: called on the loop thread when the executor is to begin."""

    def spawn(self, birth: Birth) -> None:
        self.events.on_born(birth.key, os.getpid())
        self.on_birth(birth)

    def finished(self, key: int, status: int) -> None:
        """The main thread has left the executor. Any thread."""
        self.loop.post(self.events.on_exited, key, status)

    def kill(self, key: int, number: int) -> None:
        """The executor is this very process: it is never killed alone."""


def python_command(entry: str, *arguments: object) -> list[str]:
    """Command line of a fresh interpreter that calls "module:function".

    `-P`: the working directory must not shadow the modules of the kernel; the executor adds it later.
    """
    module, _, function = entry.partition(":")
    code = f"from {module} import {function}; {function}()"
    return [sys.executable, "-P", "-c", code, *map(str, arguments)]


def watch_exit(loop: Loop, process: subprocess.Popen[bytes], callback: Any, *args: Any) -> None:
    """Call `callback(*args, wait_status)` on the loop thread when the process has ended."""
    if hasattr(os, "pidfd_open"):
        fd = os.pidfd_open(process.pid)

        def ended() -> None:
            loop.remove(fd)
            os.close(fd)
            callback(*args, process.wait())

        loop.add_reader(fd, ended)
        return

    def poll() -> None:  # no pidfd: macOS, old kernels
        status = process.poll()
        if status is None:
            loop.call_later(0.1, poll)
        else:
            callback(*args, status)

    loop.call_later(0.1, poll)


def hello_frame(hello: dict[str, Any]) -> bytes:
    """The HELLO frame."""
    return pack_json(Frame.HELLO, hello)


def exit_reason(status: int) -> str:
    """What a wait status in Popen's form (negative = signal) means, in words."""
    if status >= 0:
        return f"exit {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
