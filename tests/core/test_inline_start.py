"""The main thread as executor, and a worker that ends before it has begun to be one."""

from __future__ import annotations

import queue
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from kernel_worker import executor_main
from kernel_worker.board import Board
from kernel_worker.loop import Loop
from kernel_worker.spawn import Birth, InlineSpawner
from kernel_worker.worker import Worker


class LateQueue(queue.SimpleQueue[Any]):
    """Its reader is kept from the processor until all is in it."""

    is_over = False

    def get(self, *args: Any, **kwargs: Any) -> Any:
        while self.qsize() < 2 and not self.is_over:
            time.sleep(0.001)
        self.is_over = True
        return super().get(*args, **kwargs)


def test_an_executor_that_is_born_when_the_worker_ends_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cause: a stop signal came between the birth and the main thread's taking it up: nobody read or closed its channel
    any more, and it waited for its first frame for ever."""
    begun: list[Any] = []
    monkeypatch.setattr(executor_main, "main", lambda *args: begun.append(args))
    events: Any = SimpleNamespace(on_exited=lambda key, status: None)
    loop = Loop()
    ours, theirs = socket.socketpair()
    board = Board.create(1)
    worker: Any = Worker.__new__(Worker)
    worker._births, worker._serves_inline, worker.exit_code = LateQueue(), False, 0
    worker._spawner = InlineSpawner(loop, {}, events)
    worker._live = lambda: worker._births.put(Birth(1, theirs, board, 1))
    try:
        assert worker._run_inline() == 0
        assert begun == []
    finally:
        ours.close()
        board.close()
        loop.close()
