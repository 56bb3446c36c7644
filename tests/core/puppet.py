"""Executors that the test plays: real socket pairs and boards, and nobody behind them but the test."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kernel_worker.bus import Bus
from kernel_worker.dispatcher import Dispatcher
from kernel_worker.drivers import Layout
from kernel_worker.loop import Loop
from kernel_worker.request import Request
from kernel_worker.spawn import Birth, Spawner, SpawnEvents
from kernel_worker.supervisor import Supervisor
from kernel_worker.testing import envelope
from kernel_worker.types import AppInfo, Delivery, Outcome, OutcomeKind, Settlement, TaskInfo, Verdict
from kernel_worker.wire import CONCLUDE_HEAD, DONE_RECORD, RUN_HEAD, Channel, Frame, pack, pack_json

from .toy_app import hello

TASKS = {
    "short": TaskInfo("short"),
    "long": TaskInfo("long"),
    "early": TaskInfo("early", acks_late=False),
    "limited": TaskInfo("limited", time_limit=30.0, soft_time_limit=20.0),
    "patient": TaskInfo("patient", acks_on_timeout=False),
}


class Puppet:
    """One executor."""

    def __init__(self, birth: Birth, events: SpawnEvents) -> None:
        birth.sock.setblocking(False)
        self.key = birth.key
        self.channel = Channel(birth.sock)
        self.board = birth.board
        self.orders: list[int] = []
        """Kinds of frames that came, beside RUN and CONCLUDE."""
        self._events = events
        self._jobs: list[tuple[int, str]] = []

    # -- what it was told

    def _receive(self) -> None:
        while frames := self.channel.receive():
            for kind, payload in frames:
                if kind in (Frame.RUN, Frame.CONCLUDE):
                    self._jobs.append(_job(kind, payload))
                else:
                    self.orders.append(kind)

    @property
    def jobs(self) -> list[tuple[int, str]]:
        """Tag and task id (for CONCLUDE: "<kind>:<id>") of what it was given and has not ended."""
        self._receive()
        return list(self._jobs)

    @property
    def ids(self) -> list[str]:
        """The task ids of `jobs`."""
        return [task_id for _, task_id in self.jobs]

    def tag_of(self, task_id: str) -> int:
        """The tag under which it was given this task."""
        return next(tag for tag, known in self.jobs if known == task_id)

    def told(self, order: Frame) -> bool:
        """Whether such a frame came."""
        self._receive()
        return order in self.orders

    # -- what it does

    def come_up(self) -> None:
        """Report UP."""
        self.channel.send(pack_json(Frame.UP, {"pid": 1000 + self.key}))

    def start(self, task_id: str, done_through: int = 0) -> None:
        """Begin to run a task: nobody is told, the board shows it."""
        self.board.start(0, self.tag_of(task_id), time.monotonic(), done_through)

    def rest(self, done_through: int = 0) -> None:
        """Nothing runs; all up to `done_through` succeeded."""
        self.board.idle(0, done_through)

    def succeed(self, *task_ids: str, runtime: float = 0.0) -> None:
        """Report success."""
        records = [DONE_RECORD.pack(self._end(task_id), 0, runtime) for task_id in task_ids]
        self.channel.send(pack(Frame.DONE, b"".join(records)))

    def end(self, task_id: str, kind: OutcomeKind, error: str = "", **more: Any) -> None:
        """Report any other end."""
        value = {"tag": self._end(task_id), "kind": int(kind), "runtime": 0.0, "error": error}
        value |= {"requeue": False, "until": 0.0, **more}
        self.channel.send(pack_json(Frame.ENDED, value))

    def give_back(self, *task_ids: str) -> None:
        """Report that these were not started."""
        self.channel.send(pack_json(Frame.RETURNED, [self._end(task_id) for task_id in task_ids]))

    def tell_unstored(self, count: int) -> None:
        """Report that so many of the first jobs have ended and wait for the result store."""
        self.channel.send(pack_json(Frame.UNSTORED, [tag for tag, _ in self.jobs[:count]]))

    def die(self, status: int = -signal.SIGKILL) -> None:
        """End; what was sent before is still read."""
        self.channel.close()
        self._events.on_exited(self.key, status)

    def _end(self, task_id: str) -> int:
        tag = self.tag_of(task_id)
        self._jobs.remove((tag, task_id))
        return tag


def _job(kind: int, payload: bytes) -> tuple[int, str]:
    start, prefix = 0, ""
    if kind == Frame.CONCLUDE:
        outcome, size = CONCLUDE_HEAD.unpack_from(payload)
        start = CONCLUDE_HEAD.size + size
        prefix = f"{OutcomeKind(outcome).name}:"
    tag, _, _, _, _, queue_size, raw_size = RUN_HEAD.unpack_from(payload, start)
    at = start + RUN_HEAD.size + queue_size
    return tag, prefix + json.loads(payload[at : at + raw_size])["headers"].get("id", "?")


class PuppetSpawner(Spawner):
    """Makes puppets. A killed one is dead at once, and its exit is reported in the next turn."""

    preloads = True

    def __init__(self, loop: Loop, events: SpawnEvents, tasks: Mapping[str, TaskInfo]) -> None:
        super().__init__(loop, {}, events)
        self.puppets: list[Puppet] = []
        self.killed: list[int] = []
        self._tasks = tasks

    def start(self) -> None:
        self.events.on_loaded(asdict(AppInfo("puppet", "toy", self._tasks)))

    def spawn(self, birth: Birth) -> None:
        self.puppets.append(Puppet(birth, self.events))
        self.events.on_born(birth.key, 1000 + birth.key)

    def kill(self, key: int, number: int) -> None:
        self.killed.append(key)
        self.loop.post(self.events.on_exited, key, -number)

    def stop(self) -> None:
        for puppet in self.puppets:
            puppet.channel.close()


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


class Stage:
    """A dispatcher and a supervisor on a loop that the test turns; the broker is two lists."""

    def __init__(
        self,
        executors: int = 1,
        *,
        slots: int = 1,
        up: bool = True,
        tasks: Mapping[str, TaskInfo] = TASKS,
        **options: Any,
    ) -> None:
        self.loop = Loop()
        self.bus = Bus()
        self.supervisor = Supervisor(self.loop)
        self.dispatcher = Dispatcher(self.loop, self.supervisor, self.bus, **options)
        self.settlements: list[Settlement] = []
        self.marks: list[Settlement] = []
        """What waits to be counted; `count_marks` does it."""
        self.allowances: list[tuple[int, int]] = []
        self.dispatcher.settle_batch = self.settlements.extend
        self.dispatcher.mark = self.marks.extend
        self.dispatcher.allow = lambda total, batch: self.allowances.append((total, batch))
        self.spawner = PuppetSpawner(self.loop, self.supervisor, tasks)
        self.supervisor.start_loading(self.spawner, hello())
        self.dispatcher.begin(tasks)
        self.supervisor.resize(Layout(executors, slots))
        if up:
            for puppet in self.puppets:
                puppet.come_up()
            self.turn()

    @property
    def puppets(self) -> list[Puppet]:
        return self.spawner.puppets

    def turn(self, count: int = 3) -> None:
        """Let the loop do what it can do now: read, run, write."""
        for _ in range(count):
            self.loop.turn(0.0)

    def deliver(self, *deliveries: Delivery, more: bool = False) -> None:
        """A batch from the broker, and the turns it needs."""
        self.loop.post(self.dispatcher.on_deliveries, list(deliveries), more)
        self.turn()

    def count_marks(self) -> list[str]:
        """Do what the broker does with marks; the ids of the tasks."""
        marks, self.marks[:] = list(self.marks), []
        self.loop.post(self.dispatcher.on_marked, marks)
        self.turn()
        return [mark.delivery.headers["id"] for mark in marks]

    def learn(self, task: str, runtime: float, puppet: int = 0) -> None:
        """Have a task measured: one run of it, on an idle executor."""
        task_id = f"measured {task}"
        self.deliver(delivery(task, task_id))
        self.puppets[puppet].succeed(task_id, runtime=runtime)
        self.turn()
        self.settlements.clear()

    def verdicts(self) -> list[tuple[str, Verdict]]:
        """Task id and verdict of every settlement so far, in order."""
        return [(each.delivery.headers.get("id", "?"), each.verdict) for each in self.settlements]

    @property
    def allowed(self) -> int:
        """How many deliveries may be fetched in total since the start."""
        return self.allowances[-1][0] if self.allowances else 0

    def close(self) -> None:
        self.supervisor.close()
        for handle in list(self.supervisor.executors.values()):
            handle.channel.close()
            handle.board.close()
        self.spawner.stop()
        self.loop.close()


MakeStage = Callable[..., Stage]


def delivery(
    task: str = "short",
    task_id: str = "a",
    *,
    queue: str = "celery",
    attempts: int = 0,
    recovered: bool = False,
    returns: int = 0,
    **headers: Any,
) -> Delivery:
    """A delivery of a well-formed message; `headers` over those a client writes."""
    raw = envelope(task, task_id=task_id, queue=queue, headers=headers)
    return Delivery(
        queue,
        raw,
        json.loads(raw)["headers"],
        receipt=task_id,
        attempts=attempts,
        recovered=recovered,
        returns=returns,
    )


def deliveries(task: str, task_ids: Iterable[object]) -> list[Delivery]:
    """One delivery per id."""
    return [delivery(task, str(task_id)) for task_id in task_ids]


def told(stage: Stage, kinds: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Subscribe to events; the list gets (kind, task id, outcome) as they happen. Freezes the bus."""
    heard: list[tuple[str, str, str]] = []

    def listener(name: str) -> Any:
        def listen(request: Request, outcome: Outcome | None) -> None:
            heard.append((name, request.id, outcome.kind.name if outcome else ""))

        return listen

    for kind in kinds:
        stage.bus.on(kind, listener(kind.name))
    stage.bus.freeze()
    return heard
