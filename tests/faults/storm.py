"""Storms of kills and the verdict over them: which ids were lost, run twice without a reason, or are stuck.

The ledger lies outside of the system under test: the producer notes an id after its publish returned, the task
notes start and end. `Verdict` compares the two with what was done to the workers.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel_app import App
from kernel_app.exceptions import OperationalError
from kernel_worker.testing import Ledger, WorkerProcess, eventually

from .application import LEASE_S, MODULE, OPTIONS

SETTLED_WITHIN_S = LEASE_S + 1.0
"""A run that ended longer than this before its holder was killed was settled: it must not be repeated."""
DIE_WITHIN_S = 1.0
"""Executors of a killed worker may go on so long."""
MOVED_RUNS_WITHIN_S = 10.0
"""What a killed worker was giving back stands first in line: it runs again within this time."""

ALLOWED_DELIVERIES = "1000"
"""A storm kills holders far more often than `max_deliveries` allows; the limit has tests of its own."""


def seed() -> int:
    """From the environment variable KW_SEED, else a new one; printed, so that a failed run can be repeated."""
    value = int(os.environ.get("KW_SEED") or random.SystemRandom().randrange(10**6))
    print(f"KW_SEED={value}")
    return value


@dataclass(frozen=True, slots=True)
class Harm:
    """What excuses a second run: this holder was ended, or cut off, then."""

    node: str = ""  # every worker
    pid: int = 0  # every process of the node
    begun: float = field(default_factory=time.time)
    over: float = field(default_factory=time.time)

    def excuses(self, run: Run) -> bool:
        """Whether it can be the reason why this run's message was delivered again."""
        if (self.node and self.node != run.node) or (self.pid and self.pid != run.pid):
            return False
        return run.begun <= self.over and (run.ended is None or run.ended > self.begun - SETTLED_WITHIN_S)

    def may_have_doubled(self, run: Run) -> bool:
        """Whether this killed a whole worker that may have been giving the message of this run back."""
        return bool(self.node) and not self.pid and run.again and 0 <= run.begun - self.begun < MOVED_RUNS_WITHIN_S


@dataclass(slots=True)
class Run:
    """One start of a task."""

    key: str
    node: str
    pid: int
    begun: float
    again: bool
    """Whether the worker knew that the message had been held before."""
    ended: float | None = None


