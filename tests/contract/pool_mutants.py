"""A correct pool without a fork server, and deliberately wrong ones made from it."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import ClassVar

from kernel_worker import Layout, Pool, PoolCapability, executor_main, interrupting
from kernel_worker.executor import BlockingRuntime, Executor
from kernel_worker.minder import Minder
from kernel_worker.spawn import Birth, ExecSpawner, python_command, watch_exit


@dataclass(frozen=True, slots=True)
class NoOptions:
    """These pools have none."""


class ExecPool(Pool):
    """The correct one: a fresh Python process per slot."""

    name = "exec"
    Options = NoOptions
    capabilities: ClassVar[frozenset[PoolCapability]] = frozenset(PoolCapability)


class OneAtATime(ExecPool):
    """Declares several slots and has one."""

    name = "one-at-a-time"

    def layout(self, concurrency: int) -> Layout:
        return Layout(processes=1, slots=1)


class NoSoftLimit(ExecPool):
    """Declares soft limits and raises nothing."""

    name = "no-soft-limit"
    runtime = f"{__name__}:DeafRuntime"


class RaisesAnywhere(ExecPool):
    """Raises limits when the task is in the middle of a log handler."""

    name = "raises-anywhere"
    runtime = f"{__name__}:ImpatientRuntime"


class RunsTwice(ExecPool):
    """Runs each job again."""

    name = "runs-twice"
    runtime = f"{__name__}:TwiceRuntime"


class StopsLate(ExecPool):
    """Its executors take their time to end."""

    name = "stops-late"
    runtime = f"{__name__}:LateRuntime"


class NeverReplaces(ExecPool):
    """Starts executors once."""

    name = "never-replaces"
    spawner = f"{__name__}:OnceSpawner"


class LeavesOrphans(ExecPool):
    """Executors live on without their worker until their task has ended."""

    name = "leaves-orphans"
    spawner = f"{__name__}:OrphanSpawner"


class DiesWithTheGroup(ExecPool):
    """A signal to the process group ends the executors, and with them the running tasks."""

    name = "dies-with-the-group"
    spawner = f"{__name__}:MortalSpawner"


class DeafRuntime(BlockingRuntime):
    def cancel(self, tag: int, error: BaseException) -> bool:
        return True


class ImpatientRuntime(BlockingRuntime):
    def cancel(self, tag: int, error: BaseException) -> bool:
        interrupting.Aim.must_wait = lambda aim, frame: not _is_in_a_handler(frame)  # type: ignore[method-assign]
        return super().cancel(tag, error)


def _is_in_a_handler(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "emit":
        frame = frame.f_back
    return frame is not None


class TwiceRuntime(BlockingRuntime):
    def serve(self, executor: Executor) -> None:
        while (job := executor.next()) is not None:
            executor.app.run(job)
            executor.execute(job, 0)


class LateRuntime(BlockingRuntime):
    def serve(self, executor: Executor) -> None:
        super().serve(executor)
        time.sleep(8)


class OnceSpawner(ExecSpawner):
    dead = False

    def _exited(self, key: int, status: int) -> None:
        self.dead = True
        super()._exited(key, status)

    def spawn(self, birth: Birth) -> None:
        if not self.dead:
            super().spawn(birth)


class EntrySpawner(ExecSpawner):
    """Starts executors by an entry of its own."""

    entry: ClassVar[str]

    def spawn(self, birth: Birth) -> None:
        fds = (birth.sock.fileno(), birth.board.fd)
        process = subprocess.Popen(
            python_command(self.entry, *fds, birth.slots), pass_fds=fds, stdin=subprocess.DEVNULL
        )
        birth.sock.close()
        self._processes[birth.key] = process
        watch_exit(self.loop, process, self._exited, birth.key)
        self.events.on_born(birth.key, process.pid)


class OrphanSpawner(EntrySpawner):
    entry = f"{__name__}:orphan_main"


class MortalSpawner(EntrySpawner):
    entry = f"{__name__}:mortal_main"


def _nothing(*_: object) -> None:
    pass


def orphan_main() -> None:
    executor_main.die_with_parent = _nothing
    Minder.start = _nothing  # type: ignore[method-assign]
    executor_main.process_main()


def mortal_main() -> None:
    executor_main.ignore_group_signals = _nothing
    executor_main.process_main()


MUTANTS: tuple[type[Pool], ...] = (
    OneAtATime,
    NoSoftLimit,
    RaisesAnywhere,
    RunsTwice,
    StopsLate,
    NeverReplaces,
    LeavesOrphans,
    DiesWithTheGroup,
)


def install(folder: Path) -> dict[str, str]:
    """Make these pools known to `kw` as an installed distribution would; the environment that does it."""
    about = folder / "kernel_pool_mutants-0.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kernel-pool-mutants\nVersion: 0.1\n")
    lines = [f"{pool.name} = {__name__}:{pool.__name__}\n" for pool in (ExecPool, *MUTANTS)]
    (about / "entry_points.txt").write_text("[kernel_worker.pools]\n" + "".join(lines))
    root = Path(__file__).resolve().parents[2]
    return {"PYTHONPATH": f"{folder}:{root}"}
