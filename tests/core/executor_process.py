"""A real executor process, with the test on the kernel's end of the socket pair."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernel_worker.board import Board
from kernel_worker.spawn import hello_frame, python_command
from kernel_worker.testing import envelope
from kernel_worker.types import OutcomeKind
from kernel_worker.wire import CONCLUDE_HEAD, DONE_RECORD, RUN_HEAD, Channel, ChannelClosed, Frame, pack, pack_json

from .toy_app import hello

WITHIN_S = 30.0
KEEPS_ALL = "minder.Minder._give_back_what_waits = lambda self: None"
"""A change: nothing is given back, however slow the machine is."""


def run_payload(tag: int, raw: bytes, *, hard: float = 0.0, soft: float = 0.0, queue: str = "celery") -> bytes:
    """The payload of a RUN frame."""
    name = queue.encode()
    return RUN_HEAD.pack(tag, hard, soft, 0, 0, len(name), len(raw)) + name + raw


class ExecutorProcess:
    """An exec'ed executor.

    :param slots: how many it has; more than one needs a runtime that has them (`start(runtime=...)`).
    :param change: code that runs in it first, with the modules `executor`, `minder` and `reporting` of the kernel at hand: for
        their constants.
    """

    def __init__(self, change: str = "", slots: int = 1) -> None:
        ours, theirs = socket.socketpair()
        self.board = Board.create(slots)
        fds = (theirs.fileno(), self.board.fd)
        command = python_command("kernel_worker.executor_main:process_main", *fds, slots)
        if change:
            command[3] = (
                f"from kernel_worker import executor, executor_main, minder, reporting; {change}; executor_main.process_main()"
            )
        self.process = subprocess.Popen(
            command,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.channel = Channel(ours)
        self._frames: list[tuple[int, bytes]] = []
        self._runs: dict[int, bytes] = {}

    def start(self, **options: Any) -> dict[str, Any]:
        """HELLO until UP; what LOADED said."""
        self.channel.send(hello_frame(hello(**options)))
        loaded = json.loads(self.frame(Frame.LOADED))
        self.frame(Frame.UP)
        return loaded  # type: ignore[no-any-return]

    # -- to the executor

    def run(self, tag: int, task: str, *args: Any, soft: float = 0.0, task_id: str = "") -> None:
        """One RUN frame."""
        self.channel.send(self.packed(tag, task, *args, soft=soft, task_id=task_id))

    def packed(self, tag: int, task: str, *args: Any, soft: float = 0.0, task_id: str = "") -> bytes:
        """A RUN frame, to be sent together with others."""
        raw = envelope(task, args, task_id=task_id or f"id-{tag}")
        self._runs[tag] = pack(Frame.RUN, run_payload(tag, raw, soft=soft))
        return self._runs[tag]

    def run_again(self) -> None:
        """Send again what was given back, as the kernel does (under other tags): on a busy machine what could run is given back."""
        for frame in [frame for frame in self._frames if frame[0] == Frame.RETURNED]:
            self._frames.remove(frame)
            self.channel.send(b"".join(self._runs[tag] for tag in json.loads(frame[1])))

    def conclude(self, tag: int, kind: OutcomeKind, text: str, task: str = "toy.noop") -> None:
        """One CONCLUDE frame."""
        encoded = text.encode()
        payload = run_payload(tag, envelope(task, task_id=f"id-{tag}"))
        self.channel.send(pack(Frame.CONCLUDE, CONCLUDE_HEAD.pack(kind, len(encoded)) + encoded + payload))

    def order(self, kind: Frame, value: Any = None) -> None:
        """Any other frame."""
        self.channel.send(pack(kind) if value is None else pack_json(kind, value))

    # -- from the executor

    def frames(self, within_s: float) -> bool:
        """Read what comes within that time; whether anything did."""
        if not select.select([self.channel.sock], [], [], within_s)[0]:
            return False
        self._frames += self.channel.receive()
        return True

    def frame(self, *kinds: Frame) -> bytes:
        """The payload of the next frame of one of these kinds; others before it are kept."""
        return self.next_frame(*kinds)[1]

    def next_frame(self, *kinds: Frame) -> tuple[int, bytes]:
        """Kind and payload of the next frame of one of these kinds; others before it are kept."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            if Frame.RETURNED not in kinds:
                self.run_again()
            for index, (kind, payload) in enumerate(self._frames):
                if kind in kinds:
                    del self._frames[index]
                    return kind, payload
            try:
                assert self.frames(max(0.0, deadline - time.monotonic())), f"no {kinds} came, only {self._frames}"
            except ChannelClosed:
                raise AssertionError(f"it ended with {self.process.wait(WITHIN_S)}: {self.errors()}") from None

    def done(self, count: int = 1) -> list[int]:
        """Tags of the next `count` requests that succeeded."""
        tags: list[int] = []
        while len(tags) < count:
            tags += [tag for tag, _, _ in DONE_RECORD.iter_unpack(self.frame(Frame.DONE))]
        return tags

    def ended(self) -> dict[str, Any]:
        """The next ENDED."""
        return json.loads(self.frame(Frame.ENDED))  # type: ignore[no-any-return]

    def ends(self) -> dict[int, str]:
        """What is told next of any requests: their errors by tag, "" for those that succeeded or were given back."""
        assert self._frames or self.frames(WITHIN_S)
        ends: dict[int, str] = {}
        for kind, payload in self._frames:
            if kind == Frame.DONE:
                ends |= {tag: "" for tag, _, _ in DONE_RECORD.iter_unpack(payload)}
            elif kind == Frame.ENDED:
                value = json.loads(payload)
                ends[value["tag"]] = value["error"]
            elif kind == Frame.RETURNED:
                ends |= dict.fromkeys(json.loads(payload), "")
        self._frames.clear()
        return ends

    def reported(self, within_s: float) -> bool:
        """Whether an outcome was reported, or is within that time."""
        deadline = time.monotonic() + within_s
        while self.frames(max(0.0, deadline - time.monotonic())):
            pass
        return any(kind in (Frame.DONE, Frame.ENDED) for kind, _ in self._frames)

    @property
    def is_silent(self) -> bool:
        """Whether it is alive and everything it said was asked for."""
        try:
            return self.process.poll() is None and not self.frames(0) and not self._frames
        except ChannelClosed:
            return False

    def wait(self) -> int:
        """Wait for its end; the exit status."""
        return self.process.wait(WITHIN_S)

    def errors(self) -> str:
        """What it wrote to stderr. Waits for its end."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        """Kill it and close everything. Idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(WITHIN_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.channel.close()
        self.board.close()


class SharedExecutors:
    """Executors by result backend; one that has ended, or has said what nobody asked for, is replaced."""

    def __init__(self) -> None:
        self._executors: dict[str, ExecutorProcess] = {}

    def get(self, results: str) -> ExecutorProcess:
        """One that is up and silent."""
        executor = self._executors.get(results)
        if executor is not None and executor.is_silent:
            return executor
        if executor is not None:
            executor.close()
        executor = self._executors[results] = ExecutorProcess()
        executor.start(results=results)
        return executor

    def close(self) -> None:
        """End them all."""
        for executor in self._executors.values():
            executor.close()


@contextmanager
def executor_process(*, change: str = "", slots: int = 1, **options: Any) -> Iterator[ExecutorProcess]:
    """An executor that is up; see `toy_app.hello` for the options."""
    executor = ExecutorProcess(change, slots)
    try:
        executor.start(**options)
        yield executor
    finally:
        executor.close()


def open_gate(path: Path) -> None:
    """Let the tasks go that wait for it."""
    path.touch()
