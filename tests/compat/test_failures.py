"""Failures, as each client rebuilds them from what each worker stored."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from . import clients
from .conftest import CELERY, Pair

# kind of `compat.fail`: module of the class ("" = made up by the client), its name, arguments
KNOWN = {
    "ValueError": ("builtins", "ValueError", ("boom", 7)),
    "KeyError": ("builtins", "KeyError", ("missing",)),
    "no arguments": ("builtins", "RuntimeError", ()),
    "unknown class": ("", "OddError", ("odd", [1, {"a": None}])),
    "nested class": ("", "Inner", ("within",)),
    "argument that is no JSON": ("builtins", "ValueError", ("<class 'set'>", "text")),
    "unicode": ("builtins", "ValueError", ("snow ☃ and \U0001f600",)),
    "OSError": ("builtins", "FileNotFoundError", (errno.ENOENT, "No such file or directory")),
    "UnicodeDecodeError": ("builtins", "UnicodeDecodeError", ("utf-8", b"\xff", 0, 1, "invalid start byte")),
}

OWN_ERRORS = {CELERY: "celery.exceptions", "kw": "kernel_app.exceptions"}


@pytest.mark.parametrize(("kind", "expected"), KNOWN.items(), ids=KNOWN.keys())
def test_failure_is_raised_as_its_class_with_its_arguments(
    pair: Pair, kind: str, expected: tuple[str, str, tuple[object, ...]]
) -> None:
    module, name, args = expected

    answer = pair.call("fail", kind)

    assert answer.state == "FAILURE"
    assert answer.error.startswith(module or OWN_ERRORS[pair.client_kind])
    assert answer.error.rpartition(".")[2] == name
    assert answer.args == args
    assert answer.traceback is not None
    assert answer.traceback.startswith("Traceback (most recent call last):")
    assert "in fail" in answer.traceback


def test_failure_that_its_own_class_cannot_be_built_from_is_told_all_the_same(pair: Pair) -> None:
    answer = pair.call("fail", "demanding constructor")

    assert answer.state == "FAILURE"
    assert "5: why" in repr(answer.args)


def test_result_without_json_is_a_failure(pair: Pair) -> None:
    answer = pair.call("unwritable")

    assert answer.state == "FAILURE"
    assert answer.error.endswith("EncodeError")
    assert "object" in answer.args[0]


def test_task_without_a_name_here_is_a_failure(pair: Pair) -> None:
    answer = pair.call("no_such_task")

    assert (answer.state, answer.error) == ("FAILURE", f"{OWN_ERRORS[pair.client_kind]}.NotRegistered")
    assert answer.args == ("compat.no_such_task",)


def test_wrong_number_of_arguments_is_a_failure(pair: Pair) -> None:
    answer = pair.call("add", 1, 2, 3)

    assert (answer.state, answer.error) == ("FAILURE", "builtins.TypeError")


def test_retries_are_seen_until_the_last_one_succeeds(pair: Pair) -> None:
    seen = pair.do(clients.states, "compat.retry", (2, 1.0), queue=pair.queue)

    assert [entry for entry in seen if entry[0] != "PENDING"] == [("RETRY", "ValueError"), ("SUCCESS", "2")]


def test_retry_that_comes_by_itself_counts(pair: Pair) -> None:
    assert pair.call("automatic", 3).value == 3


def test_retry_keeps_what_the_call_was_given(pair: Pair) -> None:
    answer = pair.call(
        "about_again", 7, kwargs={"more": "x"}, shadow="dark", headers={"tenant": "acme"}, time_limit=30, priority=3
    )

    about = answer.value
    assert (about["id"], about["retries"], about["root_id"]) == (answer.id, 1, answer.id)
    assert (about["args"], about["kwargs"]) == ([7], {"more": "x"})
    assert (about["shadow"], about["tenant"], about["timelimit"]) == ("dark", "acme", [30, None])
    assert about["delivery_info"]["routing_key"] == pair.queue
    assert about["delivery_info"]["priority"] == 3


def test_task_that_gives_up_raises_what_made_it_retry(pair: Pair) -> None:
    answer = pair.call("give_up", "disk full")

    assert (answer.state, answer.error, answer.args) == ("FAILURE", "builtins.OSError", ("disk full",))


def test_task_that_gives_up_without_an_error_says_so(pair: Pair) -> None:
    answer = pair.call("give_up")

    assert (answer.state, answer.error) == ("FAILURE", f"{OWN_ERRORS[pair.client_kind]}.MaxRetriesExceededError")
    assert answer.id in answer.args[0]


def test_started_state_tells_who_runs_it(pair: Pair) -> None:
    seen = pair.do(clients.states, "compat.tracked", (1.5,), queue=pair.queue)

    started, done = (entry for entry in seen if entry[0] != "PENDING")
    assert started[0] == "STARTED"
    assert "'pid'" in started[1]
    assert "'hostname'" in started[1]
    assert done == ("SUCCESS", "'done'")


def test_time_limits_of_the_call_are_kept(pair: Pair, tmp_path: Path) -> None:
    hard = pair.send("sleep", str(tmp_path / "ledger"), "hard", 30, time_limit=1)
    soft = pair.send("sleep", str(tmp_path / "ledger"), "soft", 30, soft_time_limit=1)

    over, warned = pair.wait(hard), pair.wait(soft)

    home = "billiard.exceptions" if pair.client_kind == CELERY else OWN_ERRORS["kw"]
    assert (over.state, over.error, over.args) == ("FAILURE", f"{home}.TimeLimitExceeded", (1,))
    assert (warned.state, warned.error) == ("FAILURE", f"{home}.SoftTimeLimitExceeded")


def test_task_may_catch_its_soft_limit(pair: Pair) -> None:
    assert pair.call("soft", 30, soft_time_limit=1, time_limit=20).value == "SoftTimeLimitExceeded"
