"""A whole worker as a process: signals at every phase, exit codes, and who is named when a step fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_worker.testing import Ledger, eventually

from .worker_run import WorkerRun

POOLS = ["prefork", "solo"]
StartWorker = Callable[..., WorkerRun]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartWorker]:
    """Start a worker; killed after the test, if need be, and what it printed is shown when the test failed."""
    runs: list[WorkerRun] = []

    def run(*messages: tuple[Any, ...], **options: Any) -> WorkerRun:
        folder = tmp_path / f"worker{len(runs)}"
        folder.mkdir()
        runs.append(WorkerRun(folder, *messages, **{"pool": "prefork", **options}))
        return runs[-1]

    yield run
    for each in runs:
        each.kill()
        print(each.output)
        assert each.ledger.entries("offence") == []


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Tasks that wait for it go on when it is there."""
    return tmp_path / "gate"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Where tasks note what they do, beside the worker's own ledger."""
    return str(tmp_path / "trace")


def _hold(trace: str, gate: Path, task_id: str = "a") -> tuple[str, ...]:
    return ("toy.hold", task_id, trace, str(gate))


def _wait_until_started(trace: str) -> None:
    eventually(lambda: os.path.exists(trace), within_s=15)


# -- a whole life


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_runs_what_waits_and_stops_when_it_is_told(start: StartWorker, pool: str) -> None:
    worker = start(("toy.noop", "a"), ("toy.add", "b", 1, 2), ("toy.end", "c", "REJECT", "no"), pool=pool)
    worker.wait_for("ack", 2)
    worker.wait_for("dead")

    worker.signal(signal.SIGTERM)
    code = worker.wait()

    assert code == 0
    assert worker.settled() == {"a": "ack", "b": "ack", "c": "dead"}
    events = [entry["event"] for entry in worker.ledger.entries()]
    assert [event for event in events if event in ("ready", "closing", "broker closed", "stopped")] == [
        "ready",
        "closing",
        "broker closed",
        "stopped",
    ]
    assert f"pool:     {pool}, 1 at once" in worker.output
    assert "steps:    pool → consumer → timer" in worker.output


# -- signals while it starts


@pytest.mark.parametrize(
    ("pool", "number"), [("prefork", signal.SIGTERM), ("solo", signal.SIGQUIT), ("solo", signal.SIGINT)]
)
def test_a_signal_while_the_broker_is_waited_for_ends_it_well(start: StartWorker, pool: str, number: int) -> None:
    worker = start(pool=pool, away=True)
    worker.wait_for("connect", 2)

    worker.signal(number)

    assert worker.wait(10.0) == 0
    assert worker.ledger.count("ready") == 0


def test_a_signal_while_the_application_is_imported_ends_it_well(start: StartWorker, tmp_path: Path) -> None:
    (tmp_path / "slow_app.py").write_text(f"import time\nopen({str(tmp_path / 'begun')!r}, 'w')\ntime.sleep(60)\n")
    worker = start(app="slow_app", env={"PYTHONPATH": f"{_root()}:{tmp_path}"})
    eventually((tmp_path / "begun").exists, within_s=15)

    worker.signal(signal.SIGTERM)

    assert worker.wait(10.0) == 0


def test_a_start_that_is_rolled_back_while_a_task_runs_puts_it_back_when_it_has_ended(
    start: StartWorker, trace: str, gate: Path
) -> None:
    """Cause: the driver was closed, which gives messages back, and the pool stopped after it: for seconds the task went
    on while another worker could run it too."""
    worker = start(_hold(trace, gate), step="wait")
    _wait_until_started(trace)

    worker.signal(signal.SIGTERM)

    assert worker.wait(6.0) == 0
    assert worker.settled() == {"a": "requeue"}
    assert worker.ledger.entries()[-1]["event"] == "broker closed"


def test_a_signal_while_a_step_of_a_plugin_starts_rolls_back(start: StartWorker) -> None:
    worker = start(step="wait", pool="solo")
    worker.wait_for("step starts")

    worker.signal(signal.SIGTERM)

    assert worker.wait(10.0) == 0
    assert [entry["event"] for entry in worker.ledger.entries()][-2:] == ["step stops", "broker closed"]


