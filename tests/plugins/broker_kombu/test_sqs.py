"""SQS: delivered twice, FIFO queues, predefined queues, long delays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kernel_broker_kombu import SqsBroker
from kernel_broker_kombu.sqs.settings import SqsSettings
from kernel_worker.drivers import BrokerContext
from kernel_worker.errors import BrokerRefused
from kernel_worker.testing import broker_factory, envelope
from kernel_worker.testing.broker_base import QUEUE, ack, collect, counts, ids, nothing_comes, queues, settle
from kernel_worker.types import Verdict

Make = Callable[..., Any]


@pytest.fixture
def make(sqs_url: str, sqs_options: dict[str, Any]) -> Iterator[Make]:
    with broker_factory(SqsBroker, sqs_url, options=sqs_options, lease_s=30.0) as make:
        yield make


def test_message_that_sqs_delivers_again_while_it_runs_is_run_once(make: Make) -> None:
    broker = make()
    broker.publish(QUEUE, envelope())
    (delivery,) = collect(broker, 1)
    entry = {"Id": "0", "ReceiptHandle": delivery.receipt.handle, "VisibilityTimeout": 0}
    broker._queues.call("change_message_visibility_batch", QUEUE, Entries=[entry])

    assert nothing_comes(broker)
    ack(broker, delivery)

    assert counts(broker) == {}


def test_fifo_queue_gives_back_in_place_and_keeps_dead_letters(make: Make) -> None:
    broker = make(queues=queues("jobs.fifo"))
    for n in range(2):
        broker.publish("jobs.fifo", envelope(task_id=f"t{n}", queue="jobs.fifo"))
    (first,) = collect(broker, 1)

    settle(broker, Verdict.REQUEUE, first)
    (again,) = collect(broker, 1)
    settle(broker, Verdict.DEAD, again, reason="r")

    assert ids([first, again]) == ["t0", "t0"]
    assert ids(collect(broker, 1)) == ["t1"]
    assert [letter.reason for letter in broker.dead_letters("jobs.fifo")] == ["r"]


def test_message_due_after_the_longest_delay_is_parked_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_broker_kombu.sqs.messages.DELAY_S", 1)
    broker = make()
    broker.publish(QUEUE, envelope(task_id="later"))
    due = time.time() + 3.0

    settle(broker, Verdict.DELAY, *collect(broker, 1), until=due)

    assert ids(collect(broker, 1, within_s=15.0)) == ["later"]
    assert time.time() >= due - 1.0


def test_predefined_queue_without_one_for_its_dead_letters_is_refused(sqs_url: str, make: Make) -> None:
    url = make()._queues.url(QUEUE)
    broker = SqsBroker(
        BrokerContext(sqs_url, options={"region": "eu-central-1", "predefined_queues": {QUEUE: {"url": url}}})
    )
    broker.connect()

    with pytest.raises(BrokerRefused, match="dead letters") as caught:
        broker.declare(broker.context.queues)

    assert "celery.kw-dead" in caught.value.hint
    broker.close()


@pytest.mark.parametrize(
    ("queue", "name"), [("celery", "p_x-celery"), ("a.b c:d", "p_x-a-b c_d"), ("q.fifo", "p_x-q.fifo")]
)
def test_queue_has_the_name_that_kombu_gives_it(queue: str, name: str) -> None:
    from kombu.transport.SQS import Channel

    settings = SqsSettings.of("sqs://", {"queue_name_prefix": "p:x-"})

    assert settings.name(queue) == name == Channel.entity_name(None, f"p:x-{queue}")
