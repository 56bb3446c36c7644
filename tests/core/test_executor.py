"""A real executor process, seen from the kernel's end of its socket pair."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_worker.minder import LONG_TASK_S
from kernel_worker.reporting import FLUSH_EVERY
from kernel_worker.testing import Ledger, eventually
from kernel_worker.types import OutcomeKind
from kernel_worker.wire import DONE_RECORD, Frame, pack, pack_json

from .executor_process import KEEPS_ALL, ExecutorProcess, SharedExecutors, executor_process, open_gate
from .toy_app import stored

PLUGIN = "tests.core.toy_executor_plugin"


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedExecutors]:
    """Executors that go from test to test as long as they live and have nothing left to say."""
    shared = SharedExecutors()
    yield shared
    shared.close()


@pytest.fixture
def executor(shared: SharedExecutors) -> ExecutorProcess:
    """Up, without a result backend."""
    return shared.get("")


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where results go. One place for all tests, because it is told to an executor when it starts."""
    folder = tmp_path_factory.getbasetemp() / "executor-results"
    folder.mkdir(exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    return folder / "results"


@pytest.fixture
def storing(shared: SharedExecutors, results: Path) -> ExecutorProcess:
    """Up, with a result backend."""
    return shared.get(str(results))


@pytest.fixture
def fresh() -> Iterator[ExecutorProcess]:
    """Up, and has run nothing yet."""
    with executor_process() as executor:
        yield executor


@pytest.fixture
def fresh_storing(results: Path) -> Iterator[ExecutorProcess]:
    """Up, with a result backend, and has run nothing yet."""
    with executor_process(results=results) as executor:
        yield executor


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Tasks that wait for it go on when it is opened."""
    return tmp_path / "gate"


# -- coming up


def test_loaded_tells_what_is_in_the_application(tmp_path: Path) -> None:
    executor = ExecutorProcess()
    try:
        loaded = executor.start(results=tmp_path / "results")
    finally:
        executor.close()

    assert loaded["name"] == "toy"
    assert loaded["tasks"]["toy.add"]["acks_late"] is True
    assert loaded["settings"]["result_backend"].endswith("/results")


@pytest.mark.parametrize(
    ("app", "kind", "text"),
    [
        ("no_such_module", "usage", "-A no_such_module: no module named 'no_such_module' (looked in "),
        ("tests.core.no_such", "usage", "no module named 'tests.core.no_such'"),
        ("tests.core.toy_app:ap", "usage", "module 'tests.core.toy_app' has no attribute 'ap'"),
        ("tests.core.toy_app:nothing", "usage", "there is no application in it, or more than one (found: builtins."),
        ("tests.core.toy_app:broken", "import", "-A tests.core.toy_app:broken: ValueError: setting 'x' is wrong ("),
    ],
    ids=["no module", "no module in a package", "no attribute", "no application", "loading fails"],
)
def test_an_application_that_cannot_be_loaded_is_told_to_the_user(app: str, kind: str, text: str) -> None:
    executor = ExecutorProcess()
    try:
        with pytest.raises(AssertionError, match="it ended with 1"):
            executor.start(app=app)
        failure = json.loads(executor.frame(Frame.FAILED))
    finally:
        executor.close()

    assert failure["kind"] == kind
    assert text in failure["text"]
    assert "\n" not in failure["text"]
    assert bool(failure["details"]) == (kind == "import")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("x = (", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('no settings')", "SystemExit: no settings"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
    ids=["missing library", "syntax error", "error", "exit", "interrupt"],
)
def test_an_application_whose_import_fails_is_told_with_its_place(tmp_path: Path, source: str, text: str) -> None:
    (tmp_path / "bad_app.py").write_text(f"# first line\n{source}\n")
    executor = ExecutorProcess()
    try:
        hello = {**_hello(), "app": "bad_app", "workdir": str(tmp_path)}
        executor.channel.send(pack_json(Frame.HELLO, hello))
        failure = json.loads(executor.frame(Frame.FAILED))
        status = executor.wait()
    finally:
        executor.close()

    assert failure["kind"] == "import"
    assert failure["text"].startswith(f"-A bad_app: {text}")
    assert f"({tmp_path}/bad_app.py:2)" in failure["text"]
    assert "Traceback" in failure["details"]
    assert status == 1


def _hello() -> dict[str, Any]:
    from .toy_app import hello

    return hello()


def test_an_init_hook_that_fails_is_told_and_ends_the_executor(tmp_path: Path) -> None:
    executor = ExecutorProcess()
    try:
        with pytest.raises(AssertionError, match="it ended with 1"):
            executor.start(plugins=[f"{PLUGIN}:broken"])
        failure = json.loads(executor.frame(Frame.FAILED))
    finally:
        executor.close()

    assert failure["text"].startswith("RuntimeError: no database (")
    assert failure["kind"] == "internal"


def test_plugins_of_the_executor_wrap_tasks_and_hear_of_the_end(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_LEDGER", str(ledger.path))
    with executor_process(plugins=[f"{PLUGIN}:outer", f"{PLUGIN}:inner"]) as executor:
        executor.run(1, "toy.noop")
        executor.done()
        executor.order(Frame.RETIRE)
        status = executor.wait()

    assert [(entry["event"], entry.get("by")) for entry in ledger.entries()] == [
        ("init", None),
        ("before", "outer"),
        ("before", "inner"),
        ("after", "inner"),
        ("after", "outer"),
        ("exit", "retired"),
    ]
    assert status == 0


# -- running and reporting


def test_a_success_is_a_record_and_a_failure_has_words(executor: ExecutorProcess) -> None:
    executor.run(1, "toy.noop")
    done = executor.done()
    executor.run(2, "toy.end", "REJECT", "not mine", True)

    ended = executor.ended()

    assert done == [1]
    assert {key: ended[key] for key in ("tag", "kind", "error", "requeue")} == {
        "tag": 2,
        "kind": OutcomeKind.REJECT,
        "error": "not mine",
        "requeue": True,
    }
    assert ended["runtime"] > 0


def test_what_was_returned_or_raised_is_told_only_while_somebody_listens(fresh: ExecutorProcess) -> None:
    fresh.run(1, "toy.shown", False)
    silent = fresh.done()
    fresh.order(Frame.VERBOSE, True)
    fresh.run(2, "toy.shown", False)
    success = fresh.ended()
    fresh.run(3, "toy.shown", True)
    failure = fresh.ended()
    fresh.channel.send(pack_json(Frame.VERBOSE, False))
    fresh.run(4, "toy.shown", False)

    assert silent == [1]
    assert (success["kind"], success["shown"], success["traceback"]) == (OutcomeKind.SUCCESS, "'value'", "")
    assert (failure["kind"], failure["shown"], failure["traceback"]) == (OutcomeKind.FAILURE, "E('x')", "Traceback")
    assert fresh.done() == [4]


def test_an_error_text_that_no_terminal_and_no_broker_takes_is_mended(executor: ExecutorProcess) -> None:
    """Cause: half a surrogate pair in an exception's text went into the reason of a dead letter; encoding it failed in
    the broker driver, which could then never settle that batch."""
    executor.run(1, "toy.end", "REJECT", "bad \ud800 text" + "x" * 5000)

    error = executor.ended()["error"]

    assert error.encode().startswith(b"bad ? text")
    assert len(error) <= 2000


def test_a_burst_is_reported_in_few_frames(executor: ExecutorProcess) -> None:
    count = 3 * FLUSH_EVERY
    executor.channel.send(b"".join(executor.packed(tag, "toy.noop") for tag in range(1, count + 1)))

    reports: list[int] = []
    while sum(reports) < count:
        reports.append(len(executor.frame(Frame.DONE)) // DONE_RECORD.size)

    assert len(reports) <= count // 4
    assert max(reports) <= FLUSH_EVERY


def test_an_outcome_does_not_wait_for_the_long_task_behind_it(
    executor: ExecutorProcess, ledger: Ledger, gate: Path
) -> None:
    executor.channel.send(executor.packed(1, "toy.noop") + executor.packed(2, "toy.hold", str(ledger.path), str(gate)))

    done = executor.done()
    still_running = ledger.count("end") == 0
    open_gate(gate)

    assert done == [1]
    assert still_running
    assert executor.done() == [2]


def test_results_are_stored_before_outcomes_are_reported(storing: ExecutorProcess, results: Path) -> None:
    storing.run(1, "toy.add", 2, 3)
    storing.done()
    after_one = stored(results)
    storing.run(2, "toy.add", "x", 1)
    storing.ended()
    after_two = stored(results)

    assert after_one == [[("id-1", "SUCCESS", "5")]]
    assert after_two[1:] == [[("id-2", "FAILURE", '"TypeError"')]]


def test_the_results_of_a_burst_are_stored_together(storing: ExecutorProcess, results: Path) -> None:
    count = 2 * FLUSH_EVERY
    storing.channel.send(b"".join(storing.packed(tag, "toy.add", tag, 0) for tag in range(1, count + 1)))

    storing.done(count)

    batches = stored(results)
    assert [task_id for batch in batches for task_id, _, _ in batch] == [f"id-{tag}" for tag in range(1, count + 1)]
    assert len(batches) <= count // 4


def test_a_conclusion_is_stored_and_reported_and_runs_nothing(storing: ExecutorProcess, results: Path) -> None:
    storing.conclude(1, OutcomeKind.LOST, "Worker exited prematurely: signal SIGKILL", task="toy.escape")

    ended = storing.ended()

    assert (ended["tag"], ended["kind"]) == (1, OutcomeKind.LOST)
    assert stored(results) == [[("id-1", "LOST", '"Worker exited prematurely: signal SIGKILL"')]]


def test_what_escapes_from_run_fails_the_task_and_not_the_executor(storing: ExecutorProcess, results: Path) -> None:
    storing.run(1, "toy.escape")
    ended = storing.ended()
    storing.run(2, "toy.noop")

    assert (ended["kind"], ended["error"]) == (OutcomeKind.FAILURE, "internal error: SystemExit")
    assert storing.done() == [2]
    assert stored(results) == [[("id-1", "FAILURE", '"internal error: SystemExit"')]]


def test_a_broken_message_fails_alone(storing: ExecutorProcess) -> None:
    """`run` raises, and so does `conclude`: the outcome alone must do."""
    from .executor_process import run_payload

    storing.channel.send(pack(Frame.RUN, run_payload(1, b"{no json")))
    ended = storing.ended()
    storing.run(2, "toy.noop")

    assert (ended["tag"], ended["kind"]) == (1, OutcomeKind.FAILURE)
    assert storing.done() == [2]


# -- the board


def test_the_board_shows_what_runs_and_what_is_done(fresh: ExecutorProcess, ledger: Ledger, gate: Path) -> None:
    before = time.monotonic()
    fresh.channel.send(fresh.packed(4, "toy.noop") + fresh.packed(7, "toy.hold", str(ledger.path), str(gate)))
    eventually(lambda: ledger.count("start"))

    running, started, done = fresh.board.read(0)
    open_gate(gate)
    fresh.done(2)

    assert running == 7
    assert before <= started <= time.monotonic()
    assert done == 4
    assert fresh.board.read(0) == (0, 0.0, 7)
    assert fresh.board.last_started(0) == 7


def test_the_board_never_says_done_of_what_is_not_stored(fresh_storing: ExecutorProcess, results: Path) -> None:
    Path(f"{results}.away").touch()
    fresh_storing.channel.send(
        fresh_storing.packed(1, "toy.noop")
        + fresh_storing.packed(2, "toy.add", 1, 1)
        + fresh_storing.packed(3, "toy.noop")
    )
    eventually(lambda: fresh_storing.board.last_started(0) == 3 and fresh_storing.board.read(0)[0] == 0)

    assert fresh_storing.board.read(0)[2] == 1


def test_the_board_never_says_done_of_what_ended_otherwise(fresh: ExecutorProcess, ledger: Ledger, gate: Path) -> None:
    fresh.channel.send(
        fresh.packed(1, "toy.noop")
        + fresh.packed(2, "toy.end", "REJECT")
        + fresh.packed(3, "toy.noop")
        + fresh.packed(4, "toy.hold", str(ledger.path), str(gate))
    )
    eventually(lambda: ledger.count("start"))
    _, _, done = fresh.board.read(0)
    reported = fresh.frames(0)

    assert done in (1, 2, 3) if reported else done == 1


# -- the result backend is away


def test_nothing_is_reported_until_the_result_backend_is_back(storing: ExecutorProcess, results: Path) -> None:
    away = Path(f"{results}.away")
    away.touch()
    storing.run(1, "toy.add", 1, 1)
    eventually(lambda: Ledger(f"{away}".removesuffix(".away") + ".attempts").count() >= 2)
    reported_early = storing.reported(0.02)
    away.unlink()

    assert not reported_early
    assert storing.done() == [1]
    assert stored(results) == [[("id-1", "SUCCESS", "2")]]


def test_the_kernel_is_told_how_many_wait_for_the_result_backend(storing: ExecutorProcess, results: Path) -> None:
    """Their slot is free: without knowing, the kernel would give nothing more."""
    Path(f"{results}.away").touch()
    told = []
    for tag in (1, 2, 3):
        storing.run(tag, "toy.add", tag, 0)
        while (tags := json.loads(storing.frame(Frame.UNSTORED))) != [*range(1, tag + 1)]:
            told.append(tags)
    Path(f"{results}.away").unlink()
    end = json.loads(storing.frame(Frame.UNSTORED))

    assert all(len(tags) < 3 for tags in told)
    assert end == []
    assert storing.done(3) == [1, 2, 3]


def test_an_absent_result_backend_is_asked_with_back_off_and_not_per_job(
    storing: ExecutorProcess, results: Path
) -> None:
    """Cause: the wait for the next job stored without regard to the back-off, so every job cost a connection attempt,
    and a full buffer twenty of them a second, each with a line in the log."""
    Path(f"{results}.away").touch()
    attempts = Ledger(f"{results}.attempts")
    for tag in range(1, 31):
        storing.run(tag, "toy.add", tag, 0)
        eventually(lambda tag=tag: storing.board.last_started(0) == tag and storing.board.read(0)[0] == 0)  # type: ignore[misc]
    times = [entry["at"] for entry in attempts.entries()]
    Path(f"{results}.away").unlink()

    assert sorted(storing.done(30)) == list(range(1, 31))
    assert len(times) <= 2 + (times[-1] - times[0]) / 0.1  # after 0.1, 0.3, 0.7 … seconds


def test_a_full_buffer_of_unstored_outcomes_stops_the_executor_from_taking_more(results: Path) -> None:
    """Cause of the second half: what it had been given waited there for the store, while other executors were idle."""
    Path(f"{results}.away").touch()
    with executor_process(change="reporting.MAX_UNSTORED = 20", results=results) as storing:
        for tag in range(1, 61):
            storing.run(tag, "toy.add", tag, 0)
            if tag <= 20:
                eventually(lambda tag=tag: storing.board.last_started(0) == tag)  # type: ignore[misc]
        full = storing.board.last_started(0)
        storing.frames(0.15)
        still = storing.board.last_started(0)
        returned: list[int] = []
        while len(returned) < 60 - still:
            returned += json.loads(storing.frame(Frame.RETURNED))
        Path(f"{results}.away").unlink()

        assert sorted(storing.done(still)) + sorted(returned) == list(range(1, 61))
    assert full <= still <= 21


def test_a_result_that_the_store_refuses_does_not_take_others_along(storing: ExecutorProcess, results: Path) -> None:
    storing.channel.send(
        storing.packed(1, "toy.add", 1, 0)
        + storing.packed(2, "toy.add", 2, 0, task_id="refused")
        + storing.packed(3, "toy.add", 3, 0)
    )

    assert storing.done(3) == [1, 2, 3]
    assert sorted(task_id for batch in stored(results) for task_id, _, _ in batch) == ["id-1", "id-3"]


def test_a_store_that_goes_away_while_results_are_stored_one_by_one_loses_none(
    storing: ExecutorProcess, results: Path
) -> None:
    """Cause: an outage in that moment was taken for one more refusal: reported, acked, and never stored."""
    Path(f"{results}.goes-away-after-refusal").touch()
    storing.channel.send(storing.packed(1, "toy.add", 1, 0, task_id="refused") + storing.packed(2, "toy.add", 2, 0))
    eventually(lambda: Ledger(f"{results}.attempts").count())
    reported_early = storing.reported(0.02)
    Path(f"{results}.goes-away-after-refusal").unlink()
    Path(f"{results}.away").unlink()

    assert not reported_early
    assert storing.done(2) == [1, 2]
    assert "id-2" in [task_id for batch in stored(results) for task_id, _, _ in batch]


def test_a_store_that_cannot_be_opened_yet_is_an_outage(storing: ExecutorProcess, results: Path) -> None:
    """Cause: what `results` raised ended the executor, the task was handed out again uncounted, and so on for ever."""
    Path(f"{results}.closed").touch()
    storing.run(1, "toy.add", 1, 1)
    eventually(lambda: storing.board.last_started(0) == 1)
    reported_early = storing.reported(0.05)
    Path(f"{results}.closed").unlink()

    assert not reported_early
    assert storing.done() == [1]


# -- behind a long task


def test_jobs_behind_a_long_task_are_given_back_and_the_first_goes_on(
    executor: ExecutorProcess, ledger: Ledger, gate: Path
) -> None:
    executor.channel.send(
        executor.packed(1, "toy.hold", str(ledger.path), str(gate))
        + b"".join(executor.packed(tag, "toy.noop") for tag in (2, 3, 4))
    )

    returned = json.loads(executor.frame(Frame.RETURNED))
    open_gate(gate)

    assert sorted(returned) == [2, 3, 4]
    assert executor.done() == [1]
    assert not executor.frames(0.02)


def test_jobs_that_come_while_a_task_runs_long_are_given_back(
    executor: ExecutorProcess, ledger: Ledger, gate: Path
) -> None:
    executor.run(1, "toy.hold", str(ledger.path), str(gate))
    eventually(lambda: ledger.count("start"))
    running_since = executor.board.read(0)[1]
    eventually(lambda: time.monotonic() - running_since > 2 * LONG_TASK_S)

    executor.run(2, "toy.noop")
    returned = json.loads(executor.frame(Frame.RETURNED))
    open_gate(gate)

    assert returned == [2]
    assert executor.done() == [1]


def test_recall_gives_back_what_has_not_started(executor: ExecutorProcess, ledger: Ledger, gate: Path) -> None:
    executor.channel.send(
        executor.packed(1, "toy.hold", str(ledger.path), str(gate))
        + executor.packed(2, "toy.noop")
        + pack(Frame.RECALL)
    )

    returned = json.loads(executor.frame(Frame.RETURNED))
    open_gate(gate)

    assert set(returned) <= {1, 2}
    assert 2 in returned


# -- limits


def test_a_soft_limit_is_raised_in_the_task(executor: ExecutorProcess, ledger: Ledger, gate: Path) -> None:
    executor.run(1, "toy.hold", str(ledger.path), str(gate), soft=0.05)

    ended = executor.ended()

    assert (ended["kind"], ended["error"]) == (OutcomeKind.FAILURE, "SoftLimit")
    assert 0.04 <= ended["runtime"] < 2


def test_a_soft_limit_is_raised_once(executor: ExecutorProcess, ledger: Ledger, gate: Path) -> None:
    executor.run(1, "toy.stubborn", str(ledger.path), str(gate), soft=0.3)
    eventually(lambda: ledger.count("caught"))
    executor.frames(0.1)
    open_gate(gate)

    assert executor.done() == [1]
    assert ledger.count("caught", error="SoftLimit") == 1


def test_a_cancelled_task_gets_the_hard_limit_error(executor: ExecutorProcess, ledger: Ledger, gate: Path) -> None:
    executor.run(1, "toy.hold", str(ledger.path), str(gate))
    eventually(lambda: ledger.count("start"))

    executor.order(Frame.CANCEL, {"tag": 1, "error": "time_limit", "value": 30})

    ended = executor.ended()
    assert (ended["kind"], ended["error"]) == (OutcomeKind.TIMEOUT, "HardLimit")


def test_a_cancel_for_another_task_does_nothing(executor: ExecutorProcess, ledger: Ledger, gate: Path) -> None:
    executor.run(2, "toy.hold", str(ledger.path), str(gate))
    eventually(lambda: ledger.count("start"))

    executor.order(Frame.CANCEL, {"tag": 1, "error": "time_limit", "value": 30})
    executor.frames(0.1)
    open_gate(gate)

    assert executor.done() == [2]


SLOW_WAKE = "import time; w = minder.Minder.wake; minder.Minder.wake = lambda self: (w(self), time.sleep(0.01))"


@pytest.mark.parametrize(
    ("change", "count"),
    [("pass", 600), ("minder.MINDER_IDLE_S = 0.0", 300), (f"minder.MINDER_IDLE_S = 0.0; {SLOW_WAKE}", 30)],
    ids=["minder awake", "minder woken by each task", "minder woken slowly"],
)
def test_soft_limits_that_pass_as_tasks_end_hit_no_other_task_and_no_executor(change: str, count: int) -> None:
    """Cause: the limit is delivered by a signal. One that came in the executor's own code around a task (while it woke
    its minder, or while it noted an earlier error) ended the process."""
    with executor_process(change=change) as executor:
        _limits_at_every_moment(executor, count)

        assert executor.process.poll() is None


def _limits_at_every_moment(executor: ExecutorProcess, count: int) -> None:
    for start in range(0, count, 30):
        # the first and every third has a limit that is over when it starts, the others have none and must succeed
        frames = [
            executor.packed(tag, "toy.noop", soft=1e-6 if tag % 3 == 1 else 0.0) for tag in range(start + 1, start + 31)
        ]
        executor.channel.send(b"".join(frames))
        ends: dict[int, str] = {}
        while len(ends) < 30:
            ends |= executor.ends()
        assert {error for tag, error in ends.items() if tag % 3 != 1} == {""}
        assert {error for tag, error in ends.items() if tag % 3 == 1} <= {"", "SoftLimit"}


def test_a_limit_that_passes_while_an_error_is_noted_is_too_late() -> None:
    """Cause: the task counted as running until its error was noted, so a limit could be raised in the middle of that,
    which nothing caught: the process ended."""
    slow = (
        "import time; w = executor.Executor.escaped; executor.Executor.escaped = lambda *a: (time.sleep(0.5), w(*a))[1]"
    )
    with executor_process(change=slow) as executor:
        executor.run(1, "toy.escape", soft=0.3)
        ended = executor.ended()
        executor.run(2, "toy.noop")

        assert ended["error"] == "internal error: SystemExit"
        assert executor.done() == [2]


# -- the end


def test_retire_finishes_what_it_has_and_ends() -> None:
    with executor_process(change=KEEPS_ALL) as executor:
        executor.channel.send(b"".join(executor.packed(tag, "toy.noop") for tag in (1, 2, 3)) + pack(Frame.RETIRE))

        assert executor.done(3) == [1, 2, 3]
        assert executor.wait() == 0


def test_retire_while_a_task_runs_lets_it_finish(executor: ExecutorProcess, ledger: Ledger, gate: Path) -> None:
    executor.run(1, "toy.hold", str(ledger.path), str(gate))
    eventually(lambda: ledger.count("start"))
    executor.order(Frame.RETIRE)
    executor.frames(0.1)
    alive = executor.process.poll() is None
    open_gate(gate)

    assert alive
    assert executor.done() == [1]
    assert executor.wait() == 0


def test_the_end_of_the_kernel_ends_a_running_task_at_once(
    executor: ExecutorProcess, ledger: Ledger, gate: Path
) -> None:
    """Its lease runs out and the message is delivered again: going on would run it twice at once."""
    executor.run(1, "toy.hold", str(ledger.path), str(gate))
    eventually(lambda: ledger.count("start"))

    executor.channel.close()

    assert executor.wait() == 1
    assert ledger.count("end") == 0


def test_the_end_of_the_kernel_ends_an_idle_executor_cleanly(executor: ExecutorProcess) -> None:
    executor.channel.close()

    assert executor.wait() == 0


def test_signals_for_the_process_group_do_not_end_an_executor(executor: ExecutorProcess) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        executor.process.send_signal(number)
    executor.run(1, "toy.noop")

    assert executor.done() == [1]


def test_a_program_that_a_task_starts_can_be_terminated(tmp_path: Path) -> None:
    """Cause to guard against: ignored signals are inherited by programs, handlers are not."""
    code = "import signal, sys; from kernel_worker.executor_main import ignore_group_signals; ignore_group_signals();"
    code += "import subprocess; p = subprocess.Popen(['cat'], stdin=subprocess.PIPE); p.terminate(); sys.exit(p.wait(5) != -15)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_task_that_ends_the_process_takes_nothing_reported_along(executor: ExecutorProcess, ledger: Ledger) -> None:
    executor.run(1, "toy.noop")
    first = executor.done()
    executor.run(2, "toy.exit_at_once", str(ledger.path), 7)

    assert first == [1]
    assert executor.wait() == 7
    assert executor.board.read(0)[0] == 2


def test_an_executor_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    """Without the kernel nobody renews the lease of what it runs."""
    code = f"""
import os, sys
sys.path.insert(0, {os.fspath(Path(__file__).parents[2])!r})
from tests.core.executor_process import ExecutorProcess
executor = ExecutorProcess()
executor.start()
executor.run(1, "toy.hold", {str(tmp_path / "ledger")!r}, {str(tmp_path / "gate")!r})
while not os.path.exists({str(tmp_path / "ledger")!r}): pass
print(executor.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(parent.stdout)

    eventually(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