def _root() -> str:
    return str(Path(__file__).parents[2])


# -- signals while it runs


@pytest.mark.parametrize(
    ("pool", "number"), [("prefork", signal.SIGTERM), ("solo", signal.SIGHUP), ("solo", signal.SIGINT)]
)
def test_a_signal_lets_running_work_finish_and_returns_the_rest(
    start: StartWorker, pool: str, number: int, trace: str, gate: Path
) -> None:
    worker = start(_hold(trace, gate), ("toy.noop", "b"), pool=pool)
    _wait_until_started(trace)

    worker.signal(number)
    worker.wait_for("closing")
    worker.wait_for("requeue")
    early = worker.settled()
    gate.touch()
    code = worker.wait()

    assert early == {"b": "requeue"}
    assert code == 0
    assert worker.settled() == {"a": "ack", "b": "requeue"}
    assert "stops" in worker.output
    assert "waiting up to 10 s for 1 running" in worker.output


@pytest.mark.parametrize("pool", POOLS)
def test_quit_puts_running_work_back_at_once_without_counting(
    start: StartWorker, pool: str, trace: str, gate: Path
) -> None:
    worker = start(_hold(trace, gate), pool=pool)
    _wait_until_started(trace)

    begun = time.monotonic()
    worker.signal(signal.SIGQUIT)
    worker.wait()

    assert worker.settled() == {"a": "requeue"}
    assert time.monotonic() - begun < 8.0


@pytest.mark.parametrize("pool", POOLS)
def test_a_second_interrupt_does_not_wait_for_running_work(
    start: StartWorker, pool: str, trace: str, gate: Path
) -> None:
    worker = start(_hold(trace, gate), pool=pool)
    _wait_until_started(trace)
    worker.signal(signal.SIGINT)
    worker.wait_for("closing")

    begun = time.monotonic()
    worker.signal(signal.SIGINT)
    worker.wait()

    assert worker.settled() == {"a": "requeue"}
    assert time.monotonic() - begun < 8.0


@pytest.mark.parametrize("pool", POOLS)
def test_after_the_grace_period_running_work_goes_back_uncounted(
    start: StartWorker, pool: str, trace: str, gate: Path
) -> None:
    worker = start(_hold(trace, gate), pool=pool, grace="0.2")
    _wait_until_started(trace)

    begun = time.monotonic()
    worker.signal(signal.SIGTERM)
    worker.wait()

    assert worker.settled() == {"a": "requeue"}
    assert 0.2 <= time.monotonic() - begun < 8.0


def test_a_storm_of_signals_is_one_shutdown_and_goes_on_waiting(start: StartWorker, trace: str, gate: Path) -> None:
    """A service manager may send TERM more than once; only Ctrl-C twice and QUIT mean: now."""
    worker = start(_hold(trace, gate), grace="5")
    _wait_until_started(trace)

    for _ in range(30):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGCONT):
            worker.signal(number)
    gate.touch()
    code = worker.wait()

    assert code == 0
    assert worker.ledger.count("closing") == worker.ledger.count("stopped") == 1
    assert "Traceback" not in worker.output
    assert worker.settled() == {"a": "ack"}


def test_signals_of_the_terminal_reach_the_whole_group_and_work_still_finishes(
    start: StartWorker, trace: str, gate: Path
) -> None:
    worker = start(_hold(trace, gate))
    _wait_until_started(trace)

    os.killpg(worker.process.pid, signal.SIGINT)
    worker.wait_for("closing")
    gate.touch()

    assert worker.wait() == 0
    assert worker.settled() == {"a": "ack"}


# -- what goes wrong while it runs


def test_a_child_killed_while_it_works_costs_one_attempt_and_the_task_runs_again(
    start: StartWorker, tmp_path: Path, trace: str, gate: Path
) -> None:
    worker = start(_hold(trace, gate), ("toy.kill_itself", "poison", trace), concurrency="2")
    worker.wait_for("dead")
    gate.touch()
    worker.wait_for("ack")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert worker.settled()["a"] == "ack"
    assert worker.ledger.count("requeue", id="poison", count=True) == 2
    reason = worker.ledger.entries("dead", id="poison")[0]["reason"]
    assert reason == "Worker exited prematurely: signal SIGKILL (delivery 3 of at most 3)"


