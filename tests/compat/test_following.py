"""What follows a task: links, chains, groups and chords. Who publishes the next step is the worker."""

from __future__ import annotations

import time
import uuid

import pytest

from kernel_worker.testing import Ledger, eventually

from . import clients
from .conftest import KW, Pair


def test_link_runs_with_the_result(pair: Pair) -> None:
    answer, link_id = pair.do(clients.linked, "compat.add", (1, 2), "compat.about", (10,), queue=pair.queue)

    about = pair.wait(link_id).value
    assert answer.value == 3
    assert about["args"] == [3, 10]
    assert (about["parent_id"], about["root_id"]) == (answer.id, answer.id)
    assert [child.id for child in pair.do(clients.children, answer.id)] == [link_id]


def test_immutable_link_runs_with_its_own_arguments_only(pair: Pair) -> None:
    _, link_id = pair.do(clients.linked, "compat.add", (1,), "compat.about", (10,), immutable=True, queue=pair.queue)

    assert pair.wait(link_id).value["args"] == [10]


@pytest.mark.parametrize(
    ("errback", "event"), [("errback", "errback"), ("inspect_failure", "failure")], ids=["by id", "in the worker"]
)
def test_errback_is_told_of_the_failure(pair: Pair, ledger: Ledger, errback: str, event: str) -> None:
    """One that takes an id is sent; one that takes more is called with request, error and traceback. What its
    signature brings along does not count."""
    answer, _ = pair.do(
        clients.linked,
        *("compat.fail", ("ValueError",), f"compat.{errback}", (str(ledger.path),)),
        kind="link_error",
        queue=pair.queue,
    )

    (told,) = eventually(ledger.entries, within_s=10)
    assert (told["event"], told["task_id"]) == (event, answer.id)
    if event == "failure":
        assert told["error"] == "ValueError('boom', 7)"
        assert told["traceback"].startswith("Traceback")


def test_bound_errback_is_sent(pair: Pair, ledger: Ledger) -> None:
    """So that it may retry: it has a request of its own."""
    answer, errback_id = pair.do(
        clients.linked,
        *("compat.fail", ("ValueError",), "compat.bound_errback", (str(ledger.path),)),
        kind="link_error",
        queue=pair.queue,
    )

    (told,) = eventually(lambda: ledger.entries("bound errback"), within_s=10)
    assert (told["failed"], told["own"]) == (answer.id, errback_id)


def test_task_sent_by_a_task_is_its_child(pair: Pair) -> None:
    answer = pair.call("parent", 5)

    (child,) = pair.do(clients.children, answer.id)
    assert child.id == answer.value
    assert (child.value["parent_id"], child.value["root_id"], child.value["args"]) == (answer.id, answer.id, [5])


def test_chain_that_our_client_sends_runs_to_its_end(from_kw: Pair) -> None:
    """Steps that follow are given last first, as they stand in the message."""
    ids = [str(uuid.uuid4()) for _ in range(3)]

    from_kw.do(
        clients.call_with_chain, "compat.add", (1, 1), [("compat.add", 2), ("compat.add", 3)], ids, from_kw.queue
    )

    assert [answer.value for answer in from_kw.do(clients.wait_many, ids)] == [2, 4, 7]


# --------------------------------------------------------------------------- what Celery's client can compose


def test_chain_hands_results_on(from_celery: Pair) -> None:
    steps = [("add", 1, 1), ("add", 2), ("si add", 5, 5), ("about",)]

    answers = from_celery.do(clients.chain, steps, from_celery.queue)

    about = answers[-1].value
    assert [answer.value for answer in answers[:-1]] == [2, 4, 10]
    assert about["args"] == [10]
    assert (about["root_id"], about["parent_id"]) == (answers[0].id, answers[2].id)


def test_chain_carries_its_stamps(from_celery: Pair) -> None:
    answers = from_celery.do(clients.chain, [("about",), ("about",)], from_celery.queue, {"colour": "red"})

    assert [answer.value["stamps"] for answer in answers] == [{"colour": "red"}] * 2


def test_failure_fails_the_rest_of_the_chain(from_celery: Pair) -> None:
    steps = [("add", 1), ("si fail", "ValueError"), ("add", 2), ("add", 3)]

    first, *rest = from_celery.do(clients.chain, steps, from_celery.queue)

    assert first.value == 1
    assert [(answer.error, answer.args) for answer in rest] == [("builtins.ValueError", ("boom", 7))] * 3


def test_expiry_of_a_step_ends_the_wait_for_the_chain(from_celery: Pair) -> None:
    assert from_celery.do(clients.refusal, clients.expired_chain, from_celery.queue) == ("TaskRevokedError", "expired")


def test_group_gathers_results_in_order(from_celery: Pair) -> None:
    values, completed = from_celery.do(clients.group, [("add", n) for n in range(20)], from_celery.queue)

    assert values == list(range(20))
    assert completed == 20


def test_chain_may_end_in_a_group(from_celery: Pair) -> None:
    answers = from_celery.do(clients.chain_with_group, ("add", 1), [("add", 10), ("add", 20)], from_celery.queue)

    assert [answer.value for answer in answers] == [11, 21]


# Not supported yet by `kw`, and therefore said at once instead of leaving the client waiting.


def test_chord_ends(from_celery: Pair) -> None:
    answer = from_celery.do(clients.chord, [("add", n) for n in range(5)], ("total",), from_celery.queue)

    if from_celery.worker_kind == KW:
        assert (answer.state, answer.error) == ("FAILURE", "celery.exceptions.ChordError")
        assert "not supported" in answer.args[0]
    else:
        assert answer.value == 10


def test_chord_within_a_chain_ends(from_celery: Pair) -> None:
    started = time.monotonic()

    last, members = from_celery.do(clients.chain_with_chord, [("add", 1)], from_celery.queue)

    if from_celery.worker_kind == KW:
        assert [answer.error for answer in (last, *members)] == ["celery.exceptions.ChordError"] * 3
    else:
        assert (last.value, [answer.value for answer in members]) == (3, [1, 2])
    assert time.monotonic() - started < 18


def test_failure_before_a_chord_reaches_its_body(from_celery: Pair) -> None:
    last, _ = from_celery.do(
        clients.chain_with_chord, [("si fail", "ValueError")], from_celery.queue, wait_for_members=False
    )

    assert (last.error, last.args) == ("builtins.ValueError", ("boom", 7))


def test_chunks_end(from_celery: Pair) -> None:
    answer = from_celery.do(clients.chunks, from_celery.queue)

    assert answer.value == [3, 7]