@dataclass(slots=True)
class Book:
    """The ledger's file, read on from where the last look ended."""

    path: Path
    published: set[str] = field(default_factory=set)
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    finished: set[str] = field(default_factory=set)
    _offset: int = 0
    _open: dict[tuple[int, str], Run] = field(default_factory=dict)

    def read(self) -> Book:
        """Take in what was written meanwhile."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))
        return self

    def _take(self, entry: Mapping[str, Any]) -> None:
        key = entry["id"]
        if entry["event"] == "published":
            self.published.add(key)
        elif entry["event"] == "start":
            run = Run(key, entry["node"], entry["pid"], entry["at"], entry["again"])
            self.runs[key].append(run)
            self._open[entry["pid"], key] = run
        else:
            self._open[entry["pid"], key].ended = entry["at"]
            self.finished.add(key)

    @property
    def unfinished(self) -> set[str]:
        """Published and never run to the end."""
        return self.published - self.finished

    def repeated(self) -> Iterator[Run]:
        """Runs after which there was another one of the same id."""
        for runs in self.runs.values():
            yield from runs[:-1]


class Storm:
    """A producer, several workers that are replaced when they are killed, and somebody who kills them.

    :param pools: one worker each, with two slots where the pool can.
    :param random_seed: of all choices and moments.
    :param results: the result backend, where it is not the broker.
    """

    def __init__(self, folder: Path, url: str, pools: list[str], random_seed: int, results: str = "") -> None:
        self.folder = folder
        self.url = url
        self.results = results or url
        self.pools = pools
        self.random = random.Random(random_seed)
        self.ledger = Ledger(folder / "ledger")
        self.book = Book(self.ledger.path)
        self.harms: list[Harm] = []
        self.counts: dict[str, int] = defaultdict(int)
        self.unsent = 0
        self._app = App("producer", broker_url=url, result_backend=None)
        self._births = 0
        self._keys = 0
        self._nodes: dict[int, str] = {}  # by process id of the kernel process
        self.workers = [self._start(pool) for pool in pools]
        self.ended: list[WorkerProcess] = []

    def _start(self, pool: str) -> WorkerProcess:
        self._births += 1
        name = f"w{self._births}"
        options = [*OPTIONS, "-l", "error", "-P", pool, "-b", self.url, "-n", name, "--result-backend", self.results]
        options += ["-c", "2"] if pool != "solo" else []
        worker = WorkerProcess(options, cwd=self.folder, env={"KW_MAX_DELIVERIES": ALLOWED_DELIVERIES})
        self._nodes[worker.pid] = f"kw@{name}"
        return worker

    # -- the producer

    def publish(self, count: int, seconds: float) -> None:
        """Send `count` tasks that take so long each; an id is noted when its publish has returned."""
        for _ in range(count):
            self._keys += 1
            try:
                self._app.send_task(f"{MODULE}.work", [str(self._keys), seconds])
            except OperationalError:  # the broker is away: nobody promised anything for this one
                self.unsent += 1
                continue
            self.ledger.note("published", id=str(self._keys))

    # -- harm

    def kill_worker(self) -> None:
        """SIGKILL one worker, the kernel process alone, and start another in its place."""
        seat = self.random.randrange(len(self.workers))
        victim = self.workers[seat]
        victim.signal(signal.SIGKILL)
        self._note("worker killed", Harm(self._nodes[victim.pid], over=time.time() + DIE_WITHIN_S))
        self._replace(seat)

    def kill_child(self) -> None:
        """SIGKILL one executor of a prefork worker; a whole worker when there is none just now."""
        seats = [seat for seat, pool in enumerate(self.pools) if pool == "prefork"]
        self.random.shuffle(seats)
        for seat in seats:
            worker = self.workers[seat]
            executors = sorted(pid for pid in worker.family() if _parent(pid) not in (worker.pid, os.getpid(), 0))
            if executors:
                victim = self.random.choice(executors)
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self._note("child killed", Harm(self._nodes[worker.pid], victim))
                return
        self.kill_worker()

    def kill_fork_server(self) -> None:
        """SIGKILL what forks a prefork worker's executors: they all die with it."""
        seat = self.random.choice([seat for seat, pool in enumerate(self.pools) if pool == "prefork"])
        worker = self.workers[seat]
        for pid in worker.family():
            if _parent(pid) == worker.pid:
                os.kill(pid, signal.SIGKILL)
        self._note("fork server killed", Harm(self._nodes[worker.pid], over=time.time() + DIE_WITHIN_S))

    def terminate_worker(self) -> None:
        """SIGTERM one worker: its tasks end, so this excuses nothing."""
        seat = self.random.randrange(len(self.workers))
        victim = self.workers[seat].wait_until_ready()
        self.counts["worker terminated"] += 1
        code = victim.stop()
        assert code == 0, f"exit code {code}:\n{victim.output}"
        self._replace(seat)

    def pause_worker(self, seconds: float) -> None:
        """SIGSTOP one kernel process, SIGCONT after a while: its lease may have ended meanwhile."""
        worker = self.random.choice(self.workers)
        begun = time.time()
        worker.signal(signal.SIGSTOP)
        time.sleep(seconds)
        worker.signal(signal.SIGCONT)
        # its settlements go out after it has noticed, and what it ran until then may have gone to another
        self._note("worker paused", Harm(self._nodes[worker.pid], begun=begun, over=time.time() + LEASE_S))

    def outage(self, kind: str, action: Callable[[], object]) -> None:
        """Do something to the broker or to the connections."""
        begun = time.time()
        action()
        self._note(kind, Harm(begun=begun, over=time.time() + 2 * LEASE_S))

    def _note(self, kind: str, harm: Harm) -> None:
        self.counts[kind] += 1
        self.harms.append(harm)

    def _replace(self, seat: int) -> None:
        self.ended.append(self.workers[seat])
        self.workers[seat] = self._start(self.pools[seat])

    # -- the end

    def wait_until_finished(self, within_s: float) -> None:
        """Wait until every published id has run to its end.

        :raises AssertionError: with the ids that did not.
        """

        def finished() -> bool:
            if self.book.read().unfinished:
                time.sleep(0.05)  # reading the ledger must not take the processor from the workers
            return not self.book.unfinished

        eventually(finished, within_s=within_s, message=self._missing)

    def _missing(self) -> str:
        keys = sorted(self.book.unfinished, key=int)
        shown = [(key, self.book.runs.get(key)) for key in keys[:20]]
        outputs = "\n".join(worker.output[-2000:] for worker in self.workers)
        return f"{len(keys)} ids without an end: {shown}\n{outputs}"

    def unexcused(self) -> list[tuple[Run, ...]]:
        """Repeated runs that nothing that was done is a reason for.

        On RabbitMQ a message is given back by publishing it again and then acknowledging it. A holder that is killed in
        between, without having begun it, leaves it there twice: both are known to have been held before.
        """
        moves_in_two_steps = self.url.startswith("amqp")
        return [
            tuple(self.book.runs[run.key])
            for run in self.book.repeated()
            if not any(harm.excuses(run) for harm in self.harms)
            and not (
                moves_in_two_steps
                and self.book.runs[run.key][-1].again
                and any(harm.may_have_doubled(run) for harm in self.harms)
            )
        ]

    def stop(self) -> list[int]:
        """SIGTERM all, when they are up; their exit codes."""
        for worker in self.workers:
            worker.wait_until_ready()
        for worker in self.workers:
            worker.signal(signal.SIGTERM)
        return [worker.wait(within_s=30) for worker in self.workers]

    def survivors(self) -> set[int]:
        """Processes of workers that have ended."""
        return {pid for worker in self.ended for pid in worker.family()}

    def close(self) -> None:
        """Leave nothing behind."""
        for worker in [*self.workers, *self.ended]:
            worker.kill()
        self._app.close()

    def summary(self) -> str:
        """One line of figures."""
        book = self.book
        runs = sum(map(len, book.runs.values()))
        harms = ", ".join(f"{count} × {kind}" for kind, count in sorted(self.counts.items()))
        return (
            f"{len(book.published)} published, {self.unsent} refused, {runs} runs, "
            f"{sum(len(each) > 1 for each in book.runs.values())} ids run again; {harms}"
        )


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])