def test_a_last_child_killed_while_the_worker_stops_is_not_waited_for(
    start: StartWorker, trace: str, gate: Path
) -> None:
    """Cause: the end of its task waited for an executor to be stored by, and while closing none is started any more:
    the worker sat out its grace period."""
    worker = start(_hold(trace, gate), max_deliveries=1, grace="30")
    _wait_until_started(trace)
    worker.signal(signal.SIGTERM)
    worker.wait_for("closing")

    os.kill(Ledger(trace).entries("start")[0]["pid"], signal.SIGKILL)

    assert worker.wait(10.0) == 0
    assert worker.settled() == {"a": "dead"}


def test_a_broker_that_goes_away_and_comes_back_is_consumed_from_again(
    start: StartWorker, trace: str, gate: Path
) -> None:
    worker = start(_hold(trace, gate), ("toy.noop", "b"), pool="solo")
    _wait_until_started(trace)

    worker.away.touch()
    connects = worker.ledger.count("connect")
    gate.touch()
    worker.wait_for("connect", connects + 1)
    worker.away.unlink()
    worker.wait_for("ack", 2)
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert worker.settled() == {"a": "ack", "b": "ack"}


def test_what_cannot_be_settled_at_the_end_is_told_by_the_exit_code(start: StartWorker, trace: str, gate: Path) -> None:
    worker = start(_hold(trace, gate), pool="solo", env={"TOY_KILL_WAIT": "-1.6"})
    _wait_until_started(trace)
    worker.away.touch()
    gate.touch()
    worker.wait_for("connect", 2)

    begun = time.monotonic()
    worker.signal(signal.SIGTERM)
    code = worker.wait()

    assert code == 1
    assert time.monotonic() - begun < 5.0
    assert worker.settled() == {}


# -- exit codes and words


CANNOT_START: dict[str, tuple[dict[str, Any], int, str]] = {
    "no module": ({"app": "no_such_module"}, 2, "kw: -A no_such_module: no module named 'no_such_module'"),
    "loading fails": (
        {"app": "tests.core.toy_app:broken"},
        70,
        "kw: boot step 'pool' of builtin (kernel-worker-core) failed: "
        "-A tests.core.toy_app:broken: ValueError: setting 'x' is wrong",
    ),
    "no module, solo": ({"pool": "solo", "app": "no_such_module"}, 2, "no module named 'no_such_module'"),
    "a limit the pool cannot keep": (
        {"pool": "solo", "time_limit": "5"},
        2,
        "pool 'solo' cannot end a task at a hard time limit (--time-limit 5)",
    ),
    "a step fails": (
        {"step": "fail", "pool": "solo"},
        70,
        "kw: boot step 'toy' of toy (kernel-toy 1.0) failed: OSError: port 80 is taken",
    ),
    "no broker in time": (
        {"away": True, "startup_timeout": "3", "pool": "solo"},
        69,
        "gave up after --startup-timeout: still waiting for the broker (connection refused)",
    ),
    "no place for the pidfile": (
        {"pidfile": "/nowhere/kw.pid", "pool": "solo"},
        73,
        "kw: pidfile /nowhere/kw.pid: No such file or directory",
    ),
}


@pytest.fixture(scope="module")
def cannot_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, WorkerRun]]:
    """All of them, started together to save time."""
    runs = {
        name: WorkerRun(tmp_path_factory.mktemp("worker"), **{"pool": "prefork", **options})
        for name, (options, _, _) in CANNOT_START.items()
    }
    yield runs
    for each in runs.values():
        each.kill()


@pytest.mark.parametrize("why", CANNOT_START)
def test_a_worker_that_cannot_start_says_why_and_leaves_nothing(cannot_start: dict[str, WorkerRun], why: str) -> None:
    _, code, words = CANNOT_START[why]
    worker = cannot_start[why]

    assert worker.wait() == code, worker.output
    assert words in worker.output
    assert "Traceback" not in worker.output
    assert worker.ledger.count("ready") == 0


