"""The broker suite fails on each deliberately wrong broker, in the tests that name the fault."""

from __future__ import annotations

import pytest

from . import broker_mutants
from .proving import Proof, prove

CAUGHT_BY = {
    "LosesOnCrash": "test_messages_of_a_dead_holder_come_back",
    "PopsBeforeRegistering": "test_processes_killed_while_reserving_lose_nothing",
    "LastInFirstOut": "test_order_is_first_in_first_out",
    "IgnoresLimit": "test_limit_is_never_exceeded",
    "OneByOne": "test_one_fetch_reserves_as_many_as_asked_for",
    "WaitsForTheWholeBatch": "test_fetch_returns_at_once_when_fewer_than_the_limit_wait",
    "NeverWaits": "test_fetch_waits_until_the_time_out_and_not_longer",
    "InterruptHangs": "test_interrupt_ends_a_waiting_fetch",
    "InterruptIsForgotten": "test_interrupt_before_fetch_makes_the_next_one_return",
    "InterruptStays": "test_interrupt_is_used_up",
    "InterruptDropsTheBatch": "test_interrupts_lose_no_message",
    "TwoHoldersShare": "test_two_holders_never_share_a_message",
    "FirstQueueFirst": "test_every_queue_is_served_while_another_is_full",
    "LosesPriority": "test_urgent_messages_come_first_and_equal_ones_in_order",
    "RequeueLosesPriority": "test_requeued_message_keeps_its_priority",
    "AckLeavesTheMessage": "test_ack_removes_the_message",
    "AcksOnRequeue": "test_requeue_puts_the_message_to_the_front",
    "AcksTheWholeBatch": "test_ack_of_one_leaves_its_neighbours_reserved",
    "RequeuesToTheBack": "test_requeue_puts_the_message_to_the_front",
    "CountsEveryRequeue": "test_requeue_that_does_not_count_leaves_attempts",
    "NeverCounts": "test_requeue_that_counts_raises_attempts",
    "CountsTheDead": "test_delivery_to_a_dead_holder_is_recovered_and_not_counted",
    "NeverSaysRecovered": "test_delivery_to_a_dead_holder_is_recovered_and_not_counted",
    "ForgetsTheSuspicion": "test_recovered_delivery_that_was_not_run_stays_recovered",
    "SuspectsForEver": "test_recovered_delivery_that_was_marked_is_given_back_with_its_count",
    "MarksInMemory": "test_each_marked_delivery_to_a_dead_holder_counts",
    "MarkGivesBack": "test_marked_delivery_stays_reserved",
    "CountsMarksTwice": "test_mark_counts_once_and_its_end_counts_beside_it",
    "CountsMarkOrEnd": "test_mark_counts_once_and_its_end_counts_beside_it",
    "CountsNeighbours": "test_counting_one_message_does_not_count_its_neighbours",
    "DelayIsRequeue": "test_delayed_message_comes_when_it_is_due",
    "DelayedHoldUpOthers": "test_delayed_message_holds_up_no_other",
    "DelayResetsAttempts": "test_delay_keeps_attempts",
    "DelayDiesWithItsHolder": "test_delayed_message_outlives_the_holder_that_delayed_it",
    "DropsDead": "test_dead_message_is_kept_byte_identical_with_the_reason",
    "RewritesDead": "test_dead_message_is_kept_byte_identical_with_the_reason",
    "OldestDeadFirst": "test_dead_letters_are_listed_newest_first_up_to_the_limit",
    "FindsTheNewestOnly": "test_dead_letter_is_found_by_its_id_behind_many_others",
    "ReplaysACopy": "test_only_the_named_letters_are_replayed_and_once",
    "ReplaysToTheFront": "test_replayed_messages_go_to_the_end_of_their_queue",
    "ReplayLosesPriority": "test_replayed_message_keeps_its_priority",
    "DropsEverything": "test_dropped_letters_are_gone_and_others_stay",
    "ConsumesTheOldQueues": "test_queue_that_is_left_out_is_not_consumed_and_what_is_held_stays_held",
    "SettlesTwice": "test_settling_twice_is_settling_once",
    "ReceiptIsTheTag": "test_repeating_a_batch_does_not_touch_the_next_delivery",
    "StopsAtTheFirstLost": "test_lost_message_in_a_batch_does_not_keep_the_others_from_being_settled",
    "DoesNotFence": "test_holder_that_lost_its_messages_changes_nothing",
    "NeverBringsBack": "test_messages_of_a_dead_holder_come_back",
    "RenewDoesNothing": "test_renewing_keeps_messages_beyond_several_leases",
    "ShortestLeaseWins": "test_messages_are_not_given_away_before_the_lease_is_over",
    "TakesBackWhatItLost": "test_renewing_a_lost_message_does_not_take_it_back",
    "KeepsTheLossToItself": "test_renewing_a_lost_message_does_not_take_it_back",
    "ReturnsAreAttempts": "test_delay_that_counts_raises_returns_and_not_attempts",
    "ClosedHolderWaitsForItsLease": "test_close_gives_back_at_once_and_counts_nothing",
    "CloseCounts": "test_close_gives_back_at_once_and_counts_nothing",
    "CloseGivesBackEverything": "test_close_leaves_the_messages_of_others",
    "ReconnectForgets": "test_connecting_again_keeps_what_is_held",
    "RaisesOnStrangeBytes": "test_message_that_is_no_envelope_ends_in_the_dead_letters",
    "DropsStrangeBytes": "test_message_that_is_no_envelope_ends_in_the_dead_letters",
    "NoSizeLimit": "test_too_large_message_ends_in_the_dead_letters_and_is_not_delivered",
    "PurgesEverything": "test_purge_deletes_what_waits_and_says_how_many",
    "PurgeForgetsParked": "test_purge_deletes_parked_messages_and_keeps_dead_ones",
    "SizeIsTheWaiting": "test_reserved_messages_are_in_flight_and_not_waiting",
}

MODULE = """
import pytest
from kernel_worker.testing import BrokerContract, broker_factory
from tests.contract import broker_mutants
from tests.contract.reference import storage_server

class MutantContract:
    short_lease_s = 0.2
    driver = None

    @pytest.fixture
    def make_broker(self, tmp_path):
        if issubclass(self.driver, broker_mutants.WrongBroker):
            with broker_factory(self.driver, f"memory:{tmp_path}") as make:
                yield make
        else:
            with storage_server(tmp_path, "tests.contract.broker_mutants.TwoStepStorage") as url:
                with broker_factory(self.driver, url) as make:
                    yield make
""" + "".join(
    f"\nclass Test{mutant}(MutantContract, BrokerContract):\n    driver = broker_mutants.{mutant}\n"
    for mutant in CAUGHT_BY
)


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    return prove(MODULE, CAUGHT_BY, tmp_path_factory.mktemp("mutants"))


def test_every_mutant_is_tried() -> None:
    found = {name for name, value in vars(broker_mutants).items() if _is_mutant(value)}

    assert found == set(CAUGHT_BY)


@pytest.mark.parametrize("mutant", CAUGHT_BY)
@pytest.mark.timeout(180)  # the first one waits for the run of all
def test_suite_catches(mutant: str, proof: Proof) -> None:
    assert CAUGHT_BY[mutant] in proof.failed[mutant], proof.output


def _is_mutant(value: object) -> bool:
    base = broker_mutants.WrongBroker
    here = isinstance(value, type) and value.__module__ == broker_mutants.__name__
    return here and issubclass(value, broker_mutants.MemoryBroker) and value is not base
