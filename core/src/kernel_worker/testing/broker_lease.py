"""Broker contract: whose a message is. Leases, fencing, killed holders, close and reconnect."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..drivers import Broker
from ..errors import BrokerUnavailable
from ..types import BrokerCapability, Delivery, Verdict
from .broker_base import (
    QUEUE,
    BrokerSuite,
    MakeBroker,
    ack,
    collect,
    counts,
    each_once,
    ids,
    nothing_comes,
    settle,
)
from .contract import requires
from .messages import envelope


class LeaseTests(BrokerSuite, suite=True):
    """`renew`, `close`, `connect` again, and what happens when none of them is called."""

    @pytest.fixture
    def unreachable_broker(self) -> Callable[[], Broker]:
        """To be given by the plugin: makes a broker, not connected, whose server does not answer."""
        pytest.skip("the plugin gives no fixture unreachable_broker")

    # ------------------------------------------------------------------ a holder is gone

    @requires(BrokerCapability.LEASE)
    def test_messages_of_a_dead_holder_come_back(self, make_broker: MakeBroker, other: Broker) -> None:
        dead = make_broker(lease_s=self.short_lease_s)
        for n in range(5):
            dead.publish(QUEUE, envelope(task_id=f"t{n}"))
        collect(dead, 3)

        got = self.lose_lease(dead, other, 5)

        assert each_once([f"t{n}" for n in range(5)], ids(got))
        assert all(each.redelivered for each in got if each.headers["id"] in ("t0", "t1", "t2"))
        assert counts(other) == {"in_flight": 5}

    @requires(BrokerCapability.LEASE)
    def test_delivery_to_a_dead_holder_is_recovered_and_not_counted(
        self, make_broker: MakeBroker, other: Broker
    ) -> None:
        dead = make_broker(lease_s=self.short_lease_s)
        for n in range(2):
            dead.publish(QUEUE, envelope(task_id=f"t{n}"))
        collect(dead, 1)

        got = self.lose_lease(dead, other, 2)

        assert {each.headers["id"]: (each.recovered, each.attempts) for each in got} == {
            "t0": (True, 0),
            "t1": (False, 0),
        }

    @requires(BrokerCapability.LEASE, BrokerCapability.MARK)
    def test_marked_delivery_to_a_dead_holder_is_recovered_with_its_count(
        self, make_broker: MakeBroker, other: Broker
    ) -> None:
        dead = make_broker(lease_s=self.short_lease_s)
        for name in ("marked", "only held"):
            dead.publish(QUEUE, envelope(task_id=name))
        settle(dead, Verdict.MARK, collect(dead, 2)[0])

        got = self.lose_lease(dead, other, 2)

        found = {each.headers["id"]: (each.recovered, each.attempts) for each in got}
        assert found == {"marked": (True, 1), "only held": (True, 0)}

    @requires(BrokerCapability.LEASE, BrokerCapability.MARK)
    def test_each_marked_delivery_to_a_dead_holder_counts(self, make_broker: MakeBroker) -> None:
        """A message that kills its whole worker: the count rises although nobody is left to report anything."""
        holder = make_broker(lease_s=self.short_lease_s)
        holder.publish(QUEUE, envelope())
        (delivery,) = collect(holder, 1)

        seen = []
        for _ in range(3):
            settle(holder, Verdict.MARK, delivery)
            following = make_broker(lease_s=self.short_lease_s)
            (delivery,) = self.lose_lease(holder, following, 1)
            seen.append((delivery.recovered, delivery.attempts))
            holder = following

        assert seen == [(True, 1), (True, 2), (True, 3)]

    @requires(BrokerCapability.LEASE, BrokerCapability.MARK)
    @pytest.mark.parametrize("way", ["requeue", "delay", "close"])
    def test_recovered_delivery_that_was_not_run_stays_recovered(
        self, make_broker: MakeBroker, other: Broker, way: str
    ) -> None:
        dead, middle = make_broker(lease_s=self.short_lease_s), make_broker(lease_s=30.0)
        dead.publish(QUEUE, envelope())
        collect(dead, 1)
        got = self.lose_lease(dead, middle, 1)

        self._give_back(middle, way, *got)
        (again,) = collect(other, 1)

        assert (again.recovered, again.attempts) == (True, 0)

    @requires(BrokerCapability.LEASE, BrokerCapability.MARK)
    @pytest.mark.parametrize("way", ["requeue", "delay", "close"])
    def test_recovered_delivery_that_was_marked_is_given_back_with_its_count(
        self, make_broker: MakeBroker, other: Broker, way: str
    ) -> None:
        dead, middle = make_broker(lease_s=self.short_lease_s), make_broker(lease_s=30.0)
        dead.publish(QUEUE, envelope())
        collect(dead, 1)
        got = self.lose_lease(dead, middle, 1)

        settle(middle, Verdict.MARK, *got)
        self._give_back(middle, way, *got)
        (again,) = collect(other, 1)

        assert (again.recovered, again.attempts) == (False, 1)

    @requires(BrokerCapability.LEASE, BrokerCapability.ATTEMPTS)
    def test_recovered_delivery_that_is_counted_is_accounted_for(self, make_broker: MakeBroker, other: Broker) -> None:
        dead = make_broker(lease_s=self.short_lease_s)
        dead.publish(QUEUE, envelope())
        collect(dead, 1)

        settle(other, Verdict.REQUEUE, *self.lose_lease(dead, other, 1), count=True)
        (again,) = collect(other, 1)

        assert (again.recovered, again.attempts) == (False, 1)

    @staticmethod
    def _give_back(holder: Broker, way: str, *held: Delivery) -> None:
        if way == "requeue":
            settle(holder, Verdict.REQUEUE, *held)
        elif way == "delay":
            settle(holder, Verdict.DELAY, *held, until=time.time() + 0.1)
        else:
            holder.close()

    @requires(BrokerCapability.LEASE)
    def test_dead_holders_of_many_messages_give_all_back(self, make_broker: MakeBroker, other: Broker) -> None:
        names = [f"t{n:04}" for n in range(1_000)]
        dead = [make_broker(lease_s=self.short_lease_s) for _ in range(2)]
        for name in names:
            other.publish(QUEUE, envelope(task_id=name))
        collect(dead[0], 600)
        collect(dead[1], 300)

        got = self.lose_lease(dead[1], other, len(names))

        assert each_once(names, ids(got))

    @requires(BrokerCapability.LEASE)
    def test_messages_are_not_given_away_before_the_lease_is_over(
        self, broker: Broker, make_broker: MakeBroker
    ) -> None:
        """The holder's own lease counts, not the shorter one of the holder that looks."""
        hasty = make_broker(lease_s=self.short_lease_s)
        broker.publish(QUEUE, envelope())
        collect(broker, 1)

        assert nothing_comes(hasty, within_s=2 * self.short_lease_s)
        assert counts(broker) == {"in_flight": 1}

    @requires(BrokerCapability.LEASE)
    def test_renewing_keeps_messages_beyond_several_leases(self, make_broker: MakeBroker, other: Broker) -> None:
        lease_s = 2 * self.short_lease_s
        holder = make_broker(lease_s=lease_s)
        holder.publish(QUEUE, envelope(task_id="t1"))
        held = collect(holder, 1)

        until = time.monotonic() + 3 * lease_s
        while time.monotonic() < until:
            assert not holder.renew(held), "what is held was not lost"
            assert nothing_comes(other, within_s=lease_s / 4)
        ack(holder, *held)

        assert counts(other) == {}

    @requires(BrokerCapability.LEASE)
    def test_renewing_with_nothing_held_keeps_the_next_delivery(self, make_broker: MakeBroker, other: Broker) -> None:
        holder = make_broker(lease_s=2 * self.short_lease_s)
        until = time.monotonic() + 3 * self.short_lease_s
        while time.monotonic() < until:
            holder.renew([])
            assert holder.fetch(1, 0.1) == []

        holder.publish(QUEUE, envelope(task_id="t1"))
        held = collect(holder, 1)
        holder.renew(held)

        assert nothing_comes(other, within_s=self.short_lease_s)

    # ------------------------------------------------------------------ fencing

    @requires(BrokerCapability.LEASE)
    def test_holder_that_lost_its_messages_changes_nothing(self, make_broker: MakeBroker, other: Broker) -> None:
        lost = make_broker(lease_s=self.short_lease_s)
        for verdict in Verdict:  # without an exception: what is not declared changes nothing, either
            lost.publish(QUEUE, envelope(task_id=verdict.value))
        stale = collect(lost, len(Verdict))
        fresh = self.lose_lease(lost, other, len(Verdict))

        found = {}
        for each in stale:
            verdict = Verdict(each.headers["id"])
            settle(lost, verdict, each, reason="stale", until=time.time() + 60, count=True)
            found[verdict] = counts(other)
        ack(other, *fresh)

        assert found == {verdict: {"in_flight": len(Verdict)} for verdict in Verdict}
        assert counts(other) == {}

    @requires(BrokerCapability.LEASE)
    def test_renewing_a_lost_message_does_not_take_it_back(self, make_broker: MakeBroker, other: Broker) -> None:
        lost = make_broker(lease_s=self.short_lease_s)
        lost.publish(QUEUE, envelope())
        stale = collect(lost, 1)
        fresh = self.lose_lease(lost, other, 1)

        told = lost.renew(stale)
        ack(lost, *stale)
        found = counts(other)
        settle(other, Verdict.REQUEUE, *fresh)

        assert told is None or list(told) == stale
        assert found == {"in_flight": 1}
        assert counts(other) == {"waiting": 1}

    @requires(BrokerCapability.LEASE)
    def test_lost_message_in_a_batch_does_not_keep_the_others_from_being_settled(
        self, make_broker: MakeBroker, other: Broker
    ) -> None:
        lost = make_broker(lease_s=self.short_lease_s)
        lost.publish(QUEUE, envelope(task_id="stale"))
        stale = collect(lost, 1)
        fresh = self.lose_lease(lost, other, 1)
        lost.renew([])
        for name in ("mine1", "mine2"):
            lost.publish(QUEUE, envelope(task_id=name))
        mine = collect(lost, 2)

        told = lost.renew([mine[0], *stale, mine[1]])
        ack(lost, mine[0], *stale, mine[1])
        found = counts(other)
        ack(other, *fresh)

        assert told is None or list(told) == stale
        assert found == {"in_flight": 1}
        assert counts(other) == {}

    @requires(BrokerCapability.LEASE)
    def test_holder_that_lost_its_lease_can_go_on(self, make_broker: MakeBroker, other: Broker) -> None:
        """A worker that was suspended wakes up: its old messages are gone, new ones are safe with it."""
        paused = make_broker(lease_s=4 * self.short_lease_s)
        paused.publish(QUEUE, envelope(task_id="old"))
        collect(paused, 1)
        self.lose_lease(paused, other, 1)

        paused.renew([])
        paused.publish(QUEUE, envelope(task_id="new"))
        held = collect(paused, 1)
        paused.renew(held)

        assert nothing_comes(other, within_s=self.short_lease_s)
        ack(paused, *held)
        assert counts(other) == {"in_flight": 1}

    # ------------------------------------------------------------------ close, connect again

    def test_close_gives_back_at_once_and_counts_nothing(self, broker: Broker, other: Broker) -> None:
        for n in range(6):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        collect(broker, 4)

        broker.close()
        got = collect(other, 6)

        assert each_once([f"t{n}" for n in range(6)], ids(got))
        assert set(ids(got)[:4]) == {"t0", "t1", "t2", "t3"}, "what was reserved comes before what waited"
        assert [(each.attempts, each.recovered) for each in got] == [(0, False)] * 6

    def test_close_gives_back_nothing_that_was_settled(self, broker: Broker, other: Broker) -> None:
        for n in range(2):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        done, _ = collect(broker, 2)
        ack(broker, done)

        broker.close()

        assert ids(collect(other, 1)) == ["t1"]
        assert nothing_comes(other)

    def test_close_twice_is_close_once(self, broker: Broker, other: Broker) -> None:
        broker.publish(QUEUE, envelope())
        collect(broker, 1)

        broker.close()
        broker.close()

        assert len(collect(other, 1)) == 1
        assert nothing_comes(other)

    def test_close_leaves_the_messages_of_others(self, broker: Broker, other: Broker) -> None:
        for n in range(2):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        collect(other, 1)
        collect(broker, 1)

        broker.close()

        assert ids(collect(other, 1)) == ["t1"]
        assert nothing_comes(other)

    def test_connecting_again_keeps_what_is_held(self, broker: Broker, other: Broker) -> None:
        """After a connection loss tasks run on, and their acks still count."""
        for n in range(2):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        held = collect(broker, 1)

        broker.connect()
        broker.declare(broker.context.queues)
        broker.renew(held)
        ack(broker, *held)
        got = collect(broker, 1)

        assert ids(got) == ["t1"]
        ack(broker, *got)
        assert counts(other) == {}

    def test_server_that_does_not_answer_is_unavailable(self, unreachable_broker: Callable[[], Broker]) -> None:
        broker = unreachable_broker()
        began = time.monotonic()

        with pytest.raises(BrokerUnavailable) as caught:
            broker.connect()

        assert time.monotonic() - began < 10
        assert caught.value.message
        broker.close()

    # ------------------------------------------------------------------ killed processes

    @requires(BrokerCapability.LEASE)
    def test_processes_killed_while_reserving_lose_nothing(
        self, broker: Broker, make_broker: MakeBroker, tmp_path: Path
    ) -> None:
        """Real processes, SIGKILL at random moments, some acks on the way: what was not acked comes back."""
        names = [f"t{n:03}" for n in range(300)]
        for name in names:
            broker.publish(QUEUE, envelope(task_id=name))
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        ledger = tmp_path / "acked"
        ledger.touch()

        for _ in range(8):
            with _reserving_process(make_broker(lease_s=self.short_lease_s), ledger) as process:
                time.sleep(chance.uniform(0.0, 0.03))  # the moment of death, not a wait
                process.send_signal(signal.SIGKILL)
        acked = ledger.read_text().split()
        left = _collect_ids(broker, set(names) - set(acked), within_s=self.short_lease_s + 2.0)

        lost = set(names) - set(acked) - set(left)
        assert not lost, f"seed {seed}: lost {sorted(lost)}"
        assert len(left) == len(set(left)), f"seed {seed}: delivered twice to one holder"


def _collect_ids(broker: Broker, expected: set[str], *, within_s: float) -> list[str]:
    """Ids of what is delivered until all expected ones came and nothing else does; settled at once."""
    got: list[str] = []
    deadline = time.monotonic() + within_s
    while True:
        batch = broker.fetch(100, 0.2)
        got += ids(batch)
        ack(broker, *batch)
        broker.renew([])
        if not batch and (expected <= set(got) or time.monotonic() > deadline):
            return got


@contextlib.contextmanager
def _reserving_process(like: Broker, ledger: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reserves and settles with a broker like the given one, as fast as it can."""
    driver = type(like)
    job = {
        "driver": f"{driver.__module__}:{driver.__qualname__}",
        "path": sys.path,
        "url": like.context.url,
        "holder": like.context.holder + "/process",
        "queues": [queue.name for queue in like.context.queues],
        "lease_s": like.context.lease_s,
        "options": dict(like.context.options),
        "ledger": str(ledger),
    }
    like.close()
    command = [sys.executable, "-m", "kernel_worker.testing.reserving_process", json.dumps(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"reserving\n", "the reserving process failed to start"
            yield process
        finally:
            process.kill()
