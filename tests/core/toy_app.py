"""An application as small as its contract allows: what executors load in tests of the kernel.

Tasks note what they did in a `Ledger`, results go to a file, so tests see both from outside, whatever
becomes of the process.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kernel_worker.drivers import AppLoader, Call, LoadContext, LoadedApp
from kernel_worker.testing import Ledger
from kernel_worker.types import AppInfo, Job, Outcome, OutcomeKind, StoredResult, TaskInfo

ROOT = str(Path(__file__).parents[2])
TARGET = "tests.core.toy_app:app"
LOADER = "tests.core.toy_app:ToyLoader"

Function = Callable[..., Any]
_functions: dict[str, Function] = {}
app_of_process: list[LoadedApp] = []


class SoftLimit(Exception):
    """Raised in a task by its soft limit."""


class HardLimit(Exception):
    """Raised in a task by its hard limit, where its process cannot be replaced."""


def task(function: Function) -> Function:
    """Make a function the task `toy.<its name>`."""
    _functions[f"toy.{function.__name__}"] = function
    return function


def _wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.002)  # the task's own work: to wait until the test lets it go


@task
def noop() -> None:
    """Nothing."""


@task
def add(a: int, b: int) -> int:
    """A result."""
    return a + b


@task
def note(ledger: str, event: str) -> None:
    """Leave a trace."""
    Ledger(ledger).note(event)


@task
def hold(ledger: str, gate: str, name: str = "") -> None:
    """Run until the file `gate` is there."""
    Ledger(ledger).note("start", name=name)
    _wait_for(gate)
    Ledger(ledger).note("end", name=name)


@task
def where(ledger: str) -> None:
    """Tell which process and thread runs tasks."""
    Ledger(ledger).note("where", main_thread=threading.current_thread() is threading.main_thread())


@task
def compute(ledger: str, gate: str) -> None:
    """Hold the interpreter until `gate` is there."""
    Ledger(ledger).note("start")
    while not os.path.exists(gate):
        sum(range(100_000))


@task
def stubborn(ledger: str, gate: str) -> None:
    """Run until `gate` is there, and catch what is raised meanwhile."""
    Ledger(ledger).note("start")
    while True:
        try:
            _wait_for(gate)
            return
        except (SoftLimit, HardLimit) as error:
            Ledger(ledger).note("caught", error=type(error).__name__)


@task
def end(kind: str, error: str = "", requeue: bool = False, until: float = 0.0) -> Outcome:
    """End in a chosen way."""
    return Outcome(OutcomeKind[kind], error=error, requeue=requeue, until=until)


@task
def shown(failed: bool) -> Outcome:
    """End with words for those who listen, or without any when nobody does."""
    if not app_of_process[0].verbose:
        return Outcome(OutcomeKind.SUCCESS)
    if failed:
        return Outcome(OutcomeKind.FAILURE, error="E", shown="E('x')", traceback="Traceback")
    return Outcome(OutcomeKind.SUCCESS, shown="'value'")


@task
def exit_at_once(ledger: str, status: int) -> None:
    """Take the process along."""
    Ledger(ledger).note("start")
    os._exit(status)


@task
def kill_itself(ledger: str) -> None:
    """Die by a signal."""
    Ledger(ledger).note("start")
    os.kill(os.getpid(), signal.SIGKILL)


@task
def close_descriptors(ledger: str, gate: str = "") -> str:
    """Close what is not its own, as a badly written daemonizer does."""
    Ledger(ledger).note("start")
    os.closerange(3, 256)
    if gate:
        _wait_for(gate)
    return "a result"


@task
def escape() -> None:
    """What `run()` must not let through, and what an executor survives all the same."""
    raise SystemExit("let me out")


@task
def interrupt() -> None:
    """The same, by another name."""
    raise KeyboardInterrupt


class FileResults:
    """Results as lines of a file, one per call of `store`. Further files make it fail: `<path>.away`, `<path>.closed`
    (cannot be opened), `<path>.goes-away-after-refusal`. Ids that begin with "refused" are refused."""

    def __init__(self, path: str) -> None:
        self.path = path

    def store(self, results: Sequence[StoredResult]) -> None:
        if os.path.exists(self.path + ".away"):
            Ledger(self.path + ".attempts").note("attempt")
            raise ConnectionError("the store is away")
        if any(result.task_id.startswith("refused") for result in results):
            if os.path.exists(self.path + ".goes-away-after-refusal"):
                Path(self.path + ".away").touch()
            raise ValueError("the store refuses this")
        line = json.dumps([[result.task_id, result.state, result.payload.decode()] for result in results])
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def stored(path: Path) -> list[list[tuple[str, str, str]]]:
    """What lies in a `FileResults` file: for each call of `store` its (task id, state, payload)."""
    if not path.exists():
        return []
    return [[(each[0], each[1], each[2]) for each in json.loads(line)] for line in path.read_text().splitlines()]


class ReadJob(Job):
    """A job that was read ahead."""

    __slots__ = ("message",)
    message: Any


class ToyApp(LoadedApp):
    """The functions above. Every result but None is stored when there is a store."""

    soft_limit_error = SoftLimit
    hard_limit_error = HardLimit

    def __init__(self, results_path: str) -> None:
        infos = {name: TaskInfo(name) for name in _functions}
        infos["toy.early"] = TaskInfo("toy.early", acks_late=False)
        settings = {"result_backend": f"file://{results_path}"} if results_path else {}
        self.info = AppInfo("toy", "toy", infos, settings)
        self._results = FileResults(results_path) if results_path else None
        self._calls: dict[str, Call] = {}
        app_of_process[:] = [self]

    def setup(self, node: str, wrap: Callable[[str, Call], Call]) -> None:
        self._calls = {name: wrap(name, self._compiled(function)) for name, function in _functions.items()}

    def _compiled(self, function: Function) -> Call:
        def call(job: Job) -> Outcome:
            message = _message(job)
            arguments, keywords, _ = json.loads(base64.b64decode(message["body"]))
            try:
                value = function(*arguments, **keywords)
            except Exception as error:
                return self._outcome(OutcomeKind.FAILURE, message, type(error).__name__)
            if isinstance(value, Outcome):
                return value
            return self._outcome(OutcomeKind.SUCCESS, message, value)

        return call

    def _outcome(self, kind: OutcomeKind, message: Any, value: object) -> Outcome:
        error = str(value) if kind is OutcomeKind.FAILURE else ""
        if self._results is None or value is None:
            return Outcome(kind, error=error)
        return Outcome(kind, error=error, result=_result(message["headers"]["id"], kind.name, value))

    def read(self, job: Job) -> Job:
        try:
            message = json.loads(job.raw)
        except ValueError:
            return job
        read = ReadJob(*(getattr(job, name) for name in Job.__slots__))
        read.message = message
        return read

    def run(self, job: Job) -> Outcome:
        return self._calls[_message(job)["headers"]["task"]](job)

    def conclude(self, job: Job, kind: int, error: str) -> StoredResult | None:
        if self._results is None:
            return None
        return _result(json.loads(job.raw)["headers"]["id"], OutcomeKind(kind).name, error)

    @property
    def results(self) -> FileResults | None:  # type: ignore[override]  # a worker only ever stores
        if self._results is not None and os.path.exists(self._results.path + ".closed"):
            raise OSError("the store cannot be opened")
        return self._results


def _message(job: Job) -> Any:
    return job.message if isinstance(job, ReadJob) else json.loads(job.raw)


def _result(task_id: str, state: str, value: object) -> StoredResult:
    return StoredResult(task_id, state, json.dumps(value).encode())


class ToyLoader(AppLoader):
    """Loads the module's `app`; `broken` as its value makes loading fail."""

    name = "toy"

    def accepts(self, target: object) -> object | None:
        return target if isinstance(target, (_Marker, BrokenMarker)) else None

    def load(self, app: object, context: LoadContext) -> LoadedApp:
        if isinstance(app, BrokenMarker):
            raise ValueError("setting 'x' is wrong")
        return ToyApp(context.overrides.get("result_backend", ""))


class _Marker:
    pass


class BrokenMarker:
    """An application that cannot be made ready."""


app = _Marker()
broken = BrokenMarker()
nothing = "no application"


def hello(
    *,
    app: str = TARGET,
    results: str | Path = "",
    plugins: Sequence[str] = (),
    level: str = "WARNING",
    runtime: str = "kernel_worker.executor:BlockingRuntime",
) -> dict[str, Any]:
    """A HELLO value for this application.

    :param results: file for results; "" = no result backend.
    """
    return {
        "runtime": runtime,
        "app": app,
        "loaders": [LOADER],
        "plugins": list(plugins),
        "context": {"overrides": {"result_backend": str(results)}, "publishers": {}, "results": {}},
        "node": "kw@test",
        "workdir": ROOT,
        "log": {
            "level": level,
            "file": None,
            "format": "%(levelname)s %(name)s %(message)s",
            "loggers": ["kernel_worker"],
        },
    }


if __name__ == "__main__":
    sys.exit("this module is imported by executors")
