"""A loop, a dispatcher, a supervisor and real executors of a pool; the broker is two lists.

The public seam of a spawner is what becomes of deliveries, so this is what tests look at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from kernel_worker.bus import Bus
from kernel_worker.dispatcher import Dispatcher
from kernel_worker.drivers import Layout
from kernel_worker.loop import Loop
from kernel_worker.spawn import Spawner
from kernel_worker.supervisor import Supervisor
from kernel_worker.testing import envelope
from kernel_worker.types import AppInfo, Delivery, Settlement

from .toy_app import hello

WITHIN_S = 30.0


class LivePool:
    """`start`, `run` deliveries, look at `settlements`, `close`."""

    def __init__(self, spawner: type[Spawner], **options: Any) -> None:
        self.loop = Loop()
        self.supervisor = Supervisor(self.loop)
        self.dispatcher = Dispatcher(self.loop, self.supervisor, Bus(), on_down=self._down, **options)
        self.settlements: list[Settlement] = []
        self.ends: list[tuple[int, str]] = []
        """Pid and reason of each executor that has ended."""
        self.dispatcher.settle_batch = self.settlements.extend
        self._spawner_class = spawner

    def _down(self, handle: Any, reason: str) -> None:
        self.ends.append((handle.pid, reason))

    def begin(self, **options: Any) -> None:
        """Have an application loaded; see `toy_app.hello` for the options, others go into the HELLO as they are."""
        known = {name: options.pop(name) for name in ("app", "results", "plugins", "level") if name in options}
        value = {**hello(**known), **options}
        self.supervisor.start_loading(self._spawner_class(self.loop, value, self.supervisor), value)

    def start(self, processes: int, **options: Any) -> None:
        """Have so many executors up."""
        self.begin(**options)
        self.until(lambda: self.supervisor.app or self.supervisor.failure)
        assert self.supervisor.failure is None, self.supervisor.failure
        self.dispatcher.begin(self.app.tasks)
        self.supervisor.resize(Layout(processes, 1))
        self.until(lambda: self.supervisor.up_count == processes)

    @property
    def app(self) -> AppInfo:
        assert self.supervisor.app is not None
        return self.supervisor.app

    @property
    def pids(self) -> list[int]:
        """Process ids of the executors that are up."""
        return [handle.pid for handle in self.supervisor.executors.values() if handle.up]

    def run(self, *deliveries: Delivery) -> None:
        """Hand over a batch."""
        self.loop.post(self.dispatcher.on_deliveries, list(deliveries))

    def until(self, condition: Callable[[], object]) -> None:
        """Turn the loop until something holds."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            is_late = time.monotonic() > deadline  # asked first: the last look is one after the deadline
            if condition():
                return
            assert not is_late, f"not within {WITHIN_S:g} s"
            self.loop.turn(0.005)  # short: what tasks write to files wakes no loop

    def wait_for_verdicts(self, count: int) -> dict[str, str]:
        """Verdicts by task id, when there are so many."""
        self.until(lambda: len(self.settlements) >= count)
        return {each.delivery.headers["id"]: each.verdict.value for each in self.settlements}

    def close(self) -> None:
        """Stop everything at once."""
        for handle in list(self.supervisor.executors.values()):
            self.supervisor.kill(handle, "the test is over")
        self.supervisor.stop(time.monotonic() + 2.0)
        self.loop.close()


def call(task: str, task_id: str, *args: object, attempts: int = 0, **headers: Any) -> Delivery:
    """A delivery of a task with arguments."""
    raw = envelope(task, args, task_id=task_id, headers=headers)
    return Delivery("celery", raw, json.loads(raw)["headers"], receipt=task_id, attempts=attempts)
