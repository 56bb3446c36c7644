"""An executor in the test's own process that is driven by hand: no thread serves it, no minder minds it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable

from kernel_worker.board import Board
from kernel_worker.drivers import Call, LoadedApp
from kernel_worker.executor import BlockingRuntime, Executor
from kernel_worker.types import AppInfo, Job, Outcome, StoredResult
from kernel_worker.wire import Channel, Frame, pack

from .executor_process import run_payload


class Reader(LoadedApp):
    """Notes what it reads, and runs nothing."""

    info = AppInfo("reader", "test")

    def __init__(self) -> None:
        self.seen: list[int] = []

    def setup(self, node: str, wrap: Callable[[str, Call], Call]) -> None:
        raise AssertionError("it runs nothing")

    def read(self, job: Job) -> Job:
        self.seen.append(job.tag)
        job.text = "read"
        return job

    def run(self, job: Job) -> Outcome:
        raise AssertionError("it runs nothing")

    def conclude(self, job: Job, kind: int, error: str) -> StoredResult | None:
        raise AssertionError("it runs nothing")

    @property
    def results(self) -> None:
        return None


class DrivenExecutor:
    """An executor that is driven by hand, and the kernel's end of its channel."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.kernel, self.channel, self.board = Channel(ours), Channel(theirs), Board.create(1)
        self.app = Reader()
        self.executor = Executor(self.channel, self.board, BlockingRuntime(), self.app)

    def send(self, *tags: int, also: bytes = b"") -> None:
        self.kernel.send(b"".join(pack(Frame.RUN, run_payload(tag, b"{}")) for tag in tags) + also)

    def next(self) -> int:
        job = self.executor.next()
        assert job is not None
        return job.tag

    def said(self) -> list[tuple[int, object]]:
        return [(kind, json.loads(payload)) for kind, payload in self.kernel.receive()]

    def close(self) -> None:
        self.kernel.close()
        self.channel.close()
        self.board.close()
        for fd in (self.executor.minder._wake_r, self.executor.minder._wake_w):
            os.close(fd)
