"""The pool suite passes on a plain correct pool and fails on each deliberately wrong one."""

from __future__ import annotations

import pytest

from . import pool_mutants
from .proving import Proof, prove

CAUGHT_BY = {
    "OneAtATime": "test_as_many_tasks_run_at_once_as_there_are_slots",
    "NoSoftLimit": "test_soft_limit_is_raised_in_the_task_which_may_catch_it",
    "RaisesAnywhere": "test_soft_limit_ends_a_task_that_only_logs_and_leaves_no_log_locked",
    "RunsTwice": "test_every_task_of_many_runs_once",
    "StopsLate": "test_idle_worker_stops_at_once",
    "NeverReplaces": "test_killed_executor_is_replaced_and_its_task_runs_again",
    "LeavesOrphans": "test_nothing_survives_a_killed_worker",
    "DiesWithTheGroup": "test_term_lets_running_tasks_finish_and_returns_the_waiting_ones",
}

MODULE = """
from kernel_worker.testing import PoolContract
from tests.contract import pool_mutants

ENVIRONMENT = {environment!r}
"""


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    folder = tmp_path_factory.mktemp("mutants")
    module = MODULE.format(environment=pool_mutants.install(folder / "installed"))
    for mutant in ("ExecPool", *CAUGHT_BY):
        module += (
            f"class Test{mutant}(PoolContract):\n    driver = pool_mutants.{mutant}\n    environment = ENVIRONMENT\n"
        )
    # what the mutants break, the correct pool of the same make does
    whole = {f"ExecPool::{test}": "" for test in CAUGHT_BY.values()}
    # Fewer at once than others: these start workers, which have to keep their times.
    return prove(module, CAUGHT_BY | whole, folder, at_once=3)


def test_every_mutant_is_tried() -> None:
    assert {pool.__name__ for pool in pool_mutants.MUTANTS} == set(CAUGHT_BY)


@pytest.mark.timeout(180)  # the first one waits for the run of all
def test_correct_pool_passes_what_the_mutants_fail(proof: Proof) -> None:
    assert "ExecPool" not in proof.failed, proof.output


@pytest.mark.parametrize("mutant", CAUGHT_BY)
@pytest.mark.timeout(180)
def test_suite_catches(mutant: str, proof: Proof) -> None:
    assert CAUGHT_BY[mutant] in proof.failed[mutant], proof.output
