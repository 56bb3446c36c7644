"""Trying again: `self.retry`, `autoretry_for`, and what happens when the broker is away."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kernel_app import App, MaxRetriesExceededError, Reject, Retry, Task
from kernel_app.retrying import backoff
from kernel_worker.types import OutcomeKind
from tests.plugins.app_native.conftest import MakeApp, Worker, body_of, meta_of, publisher


def test_a_retry_sends_the_same_message_again(app: App) -> None:
    @app.task(bind=True, name="t")
    def again(self: Task[..., Any], x: int) -> None:
        raise self.retry(countdown=30, exc=KeyError("again"))

    link = app.signature("cb")
    first = again.apply_async(
        (1,), task_id="i", queue="q", priority=5, shadow="sh", headers={"x": "v"}, link=link, link_error=link,
        time_limit=9, soft_time_limit=8, group_id="g", group_index=2, reply_to="r", chain=[link], ignore_result=False,
        stamped_headers=["s"], s="stamp", expires=datetime(2100, 1, 1, tzinfo=UTC),
    )  # type: ignore[call-arg] # fmt: skip
    before = publisher(app).sent[0]
    outcome = Worker(app).run(queue="q")
    after = publisher(app).sent[0]

    assert outcome.kind is OutcomeKind.RETRY
    assert outcome.error == "Retry in 30s: KeyError('again')"
    changed = {name: value for name, value in after.headers.items() if value != before.headers[name]}
    assert changed.keys() == {"retries", "eta", "parent_id"}
    assert (changed["retries"], changed["parent_id"]) == (1, first.id)
    left = datetime.fromisoformat(changed["eta"]) - datetime.now(UTC)
    assert timedelta(seconds=25) < left <= timedelta(seconds=30)
    assert (after.queue, after.priority, body_of(after)) == ("q", 5, body_of(before))
    for message in (before, after):
        message.properties.pop("expiration")  # of the moment it was sent
    assert after.properties == before.properties
    meta = meta_of(outcome)
    assert (meta["status"], meta["result"]["exc_type"], meta["date_done"]) == ("RETRY", "KeyError", None)
    assert meta["children"] == []


def test_a_retry_may_change_arguments_and_options(app: App) -> None:
    @app.task(bind=True, name="t")
    def again(self: Task[..., Any], x: int) -> None:
        self.retry(args=(2,), kwargs={"y": 3}, eta=datetime(2100, 1, 1, tzinfo=UTC), queue="other", priority=1)

    again.delay(1)
    outcome = Worker(app).run()
    message = publisher(app).sent[0]

    assert outcome.kind is OutcomeKind.RETRY
    assert body_of(message)[:2] == [[2], {"y": 3}]
    assert (message.queue, message.priority) == ("other", 1)
    assert message.headers["eta"] == "2100-01-01T00:00:00+00:00"


def test_a_retry_goes_back_to_the_queue_it_came_from(make_app: MakeApp) -> None:
    from kernel_app import Queue

    app = make_app(task_queues=[Queue("logs", "events", "topic", "log.#")], task_default_queue="logs")

    @app.task(bind=True, name="t")
    def again(self: Task[..., Any]) -> None:
        self.retry()

    again.delay()
    assert publisher(app).sent[0].exchange == "events"
    Worker(app).run(queue="logs")

    message = publisher(app).sent[0]
    assert (message.queue, message.exchange, message.routing_key) == ("logs", "", "logs")


def test_the_last_try_raises_the_error(app: App) -> None:
    @app.task(bind=True, max_retries=2, default_retry_delay=0.01)
    def fails(self: Task[..., Any]) -> None:
        try:
            raise ValueError("cause")
        except ValueError as error:
            raise self.retry(exc=error) from None

    fails.delay()
    outcomes = Worker(app).run_all()

    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.RETRY, OutcomeKind.RETRY, OutcomeKind.FAILURE]
    assert meta_of(outcomes[-1])["result"]["exc_type"] == "ValueError"


def test_without_an_error_the_last_try_says_so(app: App) -> None:
    @app.task(bind=True, max_retries=0)
    def fails(self: Task[..., Any]) -> None:
        self.retry()

    fails.delay()

    assert meta_of(Worker(app).run())["result"]["exc_type"] == "MaxRetriesExceededError"


def test_max_retries_none_is_no_limit(app: App) -> None:
    @app.task(bind=True, max_retries=None)
    def fails(self: Task[..., Any]) -> None:
        self.retry()

    fails.apply_async(retries=1000)

    assert Worker(app).run().kind is OutcomeKind.RETRY


def test_called_directly_a_retry_raises_the_error(app: App) -> None:
    @app.task(bind=True)
    def fails(self: Task[..., Any]) -> None:
        raise self.retry(exc=ValueError("here"))

    with pytest.raises(ValueError, match="here"):
        fails()
    assert publisher(app).sent == []


def test_throw_false_goes_on(app: App) -> None:
    @app.task(bind=True)
    def goes_on(self: Task[..., Any]) -> str:
        assert isinstance(self.retry(throw=False), Retry)
        return "done"

    goes_on.delay()
    outcome = Worker(app).run()

    assert outcome.kind is OutcomeKind.SUCCESS
    assert publisher(app).sent[0].headers["retries"] == 1


def test_a_retry_raised_by_hand_is_sent(app: App) -> None:
    @app.task
    def by_hand() -> None:
        raise Retry(when=5)

    by_hand.delay()

    assert Worker(app).run().kind is OutcomeKind.RETRY
    assert publisher(app).sent[0].headers["retries"] == 1


@pytest.mark.parametrize(("late", "kind"), [(True, OutcomeKind.REJECT), (False, OutcomeKind.FAILURE)])
def test_a_retry_that_cannot_be_sent_is_not_lost(make_app: MakeApp, late: bool, kind: OutcomeKind) -> None:
    app = make_app(task_publish_retry=False)

    @app.task(bind=True, acks_late=late)
    def again(self: Task[..., Any]) -> None:
        self.retry()

    again.delay()
    publisher(app).outages = 1
    outcome = Worker(app).run()

    assert (outcome.kind, outcome.requeue) == (kind, late)
    assert "cannot be reached" in outcome.error


# --------------------------------------------------------------------------- autoretry


class Flaky(Exception):
    pass


class Hopeless(Flaky):
    pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Flaky("x"), OutcomeKind.RETRY),
        (Hopeless("x"), OutcomeKind.FAILURE),
        (ValueError("x"), OutcomeKind.FAILURE),
        (Reject("x"), OutcomeKind.REJECT),
    ],
    ids=["listed", "excluded", "not listed", "reject"],
)
def test_errors_are_retried_as_listed(app: App, error: Exception, kind: OutcomeKind) -> None:
    @app.task(autoretry_for=(Flaky, Reject), dont_autoretry_for=[Hopeless], retry_kwargs={"countdown": 7})
    def run() -> None:
        raise error

    run.delay()
    outcome = Worker(app).run()

    assert outcome.kind is kind
    if kind is OutcomeKind.RETRY:
        assert outcome.error == "Retry in 7s: Flaky('x')"


def test_automatic_retries_end_with_the_error(app: App) -> None:
    @app.task(autoretry_for=(Flaky,), max_retries=1)
    def run() -> None:
        raise Flaky("still")

    run.delay()
    outcomes = Worker(app).run_all()

    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.RETRY, OutcomeKind.FAILURE]
    assert meta_of(outcomes[1])["result"]["exc_type"] == "Flaky"
    assert "still" in (meta_of(outcomes[1])["traceback"] or "")


def test_retry_kwargs_may_limit_the_retries(app: App) -> None:
    @app.task(autoretry_for=(Flaky,), retry_kwargs={"max_retries": 0})
    def run() -> None:
        raise Flaky

    run.delay()

    assert Worker(app).run().kind is OutcomeKind.FAILURE


@pytest.mark.parametrize(
    ("factor", "retries", "most", "seconds"),
    [(1, 0, 600, 1), (1, 3, 600, 8), (5, 2, 600, 20), (1, 50, 600, 600), (1, 10**9, 600, 600), (3, 4, 10, 10)],
)
def test_backoff_doubles_up_to_its_most(factor: int, retries: int, most: int, seconds: int) -> None:
    assert backoff(factor, retries, most, jitter=False) == seconds
    jittered = {backoff(factor, retries, most, jitter=True) for _ in range(50)}
    assert min(jittered) >= 0
    assert max(jittered) <= seconds


def test_backoff_is_used(app: App) -> None:
    @app.task(autoretry_for=(Flaky,), retry_backoff=4, retry_jitter=False)
    def run() -> None:
        raise Flaky

    run.apply_async(retries=2)

    assert Worker(app).run().error == "Retry in 16s: Flaky()"


def test_a_retry_is_logged_once(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kernel_app.task")

    @app.task(autoretry_for=(Flaky,), retry_kwargs={"countdown": 1}, name="t")
    def run() -> None:
        raise Flaky("x")

    run.apply_async(task_id="i")
    Worker(app).run()

    assert [record.getMessage() for record in caplog.records] == ["Task t[i] retry: Retry in 1s: Flaky('x')"]


def test_the_limit_error_knows_the_arguments() -> None:
    error = MaxRetriesExceededError("x", task_args=(1,), task_kwargs={"a": 2})

    assert (error.task_args, error.task_kwargs) == ((1,), {"a": 2})
