"""The fork server: one thread, the imported application, no connection. It forks executors and reaps them.

Its own process. Python 3.12 and later warn about forking with threads; this process has none, and warns
when the application's import started some.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from typing import Any

from kernel_worker.board import Board
from kernel_worker.drivers import LoadedApp
from kernel_worker.executor_main import (
    become_executor,
    die_with_parent,
    flush_output,
    ignore_group_signals,
    read_hello,
)
from kernel_worker.loading import failed_frame, import_string, load_app, loaded_frame
from kernel_worker.logs import configure_logging
from kernel_worker.process_state import watch
from kernel_worker.wire import CHUNK, Channel, ChannelClosed, Frame, pack_json

log = logging.getLogger("kernel_worker.forkserver")


class ForkServer:
    """Obeys the kernel's FORK and KILL frames; reports FORKED and EXITED."""

    def __init__(self, channel: Channel, hello: dict[str, Any], app: LoadedApp) -> None:
        self._channel = channel
        self._hello = hello
        self._app = app
        self._children: dict[int, int] = {}
        self._fds: list[int] = []
        self._buffer = bytearray()
        self._exit_r, self._exit_w = os.pipe()
        os.set_blocking(self._exit_r, False)
        os.set_blocking(self._exit_w, False)  # a condition of set_wakeup_fd
        signal.set_wakeup_fd(self._exit_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Serve until the kernel closes the channel; children die with this process."""
        # What is alive now is shared by all children: keep the collector from touching (copying) it.
        gc.collect()
        gc.freeze()
        while True:
            ready, _, _ = select.select([self._channel.fileno(), self._exit_r], [], [])
            if self._exit_r in ready:
                self._drain_exits()
            self._reap()
            if self._channel.fileno() in ready and not self._read():
                return

    def _read(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._channel.sock, CHUNK, 16)
        if not data:
            return False
        self._fds += fds
        self._buffer += data
        while len(self._buffer) >= 5:
            length = int.from_bytes(self._buffer[:4], "little")
            if len(self._buffer) < 5 + length:
                break
            kind, payload = self._buffer[4], bytes(self._buffer[5 : 5 + length])
            del self._buffer[: 5 + length]
            value = json.loads(payload)
            if kind == Frame.FORK:
                self._fork(value["key"], value["slots"], value["index"])
            elif kind == Frame.KILL:
                self._kill(value["key"], value["signal"])
        return True

    def _fork(self, key: int, slots: int, index: int) -> None:
        sock_fd, board_fd, self._fds = self._fds[0], self._fds[1], self._fds[2:]
        try:
            pid = os.fork()
        except OSError as error:  # EAGAIN, ENOMEM: the supervisor backs off as after any early death
            log.error("cannot fork: %s", error, extra={"action": "fork_failed"})
            os.close(sock_fd)
            os.close(board_fd)
            self._channel.send(pack_json(Frame.EXITED, {"key": key, "status": 1}))
            return
        if pid == 0:
            self._child(sock_fd, board_fd, slots, index)
        os.close(sock_fd)
        os.close(board_fd)
        self._children[pid] = key
        self._channel.send(pack_json(Frame.FORKED, {"key": key, "pid": pid}))

    def _child(self, sock_fd: int, board_fd: int, slots: int, index: int) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._channel.sock.close()
            os.close(self._exit_r)
            os.close(self._exit_w)
            die_with_parent()
            _set_title(f"kw: prefork child {index} of {self._hello['node']}")
            runtime = import_string(self._hello["runtime"])()
            become_executor(
                Channel(socket.socket(fileno=sock_fd)),
                Board(board_fd, slots),
                runtime,
                self._app,
                {**self._hello, "index": index},
            )
            code = 0
        except ChannelClosed:
            pass
        except BaseException:  # told to the kernel already where it matters; here for the log
            log.exception("executor failed", extra={"action": "executor_failed"})
        finally:
            flush_output()
            os._exit(code)  # never the parent's exit handlers

    def _kill(self, key: int, number: int) -> None:
        for pid, known in self._children.items():  # not reaped yet, so the pid is still this child's
            if known == key:
                os.kill(pid, number)

    def _drain_exits(self) -> None:
        try:
            os.read(self._exit_r, 4096)
        except BlockingIOError:
            pass

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            key = self._children.pop(pid, None)
            if key is not None:
                code = os.waitstatus_to_exitcode(status)
                self._channel.send(pack_json(Frame.EXITED, {"key": key, "status": code}))


def _set_title(title: str) -> None:
    """What `ps` shows, where the optional library setproctitle is installed (kernel-pool-prefork[title])."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(title)


def _import_ahead(app: str) -> None:
    """Import the application, and what loads such a one, while the kernel process still composes the worker.

    What goes wrong is told later, when HELLO asks for it: that may name another application.
    """
    sys.path.insert(0, os.getcwd())
    with contextlib.suppress(BaseException):
        importlib.import_module(app.partition(":")[0])
        for loader in importlib.metadata.entry_points(group="kernel_worker.apps"):
            if loader.module.partition(".")[0] in sys.modules:
                importlib.import_module(loader.module)


def process_main() -> None:
    """Entry of the fork server's process. In argv: the descriptor of its channel; an application to import ahead."""
    ignore_group_signals()
    die_with_parent()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    watch()  # executors look, and the application is imported here
    if sys.argv[2]:
        _import_ahead(sys.argv[2])
    try:
        hello = read_hello(channel)
        configure_logging(hello["log"])
        try:
            app = load_app(hello)
        except BaseException as error:
            channel.send(failed_frame(error))
            os._exit(1)
        if threading.active_count() > 1:
            log.warning(
                "importing the application started %d threads: forked executors do not have them",
                threading.active_count() - 1,
                extra={"action": "threads_at_import"},
            )
        channel.send(loaded_frame(app))
        _set_title(f"kw: fork server of {hello['node']}")
        flush_output()  # what the import has printed: else every child would print it again when it ends
        ForkServer(channel, hello, app).run()
    except (ChannelClosed, OSError):
        pass  # the kernel process is gone
    os._exit(0)
