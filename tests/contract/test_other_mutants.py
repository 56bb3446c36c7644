"""The suites of result backends, boot steps and control commands fail on each deliberately wrong one."""

from __future__ import annotations

import pytest

from . import other_mutants
from .proving import Proof, prove

RESULTS = {
    "ReplacesSuccess": "test_success_is_never_replaced",
    "RetryReplacesFailure": "test_final_state_is_never_replaced_by_a_retry",
    "FirstStateWins": "test_success_replaces_every_other_state",
    "ExpiredSuccessBlocks": "test_expired_success_does_not_block_a_new_state",
    "NeverExpires": "test_result_is_gone_after_its_expiry_and_not_before",
    "ExpiresEverything": "test_result_is_gone_after_its_expiry_and_not_before",
    "ForgetsOnlyTheFirst": "test_any_state_may_be_stored_after_forgetting",
    "ReprintsTheMeta": "test_stored_meta_comes_back_byte_identical",
    "StoresOneByOneSlowly": "test_burst_of_a_thousand_is_stored",
    "CutsLargeResults": "test_large_result_is_stored",
    "IgnoresCase": "test_ids_that_look_alike_are_different",
    "LeaksSubscriptions": "test_two_hundred_waits_leave_nothing_behind",
    "LeaksThreads": "test_two_hundred_waits_leave_nothing_behind",
    "PollsForEver": "test_wait_ends_at_its_time_out",
    "PollsSlowly": "test_wait_returns_as_soon_as_the_result_is_stored",
    "TakesTheFirstState": "test_wait_passes_over_intermediate_states",
    "DecidesItself": "test_what_is_final_is_the_callers_decision",
    "LooksThenSubscribes": "test_result_stored_between_looking_and_waiting_is_seen",
    "WakesTheWrongOne": "test_wait_for_one_id_is_not_woken_by_another",
    "PushReachesOne": "test_several_may_wait_for_one_result",
}

STEPS = {
    "NotStoppableTwice": "test_stop_twice_is_stop_once",
    "NeedsAStart": "test_stop_without_start_does_nothing",
    "HalfStartLeaks": "test_start_that_fails_at_any_point_can_be_stopped_and_leaves_nothing",
    "StartsWhenMade": "test_making_a_step_starts_nothing",
    "LeavesItsThread": "test_stop_without_close_stops",
    "CloseWaits": "test_close_does_not_block",
    "IgnoresTheDeadline": "test_stop_keeps_its_deadline",
    "TerminateWaits": "test_terminate_ends_at_once_after",
    "RequiresItself": "test_step_says_its_name_and_its_place",
}

COMMANDS = {
    "TupleReply": "test_reply_is_json",
    "ObjectReply": "test_reply_is_json",
    "RaisesForEverything": "test_reply_is_json",
    "UndeclaredArgument": "test_handler_takes_exactly_the_declared_arguments",
    "MissesItsDeadline": "test_answers_within_its_deadline",
    "NoHelp": "test_declares_name_help_and_permission",
    "NoName": "test_declares_name_help_and_permission",
}

CAUGHT_BY = RESULTS | STEPS | COMMANDS

MODULE = """
import pytest
from kernel_worker.testing import ControlContract, ResultBackendContract, StepContract, backend_factory
from tests.contract import other_mutants

class Results(ResultBackendContract):
    @pytest.fixture
    def results(self):
        return self.driver()

    @pytest.fixture
    def make_backend(self, results):
        with backend_factory(lambda url, settings: results, "memory:") as make:
            yield make

    @pytest.fixture
    def leftovers(self, results):
        return lambda: results.waiting

class Steps(StepContract):
    @pytest.fixture
    def make_step(self):
        return self.driver

class Commands(ControlContract):
    @pytest.fixture
    def command(self):
        return other_mutants.COMMANDS[type(self).__name__.removeprefix("Test")]

    @pytest.fixture
    def arguments(self):
        return {"start": 3}
"""
for suite, mutants in (("Results", RESULTS), ("Steps", STEPS)):
    for mutant in mutants:
        MODULE += f"\nclass Test{mutant}({suite}):\n    driver = other_mutants.{mutant}\n"
for mutant in COMMANDS:
    MODULE += f"\nclass Test{mutant}(Commands):\n    pass\n"


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    return prove(MODULE, CAUGHT_BY, tmp_path_factory.mktemp("mutants"))


def test_every_mutant_is_tried() -> None:
    found = {
        name
        for name, value in vars(other_mutants).items()
        if isinstance(value, type) and value.__module__ == other_mutants.__name__
    }

    assert found | set(other_mutants.COMMANDS) == set(CAUGHT_BY)


@pytest.mark.parametrize("mutant", CAUGHT_BY)
@pytest.mark.timeout(180)  # the first one waits for the run of all
def test_suite_catches(mutant: str, proof: Proof) -> None:
    assert CAUGHT_BY[mutant] in proof.failed[mutant], proof.output
