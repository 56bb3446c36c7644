"""The ack policy as a table: every kind of outcome, with every option that changes it."""

from __future__ import annotations

import pytest

from kernel_worker.settle import DEFAULT_TASK, decide
from kernel_worker.types import Delivery, Outcome, OutcomeKind, Settlement, TaskInfo, Verdict

KIND, TASK = OutcomeKind, TaskInfo
ACK, REQUEUE, DELAY, DEAD = Verdict.ACK, Verdict.REQUEUE, Verdict.DELAY, Verdict.DEAD

PLAIN = TASK("t")
EARLY = TASK("t", acks_late=False)
KEEPS_FAILURES = TASK("t", acks_on_failure=False)
KEEPS_TIMEOUTS = TASK("t", acks_on_timeout=False)
REJECTS_LOST = TASK("t", reject_on_worker_lost=False)
REQUEUES_LOST = TASK("t", reject_on_worker_lost=True)

TABLE: list[tuple[str, Outcome, TaskInfo, int, Verdict, str, bool]] = [
    # what happened, outcome, task, attempts before, verdict, reason, counted
    ("success", Outcome(KIND.SUCCESS), PLAIN, 0, ACK, "", False),
    ("success, early ack", Outcome(KIND.SUCCESS), EARLY, 0, ACK, "", False),
    ("failure", Outcome(KIND.FAILURE, error="ValueError"), PLAIN, 0, ACK, "", False),
    (
        "failure that is to be kept",
        Outcome(KIND.FAILURE, error="ValueError"),
        KEEPS_FAILURES,
        0,
        DEAD,
        "failed: ValueError",
        False,
    ),
    ("retry", Outcome(KIND.RETRY), KEEPS_FAILURES, 2, ACK, "", False),
    ("ignore", Outcome(KIND.IGNORE), KEEPS_FAILURES, 0, ACK, "", False),
    ("reject", Outcome(KIND.REJECT, error="no"), PLAIN, 0, DEAD, "rejected by the task: no", False),
    ("reject and requeue", Outcome(KIND.REJECT, requeue=True), PLAIN, 2, REQUEUE, "", False),
    ("invalid", Outcome(KIND.INVALID, error="no JSON"), PLAIN, 0, DEAD, "no JSON", False),
    ("invalid without a reason", Outcome(KIND.INVALID), PLAIN, 0, DEAD, "invalid message", False),
    ("not due", Outcome(KIND.DEFER, until=12.5), PLAIN, 0, DELAY, "", False),
    ("expired", Outcome(KIND.EXPIRED, error="expired"), KEEPS_FAILURES, 0, ACK, "", False),
    ("revoked", Outcome(KIND.REVOKED), PLAIN, 0, ACK, "", False),
    ("given back", Outcome(KIND.RETURNED), PLAIN, 2, REQUEUE, "", False),
    ("lost, first time", Outcome(KIND.LOST, error="gone"), PLAIN, 0, REQUEUE, "", True),
    ("lost, second time", Outcome(KIND.LOST, error="gone"), PLAIN, 1, REQUEUE, "", True),
    ("lost, last time", Outcome(KIND.LOST, error="gone"), PLAIN, 2, DEAD, "gone (delivery 3 of at most 3)", True),
    (
        "lost, beyond the last",
        Outcome(KIND.LOST, error="gone"),
        PLAIN,
        9,
        DEAD,
        "gone (delivery 10 of at most 3)",
        True,
    ),
    ("lost, never again", Outcome(KIND.LOST, error="gone"), REJECTS_LOST, 0, DEAD, "gone", True),
    ("lost, again", Outcome(KIND.LOST, error="gone"), REQUEUES_LOST, 0, REQUEUE, "", True),
    (
        "lost, again but not for ever",
        Outcome(KIND.LOST, error="gone"),
        REQUEUES_LOST,
        2,
        DEAD,
        "gone (delivery 3 of at most 3)",
        True,
    ),
    ("timed out", Outcome(KIND.TIMEOUT, error="30"), PLAIN, 0, ACK, "", False),
    ("timed out, to be kept", Outcome(KIND.TIMEOUT, error="30"), KEEPS_TIMEOUTS, 0, REQUEUE, "", True),
    (
        "timed out, last time",
        Outcome(KIND.TIMEOUT, error="30"),
        KEEPS_TIMEOUTS,
        2,
        DEAD,
        "30 (delivery 3 of at most 3)",
        True,
    ),
    ("cancelled by shutdown", Outcome(KIND.CANCELLED), PLAIN, 2, REQUEUE, "", False),
    ("cancelled, never again when lost", Outcome(KIND.CANCELLED), REJECTS_LOST, 0, REQUEUE, "", False),
    ("unknown task", Outcome(KIND.UNKNOWN, error="a.b"), DEFAULT_TASK, 0, DEAD, "unknown task a.b", False),
    ("unknown task without a name", Outcome(KIND.UNKNOWN), DEFAULT_TASK, 0, DEAD, "unknown task", False),
]


@pytest.mark.parametrize(
    ("outcome", "task", "attempts", "verdict", "reason", "count"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_settlement(
    outcome: Outcome, task: TaskInfo, attempts: int, verdict: Verdict, reason: str, count: bool
) -> None:
    delivery = Delivery("q", b"", {}, receipt=1, attempts=attempts)

    settlement = decide(delivery, task, outcome, max_deliveries=3)

    assert settlement == Settlement(delivery, verdict, reason, until=outcome.until, count=count)


def test_the_table_has_every_kind_of_outcome() -> None:
    assert {row[1].kind for row in TABLE} == set(KIND)


def test_one_delivery_at_most_means_that_a_lost_one_is_dead_at_once() -> None:
    delivery = Delivery("q", b"", {}, receipt=1)

    assert decide(delivery, PLAIN, Outcome(KIND.LOST, error="gone"), max_deliveries=1).verdict is DEAD


def test_nothing_that_was_not_run_to_its_end_is_acked_except_what_asked_for_it() -> None:
    acked = {row[1].kind for row in TABLE if row[4] is ACK}

    assert acked == {KIND.SUCCESS, KIND.FAILURE, KIND.RETRY, KIND.IGNORE, KIND.EXPIRED, KIND.REVOKED, KIND.TIMEOUT}