def test_a_hook_that_exits_in_the_inline_executor_leaves_a_worker_that_stops(
    start: StartWorker, tmp_path: Path
) -> None:
    """Cause: the exit ended the main thread: the worker stayed, ran nothing any more and said nothing."""
    (tmp_path / "leaving.py").write_text(
        "import sys\nfrom tests.core.toy_app import ToyApp, app\nToyApp.setup = lambda *_: sys.exit('no database')\n"
    )
    worker = start(app="leaving:app", pool="solo", env={"PYTHONPATH": f"{_root()}:{tmp_path}"})
    eventually(lambda: worker.output.count("no database") > 1, within_s=10)

    worker.signal(signal.SIGTERM)

    assert worker.wait(6.0) == 0


def test_a_step_that_fails_is_rolled_back_with_those_before_it(cannot_start: dict[str, WorkerRun]) -> None:
    worker = cannot_start["a step fails"]
    worker.wait()

    events = [entry["event"] for entry in worker.ledger.entries()]
    assert [event for event in events if event != "connect"] == ["step starts", "step stops", "broker closed"]


def test_a_step_that_fails_to_stop_is_terminated_and_told_by_the_exit_code(start: StartWorker) -> None:
    worker = start(step="fail to stop", pool="solo")
    worker.wait_for("ready")

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 1
    assert worker.ledger.count("step is terminated") == 1
    assert worker.ledger.count("broker closed") == 1


def test_a_plugin_that_fails_when_the_worker_is_ready_ends_it_in_order_and_is_named(start: StartWorker) -> None:
    """Cause: the exception left the worker as it stood: no step was stopped, and the broker learned of it by the end of
    the lease."""
    worker = start(pool="solo", env={"TOY_HOOK": "kw_worker_ready"})

    assert worker.wait() == 78
    assert "kw: plugin toy (kernel-toy 1.0) failed in kw_worker_ready: RuntimeError: a plugin's bug" in worker.output
    assert worker.ledger.count("broker closed") == 1


def test_a_plugin_that_fails_when_the_worker_closes_does_not_take_running_work_along(
    start: StartWorker, trace: str, gate: Path
) -> None:
    """Cause: the exception ended the shutdown before it began: nothing was waited for."""
    worker = start(_hold(trace, gate), pool="solo", env={"TOY_HOOK": "kw_worker_closing"})
    _wait_until_started(trace)

    worker.signal(signal.SIGTERM)
    worker.wait_for("closing")
    gate.touch()

    assert worker.wait() == 0
    assert worker.settled() == {"a": "ack"}
    assert "failed in kw_worker_closing" in worker.output


def test_a_plugin_that_fails_when_an_executor_is_up_keeps_nobody_from_working(start: StartWorker) -> None:
    worker = start(("toy.noop", "a"), pool="solo", env={"TOY_HOOK": "kw_executor_up"})
    worker.wait_for("ack")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert "failed in kw_executor_up" in worker.output


def test_a_plugin_that_fails_when_an_executor_is_down_keeps_nobody_from_working(start: StartWorker, trace: str) -> None:
    worker = start(("toy.kill_itself", "a", trace), ("toy.noop", "b"), env={"TOY_HOOK": "kw_executor_down"})
    worker.wait_for("ack")
    worker.wait_for("dead")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert worker.settled() == {"a": "dead", "b": "ack"}
    assert "failed in kw_executor_down" in worker.output


def test_a_pidfile_is_held_while_it_runs_and_removed_at_the_end(start: StartWorker, tmp_path: Path) -> None:
    pidfile = tmp_path / "kw.pid"
    first = start(pidfile=pidfile, pool="solo")
    first.wait_for("ready")
    text = pidfile.read_text()
    second = start(pidfile=pidfile, pool="solo")
    code = second.wait()
    first.signal(signal.SIGTERM)

    assert first.wait() == 0
    assert text == f"{first.process.pid}\n"
    assert code == 73
    assert f"held by a running worker (pid {first.process.pid})" in second.output
    assert not pidfile.exists()


def test_a_killed_worker_leaves_no_process_behind(start: StartWorker, trace: str, gate: Path) -> None:
    worker = start(_hold(trace, gate), ("toy.noop", "b"), concurrency="2")
    _wait_until_started(trace)

    worker.signal(signal.SIGKILL)

    assert worker.wait() == -signal.SIGKILL  # and looks for what is left of its process group
