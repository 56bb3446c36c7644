"""What every runtime with many slots does, seen from the kernel's end of its executor's socket pair."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from kernel_worker.minder import LONG_TASK_S
from kernel_worker.testing import Ledger, eventually
from kernel_worker.types import OutcomeKind
from kernel_worker.wire import DONE_RECORD, Frame, pack

from .executor_process import KEEPS_ALL, ExecutorProcess, executor_process, open_gate
from .toy_app import stored

SLOTS = 8


class ManySlots:
    """Tests of one runtime. Derive from it and set `runtime`, its import string."""

    runtime: ClassVar[str]

    @pytest.fixture
    def executor(self) -> Iterator[ExecutorProcess]:
        """Up, with eight slots and no result backend."""
        with executor_process(slots=SLOTS, runtime=self.runtime) as executor:
            yield executor

    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Ledger:
        return Ledger(tmp_path / "ledger")

    @pytest.fixture
    def gate(self, tmp_path: Path) -> Path:
        """Tasks that wait for it go on when it is opened."""
        return tmp_path / "gate"

    # -- slots

    def test_as_many_jobs_run_at_once_as_there_are_slots(
        self, executor: ExecutorProcess, ledger: Ledger, gate: Path
    ) -> None:
        hold_all(executor, ledger, gate, SLOTS)
        running = {executor.board.read(slot)[0] for slot in range(SLOTS)}
        open_gate(gate)

        assert running == set(range(1, SLOTS + 1))
        assert sorted(executor.done(SLOTS)) == sorted(running)
        assert {executor.board.read(slot)[0] for slot in range(SLOTS)} == {0}

    def test_what_waits_while_all_slots_run_long_is_given_back(
        self, executor: ExecutorProcess, ledger: Ledger, gate: Path
    ) -> None:
        hold_all(executor, ledger, gate, SLOTS)
        executor.run(20, "toy.noop")
        executor.run(21, "toy.noop")

        returned: list[int] = []
        while len(returned) < 2:
            returned += json.loads(executor.frame(Frame.RETURNED))
        open_gate(gate)

        assert sorted(returned) == [20, 21]
        assert sorted(executor.done(SLOTS)) == list(range(1, SLOTS + 1))

    def test_a_lone_outcome_is_reported_at_once_while_others_run(
        self, executor: ExecutorProcess, ledger: Ledger, gate: Path
    ) -> None:
        hold_all(executor, ledger, gate, SLOTS - 1)
        took = []
        for tag in range(20, 40):
            begun = time.monotonic()
            executor.run(tag, "toy.noop")
            executor.done()
            took.append(time.monotonic() - begun)
        open_gate(gate)

        assert min(took) < 0.05, "it waited for the minder"

    def test_a_burst_is_run_whole_and_reported_in_few_frames(self, executor: ExecutorProcess) -> None:
        count = 400

        reports = run_all(executor, "toy.noop", count)

        assert sorted(tag for report in reports for tag in report) == list(range(1, count + 1))
        assert len(reports) <= count // 2

    def test_the_results_of_many_slots_are_stored_before_they_are_reported(self, tmp_path: Path) -> None:
        results, count = tmp_path / "results", 200
        with executor_process(slots=SLOTS, runtime=self.runtime, results=results) as executor:
            early = []

            def look(report: list[int]) -> None:
                ids = {task_id for batch in stored(results) for task_id, _, _ in batch}
                early.extend({f"id-{tag}" for tag in report} - ids)

            reports = run_all(executor, "toy.add", count, 1, 1, look=look)

        assert sorted(tag for report in reports for tag in report) == list(range(1, count + 1))
        assert early == []

    def test_nothing_is_reported_while_the_result_backend_is_away(self, tmp_path: Path) -> None:
        results, count = tmp_path / "results", 3 * SLOTS
        away = Path(f"{results}.away")
        away.touch()
        with executor_process(slots=SLOTS, runtime=self.runtime, results=results) as executor:
            executor.channel.send(b"".join(executor.packed(tag, "toy.add", tag, 0) for tag in range(1, count + 1)))
            eventually(lambda: Ledger(f"{results}.attempts").count() >= 2)
            reported_early = executor.reported(0.02)
            away.unlink()

            assert not reported_early
            assert sorted(executor.done(count)) == list(range(1, count + 1))

    # -- what is raised

    def test_a_soft_limit_is_raised_in_its_task_alone(
        self, executor: ExecutorProcess, ledger: Ledger, gate: Path
    ) -> None:
        hold_all(executor, ledger, gate, 5)
        executor.run(20, "toy.hold", str(ledger.path), str(gate), soft=0.1)

        ended = executor.ended()
        open_gate(gate)

        assert (ended["tag"], ended["kind"], ended["error"]) == (20, OutcomeKind.FAILURE, "SoftLimit")
        assert 0.08 <= ended["runtime"] < 2
        assert sorted(executor.done(5)) == [1, 2, 3, 4, 5]

    def test_a_hard_limit_cancels_its_task_alone(self, executor: ExecutorProcess, ledger: Ledger, gate: Path) -> None:
        hold_all(executor, ledger, gate, 5)
        executor.order(Frame.CANCEL, {"tag": 3, "error": "time_limit", "value": 30})

        ended = executor.ended()
        open_gate(gate)

        assert (ended["tag"], ended["kind"], ended["error"]) == (3, OutcomeKind.TIMEOUT, "HardLimit")
        assert sorted(executor.done(4)) == [1, 2, 4, 5]

    def test_terminating_a_task_leaves_the_others_alone(
        self, executor: ExecutorProcess, ledger: Ledger, gate: Path
    ) -> None:
        hold_all(executor, ledger, gate, 3)
        executor.order(Frame.CANCEL, {"tag": 2, "error": "terminate", "value": "by hand"})

        ended = executor.ended()
        open_gate(gate)

        assert (ended["tag"], ended["kind"]) == (2, OutcomeKind.FAILURE)
        assert sorted(executor.done(2)) == [1, 3]

    def test_limits_that_pass_as_tasks_end_hit_nothing_else(self, executor: ExecutorProcess) -> None:
        ends: dict[int, str] = {}
        for start in range(0, 400, 40):
            tags = range(start + 1, start + 41)
            frames = [executor.packed(tag, "toy.noop", soft=1e-6 if tag % 3 == 1 else 0.0) for tag in tags]
            executor.channel.send(b"".join(frames))
            while not set(tags) <= set(ends):
                ends |= executor.ends()

        assert {error for tag, error in ends.items() if tag % 3 != 1} == {""}
        assert {error for tag, error in ends.items() if tag % 3 == 1} <= {"", "SoftLimit"}
        assert executor.process.poll() is None

    def test_what_escapes_from_a_task_hurts_no_other(
        self, executor: ExecutorProcess, ledger: Ledger, gate: Path
    ) -> None:
        hold_all(executor, ledger, gate, 3)
        executor.run(20, "toy.escape")
        executor.run(21, "toy.interrupt")

        errors = {executor.ended()["error"] for _ in range(2)}
        executor.run(22, "toy.noop")
        after = executor.done()
        open_gate(gate)

        assert errors == {"internal error: SystemExit", "internal error: KeyboardInterrupt"}
        assert after == [22]
        assert sorted(executor.done(3)) == [1, 2, 3]

    # -- beside a task that holds the interpreter

    def test_frames_are_obeyed_while_a_task_holds_the_interpreter(
        self, executor: ExecutorProcess, ledger: Ledger, gate: Path
    ) -> None:
        """Whether it runs them or gives them back is the runtime's business: nothing waits behind the task."""
        executor.run(1, "toy.compute", str(ledger.path), str(gate))
        eventually(lambda: ledger.count("start"))
        since = executor.board.read(0)[1]
        eventually(lambda: time.monotonic() - since > 2 * LONG_TASK_S)

        executor.run(2, "toy.noop")
        executor.order(Frame.RECALL)
        begun = time.monotonic()
        executor.frame(Frame.RETURNED, Frame.DONE)
        took = time.monotonic() - begun
        open_gate(gate)

        assert took < 5.0
        assert 1 in executor.done()

    # -- the end

    def test_retire_runs_what_is_there_and_ends(self, ledger: Ledger, gate: Path) -> None:
        with executor_process(change=KEEPS_ALL, slots=SLOTS, runtime=self.runtime) as executor:
            hold_all(executor, ledger, gate, 3)
            executor.channel.send(executor.packed(20, "toy.noop") + pack(Frame.RETIRE))
            first = executor.done()
            executor.frames(0.1)
            alive = executor.process.poll() is None
            open_gate(gate)

            assert first == [20]
            assert alive
            assert sorted(executor.done(3)) == [1, 2, 3]
            assert executor.wait() == 0

    def test_a_task_is_cancelled_while_the_executor_retires(
        self, executor: ExecutorProcess, ledger: Ledger, gate: Path
    ) -> None:
        hold_all(executor, ledger, gate, 2)
        executor.order(Frame.RETIRE)
        executor.order(Frame.CANCEL, {"tag": 1, "error": "time_limit", "value": 30})
        ended = executor.ended()
        open_gate(gate)

        assert ended["tag"] == 1
        assert executor.done() == [2]
        assert executor.wait() == 0

    def test_an_idle_executor_retires_at_once(self, executor: ExecutorProcess) -> None:
        executor.order(Frame.RETIRE)

        assert executor.wait() == 0

    def test_the_end_of_the_kernel_ends_running_tasks(
        self, executor: ExecutorProcess, ledger: Ledger, gate: Path
    ) -> None:
        hold_all(executor, ledger, gate, 3)

        executor.channel.close()
        executor.wait()

        assert ledger.count("end") == 0


