"""The ack policy: a pure function from how a request ended to what the broker shall do.

Imports types only. `kw_settle_policy` replaces it.
"""

from __future__ import annotations

from .types import Delivery, Outcome, OutcomeKind, Settlement, TaskInfo, Verdict

DEFAULT_TASK = TaskInfo("")


def decide(delivery: Delivery, task: TaskInfo, outcome: Outcome, max_deliveries: int) -> Settlement:
    """What becomes of a delivery whose request ended with `outcome`.

    :param task: the task's options; `DEFAULT_TASK` when it is unknown.
    :param max_deliveries: deliveries that may end in a lost executor before the message is dead.

    Nothing disappears without having been run to its end: what cannot or shall not be run any more goes to the
    dead letters with the reason.
    """
    kind = outcome.kind
    if kind is OutcomeKind.SUCCESS:
        return Settlement(delivery, Verdict.ACK)
    if kind is OutcomeKind.FAILURE:
        if task.acks_on_failure:
            return Settlement(delivery, Verdict.ACK)
        return Settlement(delivery, Verdict.DEAD, f"failed: {outcome.error}")
    if kind in (OutcomeKind.RETRY, OutcomeKind.IGNORE, OutcomeKind.EXPIRED, OutcomeKind.REVOKED):
        return Settlement(delivery, Verdict.ACK)
    if kind is OutcomeKind.DEFER:
        return Settlement(delivery, Verdict.DELAY, until=outcome.until)
    if kind is OutcomeKind.REJECT:
        if outcome.requeue:
            return Settlement(delivery, Verdict.REQUEUE)
        return Settlement(delivery, Verdict.DEAD, f"rejected by the task: {outcome.error}")
    if kind is OutcomeKind.LOST:
        if task.reject_on_worker_lost is False:
            return Settlement(delivery, Verdict.DEAD, outcome.error, count=True)
        return _again(delivery, outcome, max_deliveries)
    if kind is OutcomeKind.TIMEOUT:
        if task.acks_on_timeout:
            return Settlement(delivery, Verdict.ACK)
        return _again(delivery, outcome, max_deliveries)
    if kind in (OutcomeKind.RETURNED, OutcomeKind.CANCELLED):
        return Settlement(delivery, Verdict.REQUEUE)
    if kind is OutcomeKind.UNKNOWN:
        return Settlement(delivery, Verdict.DEAD, f"unknown task {outcome.error}".rstrip())
    return Settlement(delivery, Verdict.DEAD, outcome.error or "invalid message")


def _again(delivery: Delivery, outcome: Outcome, max_deliveries: int) -> Settlement:
    if delivery.attempts + 1 < max_deliveries:
        return Settlement(delivery, Verdict.REQUEUE, count=True)
    reason = f"{outcome.error} (delivery {delivery.attempts + 1} of at most {max_deliveries})"
    return Settlement(delivery, Verdict.DEAD, reason, count=True)
