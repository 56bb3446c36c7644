"""The kernel's end of the fork server. Kernel process, loop thread."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import time
from typing import Any

from kernel_worker.loop import Loop
from kernel_worker.spawn import Birth, Spawner, SpawnEvents, hello_frame, watch_exit
from kernel_worker.wire import Channel, ChannelClosed, Frame, pack_json

from .early import start_interpreter

log = logging.getLogger("kernel_pool_prefork")

RELOAD_S = 60.0
"""A fork server that takes the place of a dead one has this long to import the application, and twice what the first
import took; then it is taken for hung. The first one may take any time: `--startup-timeout` bounds it."""
MAX_ASKED = 16
"""Executors to be asked for at once; forking one takes a few milliseconds."""


class ForkServerSpawner(Spawner):
    """Executors are forked by a process that was exec'ed for nothing else.

    The kernel process has threads and must not fork; the fork server has one thread, holds the imported
    application, and no connection. When it dies its children die with it, and it is started again for the
    next executor that is needed.
    """

    preloads = True

    def __init__(self, loop: Loop, hello: dict[str, Any], events: SpawnEvents) -> None:
        super().__init__(loop, hello, events)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._alive: set[int] = set()
        self._waiting: dict[int, Birth] = {}
        self._asked: set[int] = set()
        """Executors asked for and not answered yet."""
        self._stopping = False
        self._started_at = 0.0
        self._load_s: float | None = None
        """How long the first import took."""
        self._is_loaded = False

    def start(self) -> None:
        self._started_at, self._is_loaded = time.monotonic(), False
        self._process, sock = self.prestarted or start_interpreter()
        self.prestarted = None
        self._channel = Channel(sock)
        self.loop.add_reader(sock, self._read)
        watch_exit(self.loop, self._process, self._server_exited, self._process)
        if self._load_s is not None:
            self.loop.call_later(RELOAD_S + 2 * self._load_s, self._give_up_loading, self._process)
        try:
            self._channel.send(hello_frame(self.hello))
        except ChannelClosed:
            pass  # it has died already: its exit is about to be noticed

    def spawn(self, birth: Birth) -> None:
        if self._channel is None:
            self.start()
        assert self._channel is not None
        self._alive.add(birth.key)
        self._waiting[birth.key] = birth
        self._ask()

    def _ask(self) -> None:
        """Ask for executors, few at a time: who sends many requests without reading the answers blocks for ever
        with a peer that does the same."""
        while self._waiting and len(self._asked) < MAX_ASKED and self._channel and not self._channel.out_bytes:
            birth = self._waiting.pop(next(iter(self._waiting)))
            frame = pack_json(Frame.FORK, {"key": birth.key, "slots": birth.slots, "index": birth.index})
            try:
                socket.send_fds(self._channel.sock, [frame], [birth.sock.fileno(), birth.board.fd])
            except (BrokenPipeError, ConnectionResetError):
                pass  # the fork server has died: its exit is about to be noticed, and reports every child
            except OSError:  # no descriptor can be sent now: this executor will not come
                self._alive.discard(birth.key)
                raise
            self._asked.add(birth.key)
            birth.sock.close()

    def kill(self, key: int, number: int) -> None:
        if (birth := self._waiting.pop(key, None)) is not None:
            birth.sock.close()
            self._alive.discard(key)
            self.loop.post(self.events.on_exited, key, -number)
        elif self._channel is not None and key in self._alive:
            self._channel.queue(pack_json(Frame.KILL, {"key": key, "signal": number}))
            self._flush()

    def _flush(self) -> None:
        if self._channel is None:
            return
        try:
            done = self._channel.flush()
            self.loop.set_writer(self._channel.sock, None if done else self._flush)
        except (ChannelClosed, KeyError):
            return  # it has died, and its children with it
        if done:
            self._ask()

    def stop(self) -> None:
        self._stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(5)
        self._drop_channel()
        self._forget_births()

    def _read(self) -> None:
        assert self._channel is not None
        try:
            frames = self._channel.receive(socket.MSG_DONTWAIT)
        except ChannelClosed:
            # It is about to be reported dead. Until then it stays the one that is asked: a second one started now
            # would take over before the first one's executors were accounted for.
            self.loop.remove(self._channel.sock)
            return
        for kind, payload in frames:
            value = json.loads(payload)
            if kind == Frame.LOADED:
                self._is_loaded = True
                self._load_s = self._load_s or time.monotonic() - self._started_at
                self.events.on_loaded(value)
            elif kind == Frame.FAILED:
                self.events.on_failed(value)
            elif kind == Frame.FORKED:
                self._asked.discard(value["key"])
                self.events.on_born(value["key"], value["pid"])
            elif kind == Frame.EXITED and value["key"] in self._alive:
                self._asked.discard(value["key"])
                self._alive.discard(value["key"])
                self.events.on_exited(value["key"], value["status"])
        self._ask()

    def _give_up_loading(self, process: subprocess.Popen[bytes]) -> None:
        if process is self._process and not self._is_loaded:
            log.error(
                "the fork server has not imported the application again in %.0f s: it is killed",
                time.monotonic() - self._started_at,
                extra={"action": "fork_server_hung", "pid": process.pid},
            )
            process.send_signal(signal.SIGKILL)

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self.loop.remove(self._channel.sock)
            self._channel.close()
            self._channel = None

    def _forget_births(self) -> None:
        for birth in self._waiting.values():
            birth.sock.close()
        self._waiting.clear()
        self._asked.clear()

    def _server_exited(self, process: subprocess.Popen[bytes], status: int) -> None:
        if process is not self._process:
            return
        if self._channel is not None:
            self._read()  # a last report may still be in the socket
        self._drop_channel()
        self._process = None
        if self._stopping:
            return
        self._forget_births()
        alive, self._alive = self._alive, set()
        for key in alive:
            self.events.on_exited(key, -signal.SIGKILL)
        if not alive:
            self.events.on_failed({"text": f"the fork server ended with status {status}", "kind": "internal"})