def run_all(
    executor: ExecutorProcess,
    task: str,
    count: int,
    *args: object,
    look: Callable[[list[int]], object] = lambda _: None,
) -> list[list[int]]:
    """Run a task so many times, tags from 1, and again what is given back, as the kernel does; the tags of each report."""
    executor.channel.send(b"".join(executor.packed(tag, task, *args) for tag in range(1, count + 1)))
    reports: list[list[int]] = []
    while sum(map(len, reports)) < count:
        kind, payload = executor.next_frame(Frame.DONE, Frame.RETURNED)
        if kind == Frame.RETURNED:
            executor.channel.send(b"".join(executor.packed(tag, task, *args) for tag in json.loads(payload)))
            continue
        reports.append([tag for tag, _, _ in DONE_RECORD.iter_unpack(payload)])
        look(reports[-1])
    return reports


def hold_all(executor: ExecutorProcess, ledger: Ledger, gate: Path, count: int) -> None:
    """Start so many tasks, tags from 1, that run until the gate is opened."""
    frames = [executor.packed(tag, "toy.hold", os.fspath(ledger.path), str(gate)) for tag in range(1, count + 1)]
    executor.channel.send(b"".join(frames))

    def all_hold() -> bool:
        executor.frames(0.0)
        executor.run_again()
        return ledger.count("start") == count

    eventually(all_hold)
