"""Broker contract: dead letters. Kept as they came, found again, put back, deleted."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..drivers import Broker
from ..types import BrokerCapability, DeadLetter, Verdict
from .broker_base import QUEUE, BrokerSuite, ack, collect, counts, each_once, ids, nothing_comes, settle
from .contract import requires
from .messages import body_of, envelope


class DeadLetterTests(BrokerSuite, suite=True):
    """Verdict DEAD, `dead_letters`, `dead_letter`, `replay_dead`, `drop_dead`."""

    @requires(BrokerCapability.DEAD_LETTER)
    def test_dead_message_is_kept_byte_identical_with_the_reason(self, broker: Broker, other: Broker) -> None:
        raw = envelope("proj.add", ("ä", "\u2028"), task_id="t1")
        broker.publish(QUEUE, raw)
        began = time.time()

        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="unknown task 'proj.add' – naïve\nsecond line")

        (letter,) = other.dead_letters(QUEUE)
        assert letter.raw == raw
        assert letter.queue == QUEUE
        assert letter.reason == "unknown task 'proj.add' – naïve\nsecond line"
        assert letter.attempts == 0
        assert letter.id
        assert began - 2 <= letter.died_at <= time.time() + 2
        assert counts(broker) == {"dead": 1}
        assert nothing_comes(other)

    @requires(BrokerCapability.DEAD_LETTER)
    def test_dead_letters_are_listed_newest_first_up_to_the_limit(self, broker: Broker) -> None:
        for n in range(5):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
            settle(broker, Verdict.DEAD, *collect(broker, 1), reason=f"reason {n}")

        letters = broker.dead_letters(QUEUE, limit=3)

        assert [letter.reason for letter in letters] == ["reason 4", "reason 3", "reason 2"]
        assert len({letter.id for letter in broker.dead_letters(QUEUE)}) == 5

    @requires(BrokerCapability.DEAD_LETTER)
    def test_dead_letters_belong_to_their_queue(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())

        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="r")

        assert broker.dead_letters("another") == []

    @requires(BrokerCapability.DEAD_LETTER, BrokerCapability.ATTEMPTS)
    def test_dead_message_keeps_its_attempts_and_counts_the_last(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())
        settle(broker, Verdict.REQUEUE, *collect(broker, 1), count=True)

        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="lost twice", count=True)

        assert broker.dead_letters(QUEUE)[0].attempts == 2

    # ------------------------------------------------------------------ one of them

    @requires(BrokerCapability.DEAD_LETTER)
    def test_dead_letter_is_found_by_its_id_behind_many_others(self, broker: Broker, other: Broker) -> None:
        raw = envelope(task_id="wanted")
        _bury(broker, raw, reason="first of all")
        (wanted,) = broker.dead_letters(QUEUE)
        for n in range(150):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        settle(broker, Verdict.DEAD, *collect(broker, 150), reason="r")

        found = other.dead_letter(QUEUE, wanted.id)

        assert found == wanted
        assert (found.raw, found.reason) == (raw, "first of all")

    @requires(BrokerCapability.DEAD_LETTER)
    def test_dead_letter_that_does_not_exist_is_none(self, broker: Broker) -> None:
        _bury(broker, envelope())
        (letter,) = broker.dead_letters(QUEUE)

        assert broker.dead_letter("another", letter.id) is None
        assert broker.dead_letter(QUEUE, letter.id + "0") is None
        assert broker.dead_letter(QUEUE, "no such id \u2028") is None

    # ------------------------------------------------------------------ put back

    @requires(BrokerCapability.DEAD_LETTER)
    def test_replayed_message_comes_again_as_it_was(self, broker: Broker, other: Broker) -> None:
        raw = envelope("proj.add", ("ä",), task_id="t1")
        broker.publish(QUEUE, raw)
        settle(broker, Verdict.REQUEUE, *collect(broker, 1), count=True)
        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="lost twice", count=True)

        count = other.replay_dead(QUEUE, [broker.dead_letters(QUEUE)[0].id])
        (again,) = collect(broker, 1)

        assert count == 1
        assert again.headers["id"] == "t1"
        assert body_of(again.raw, again.payload) == body_of(raw)
        assert (again.attempts, again.recovered) == (0, False)
        assert counts(broker) == {"in_flight": 1}
        ack(broker, again)
        assert counts(broker) == {}

    @requires(BrokerCapability.DEAD_LETTER)
    def test_replayed_messages_go_to_the_end_of_their_queue(self, broker: Broker) -> None:
        for name in ("dead1", "dead2"):
            _bury(broker, envelope(task_id=name))
        for name in ("waits1", "waits2"):
            broker.publish(QUEUE, envelope(task_id=name))

        broker.replay_dead(QUEUE)

        assert ids(collect(broker, 4, limit=1)) == ["waits1", "waits2", "dead1", "dead2"]

    @requires(BrokerCapability.DEAD_LETTER, BrokerCapability.PRIORITY)
    def test_replayed_message_keeps_its_priority(self, broker: Broker) -> None:
        urgent, late = self.urgent_first[0], self.urgent_first[-1]
        for priority in (late, urgent):
            broker.publish(QUEUE, envelope(task_id=f"p{priority}", priority=priority), priority=priority)
        for each in reversed(collect(broker, 2)):
            settle(broker, Verdict.DEAD, each, reason="r")

        broker.replay_dead(QUEUE)

        assert ids(collect(broker, 2, limit=1)) == [f"p{urgent}", f"p{late}"]

    @requires(BrokerCapability.DEAD_LETTER)
    def test_only_the_named_letters_are_replayed_and_once(self, broker: Broker) -> None:
        letters = _cemetery(broker, ["a", "b", "c"])

        count = broker.replay_dead(QUEUE, [letters["a"].id, letters["c"].id, letters["a"].id, "unknown"])
        repeated = broker.replay_dead(QUEUE, [letters["a"].id])

        assert (count, repeated) == (2, 0)
        assert each_once(["a", "c"], ids(collect(broker, 2)))
        assert counts(broker) == {"in_flight": 2, "dead": 1}

    @requires(BrokerCapability.DEAD_LETTER)
    def test_all_of_many_letters_are_replayed_once(self, broker: Broker) -> None:
        names = [f"t{n:04}" for n in range(1_200)]
        for name in names:
            broker.publish(QUEUE, envelope(task_id=name))
        settle(broker, Verdict.DEAD, *collect(broker, len(names)), reason="r")

        count = broker.replay_dead(QUEUE)

        assert count == len(names)
        assert counts(broker) == {"waiting": len(names)}
        assert each_once(names, ids(collect(broker, len(names))))

    @requires(BrokerCapability.DEAD_LETTER)
    def test_replay_and_drop_of_one_queue_leave_the_others(self, broker: Broker) -> None:
        (letter,) = _cemetery(broker, ["a"]).values()

        done = [broker.replay_dead("another"), broker.drop_dead("another"), broker.drop_dead("another", [letter.id])]

        assert done == [0, 0, 0]
        assert counts(broker) == {"dead": 1}

    @requires(BrokerCapability.DEAD_LETTER)
    def test_replayed_message_can_die_again(self, broker: Broker) -> None:
        _bury(broker, envelope(task_id="t1"), reason="first time")
        broker.replay_dead(QUEUE)

        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="second time")

        assert [letter.reason for letter in broker.dead_letters(QUEUE)] == ["second time"]

    # ------------------------------------------------------------------ deleted

    @requires(BrokerCapability.DEAD_LETTER)
    def test_dropped_letters_are_gone_and_others_stay(self, broker: Broker) -> None:
        letters = _cemetery(broker, ["a", "b", "c"])

        count = broker.drop_dead(QUEUE, [letters["b"].id, "unknown"])

        assert count == 1
        assert broker.dead_letter(QUEUE, letters["b"].id) is None
        assert [letter.id for letter in broker.dead_letters(QUEUE)] == [letters["c"].id, letters["a"].id]
        assert nothing_comes(broker)

    @requires(BrokerCapability.DEAD_LETTER)
    def test_all_letters_are_dropped_and_nothing_else(self, broker: Broker) -> None:
        _cemetery(broker, ["a", "b", "c"])
        broker.publish(QUEUE, envelope())

        assert broker.drop_dead(QUEUE) == 3

        assert counts(broker) == {"waiting": 1}
        assert broker.drop_dead(QUEUE) == 0


def _bury(broker: Broker, raw: bytes, reason: str = "r") -> None:
    broker.publish(QUEUE, raw)
    settle(broker, Verdict.DEAD, *collect(broker, 1), reason=reason)


def _cemetery(broker: Broker, names: Sequence[str]) -> dict[str, DeadLetter]:
    """Bury a message for each name, in this order; the letters by name."""
    found = {}
    for name in names:
        _bury(broker, envelope(task_id=name))
        found[name] = broker.dead_letters(QUEUE, limit=1)[0]
    return found
