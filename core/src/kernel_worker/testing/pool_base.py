"""How the pool suites run a worker and send to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from ..drivers import Pool
from ..types import PoolCapability
from .contract import Contract
from .ledger import Ledger
from .pool_app import MODULE, Release, ledger_in, written_app
from .processes import WorkerProcess
from .waiting import eventually

StartWorker = Callable[..., WorkerProcess]
"""`start_worker(*arguments, concurrency=N, env={})` starts `kw run` with the pool under test and waits until it is
ready."""

DONE_S = 15.0  # for a task that takes no time: generous, machines that run tests are busy
LEASE_S = 2.0


@dataclass(frozen=True)
class Shared:
    """A running worker, its application's module for sending, and the ledger of its tasks."""

    app: ModuleType
    worker: WorkerProcess
    ledger: Ledger


class PoolSuite(Contract, suite=True):
    """Fixtures of all pool tests, and what a plugin tells about its pool.

    :cvar driver: the pool's class.
    :cvar arguments: further arguments of `kw run`.
    :cvar environment: variables added to the worker's environment.
    """

    driver: ClassVar[type[Pool]]
    arguments: ClassVar[Sequence[str]] = ()
    environment: ClassVar[Mapping[str, str]] = {}

    def declared_capabilities(self, request: pytest.FixtureRequest) -> frozenset[PoolCapability]:
        return self.driver.capabilities

    @property
    def slots(self) -> int:
        """Tasks that run at once in these tests."""
        return 2 if PoolCapability.SEVERAL_SLOTS in self.driver.capabilities else 1

    @property
    def one_process_per_slot(self) -> bool:
        """Whether a process that dies takes exactly one running task with it."""
        return self.driver(self.driver.Options()).layout(2).slots == 1

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
        """One worker for the tests that do it no harm; they tell their entries in the ledger apart by name."""
        folder = tmp_path_factory.mktemp("shared")
        with written_app(folder) as module:
            worker = run_worker(cls(), folder, "shared")
            try:
                yield Shared(module, worker.wait_until_ready(), ledger_in(folder))
            finally:
                worker.kill()

    @pytest.fixture
    def app(self, tmp_path: Path) -> Iterator[ModuleType]:
        """The application's module, for sending: `app.echo.delay(1)`."""
        with written_app(tmp_path) as module:
            yield module

    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Ledger:
        """What the tasks wrote down."""
        return ledger_in(tmp_path)

    @pytest.fixture
    def release(self, tmp_path: Path) -> Release:
        """Lets held tasks go on."""
        return Release(tmp_path)

    @pytest.fixture
    def start_worker(self, app: ModuleType, tmp_path: Path) -> Iterator[StartWorker]:
        """Starts workers; whatever is left of them is killed after the test."""
        started: list[WorkerProcess] = []

        def start(*arguments: str, concurrency: int = 0, env: Mapping[str, str] | None = None) -> WorkerProcess:
            process = run_worker(self, tmp_path, f"w{len(started)}", *arguments, concurrency=concurrency, env=env)
            started.append(process)
            return process.wait_until_ready()

        yield start
        for process in started:
            process.kill()

    @pytest.fixture
    def worker(self, start_worker: StartWorker) -> WorkerProcess:
        """One worker of this test's own."""
        return start_worker()


def run_worker(
    suite: PoolSuite,
    folder: Path,
    name: str,
    *arguments: str,
    concurrency: int = 0,
    env: Mapping[str, str] | None = None,
) -> WorkerProcess:
    """`kw run` of the written application with the pool under test. Its output is in a file in `folder`."""
    url = f"sqlite:///{folder}/kw.db"
    command = ["run", "-A", f"{MODULE}:app", "-b", url, "-P", suite.driver.name, "-n", f"{name}@%h", "-l", "info"]
    if PoolCapability.SEVERAL_SLOTS in suite.driver.capabilities:
        command += ["-c", str(concurrency or suite.slots)]
    command += ["--lease", f"{LEASE_S:g}", *suite.arguments, *arguments]
    return WorkerProcess(command, cwd=folder, env={**suite.environment, **(env or {})})


def running(ledger: Ledger, name: str, *, starts: int = 1, worker: WorkerProcess | None = None) -> int:
    """Wait until the held task `name` has started so many times; the process that runs it."""

    def started() -> bool:
        return ledger.count("start", name=name) >= starts

    def told() -> str:
        return f"start {starts} of task {name}" + (f"; the worker said:\n{worker.output}" if worker else "")

    eventually(started, within_s=DONE_S, message=told)
    return int(ledger.entries("start", name=name)[-1]["pid"])


def outcome(result: Any, *, within_s: float = DONE_S) -> Any:
    """Wait for the end of a task; its return value, or the exception it ended with."""
    value = result.get(timeout=within_s, propagate=False)
    assert result.state in ("SUCCESS", "FAILURE", "REVOKED"), result.state
    return value


def error_name(error: object) -> str:
    """Name of the class of the exception a task ended with."""
    assert isinstance(error, BaseException), f"the task returned {error!r}"
    return type(error).__name__
