"""Pool contract: tasks run, fail, retry, wait for each other, and do not disturb the worker."""

from __future__ import annotations

import time

from ..types import PoolCapability
from .contract import requires
from .pool_app import Release
from .pool_base import PoolSuite, Shared, error_name, outcome, running
from .waiting import eventually


class RunningTests(PoolSuite, suite=True):
    """Tasks that end by themselves, and time limits."""

    def test_task_gets_its_arguments_and_gives_its_result(self, shared: Shared) -> None:
        sent = shared.app.echo.delay(1, "zwei – \u2028", None, [3.5, {"x": True}], key={"nested": []})

        assert outcome(sent) == [[1, "zwei – \u2028", None, [3.5, {"x": True}]], {"key": {"nested": []}}]

    def test_every_task_of_many_runs_once(self, shared: Shared) -> None:
        sent = {f"m{n:03}": shared.app.mark.delay(f"m{n:03}") for n in range(300)}

        results = {name: outcome(result, within_s=30) for name, result in sent.items()}

        assert results == {name: name for name in sent}
        assert sorted(entry["name"] for entry in shared.ledger.entries("mark")) == sorted(sent)

    def test_failure_is_stored_and_the_next_task_runs(self, shared: Shared) -> None:
        failed, good = shared.app.fail.delay("boom – ü"), shared.app.echo.delay(1)

        error = outcome(failed)

        assert (failed.state, error_name(error), str(error)) == ("FAILURE", "ValueError", "boom – ü")
        assert "ValueError" in failed.traceback
        assert outcome(good) == [[1], {}]

    def test_result_that_cannot_be_stored_is_a_failure(self, shared: Shared) -> None:
        bad, good = shared.app.unserializable.delay(), shared.app.echo.delay(1)

        assert isinstance(outcome(bad), Exception)
        assert outcome(good) == [[1], {}]

    def test_retry_runs_the_task_again(self, shared: Shared) -> None:
        assert outcome(shared.app.retry_until.delay(2)) == 2
        assert [entry["retries"] for entry in shared.ledger.entries("try")] == [0, 1, 2]

    def test_retries_end_with_the_cause(self, shared: Shared) -> None:
        assert error_name(outcome(shared.app.retry_in_vain.delay())) == "KeyError"
        assert shared.ledger.count("vain") == 2

    def test_async_task_runs(self, shared: Shared) -> None:
        sent = [shared.app.async_echo.delay(n) for n in range(20)]

        assert [outcome(result) for result in sent] == list(range(20))

    def test_keyboard_interrupt_in_a_task_is_a_failure_and_the_worker_goes_on(self, shared: Shared) -> None:
        assert error_name(outcome(shared.app.interrupt.delay())) == "KeyboardInterrupt"
        assert outcome(shared.app.echo.delay(1)) == [[1], {}]

    def test_output_of_tasks_disturbs_nothing(self, shared: Shared) -> None:
        sent = [shared.app.shout.delay(50) for _ in range(5)]

        assert [outcome(result) for result in sent] == [50] * 5
        eventually(lambda: "shouted 49" in shared.worker.output, message="the tasks' own output")

    # ------------------------------------------------------------------ time limits

    @requires(PoolCapability.SOFT_LIMIT)
    def test_soft_limit_is_raised_in_the_task_which_may_catch_it(self, shared: Shared) -> None:
        began = time.monotonic()

        sent = shared.app.soft.apply_async((True,), soft_time_limit=0.5)

        assert outcome(sent) == "caught"
        assert time.monotonic() - began > 0.4
        assert shared.ledger.count("soft limit") == 1
        assert outcome(shared.app.echo.delay(1)) == [[1], {}]

    @requires(PoolCapability.SOFT_LIMIT)
    def test_soft_limit_that_is_not_caught_is_the_failure(self, shared: Shared) -> None:
        sent = shared.app.soft.apply_async((False,), soft_time_limit=0.5)

        assert error_name(outcome(sent)) == "SoftTimeLimitExceeded"
        assert outcome(shared.app.echo.delay(1)) == [[1], {}]

    @requires(PoolCapability.SOFT_LIMIT)
    def test_soft_limit_hits_only_the_task_that_ran_too_long(self, shared: Shared) -> None:
        sent = [shared.app.echo.apply_async((n,), soft_time_limit=1.0) for n in range(300)]

        assert [outcome(result) for result in sent] == [[[n], {}] for n in range(300)]
        after = {name: shared.app.hold.delay(name) for name in (f"after {n}" for n in range(self.slots))}
        for name in after:
            running(shared.ledger, name)
        time.sleep(1.0)  # those limits pass, and every slot runs a task that has none
        Release(shared.ledger.path.parent)(*after)
        assert {name: outcome(result) for name, result in after.items()} == {name: name for name in after}

    @requires(PoolCapability.SOFT_LIMIT)
    def test_soft_limit_ends_a_task_that_only_logs_and_leaves_no_log_locked(self, shared: Shared) -> None:
        """Logging swallows what is raised in a handler; between two of its steps it keeps the handler's lock."""
        sent = [shared.app.chat.apply_async((), soft_time_limit=0.1) for _ in range(3)]

        assert [error_name(outcome(result)) for result in sent] == ["SoftTimeLimitExceeded"] * 3
        assert all(outcome(shared.app.log_beside.delay()) for _ in range(4))
