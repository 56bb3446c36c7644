"""Signals: who is called, with what, and that nothing depends on it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from kernel_app import App
from kernel_app.signals import Signal, after_task_publish, before_task_publish
from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw


@pytest.fixture
def signal() -> Signal:
    return Signal("happened", "what")


def test_receivers_are_called_in_order_with_the_arguments(signal: Signal) -> None:
    heard: list[Any] = []
    signal.connect(lambda **given: heard.append(("first", given)))
    signal.connect(lambda **given: heard.append(("second", given)))

    signal.send("me", what=1)

    given = {"signal": signal, "sender": "me", "what": 1}
    assert heard == [("first", given), ("second", given)]


def test_decorator_leaves_the_function(signal: Signal) -> None:
    @signal.connect
    def plain(**_: Any) -> str:
        return "plain"

    @signal.connect(sender="me")
    def chosen(**_: Any) -> str:
        return "chosen"

    assert plain() == "plain"
    assert signal.send("me") == [(plain, "plain"), (chosen, "chosen")]
    assert signal.send("other") == [(plain, "plain")]


def test_sender_is_a_task_or_its_name(signal: Signal) -> None:
    app = App("toy", broker_url="sqlite:///nowhere.db")
    task = app.task(name="add")(lambda: None)
    other = app.task(name="sub")(lambda: None)
    signal.connect(lambda **_: "by task", sender=task)
    signal.connect(lambda **_: "by name", sender="add")

    assert [answer for _, answer in signal.send(task)] == ["by task", "by name"]
    assert [answer for _, answer in signal.send("add")] == ["by task", "by name"]
    assert signal.send(other) == []


def test_connecting_twice_changes_nothing(signal: Signal) -> None:
    def receiver(**_: Any) -> None: ...

    signal.connect(receiver)
    signal.connect(receiver)
    signal.connect(lambda **_: None, dispatch_uid="once")
    signal.connect(lambda **_: None, dispatch_uid="once")

    assert len(signal.send(None)) == 2


def test_disconnected_receivers_are_not_called(signal: Signal) -> None:
    def receiver(**_: Any) -> None: ...

    signal.connect(receiver)

    assert signal.disconnect(receiver)
    assert not signal.disconnect(receiver)
    assert signal.receivers == ()


def test_one_that_fails_is_logged_and_keeps_nobody_from_hearing(
    signal: Signal, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(**_: Any) -> None:
        raise KeyError("mine")

    signal.connect(failing)
    signal.connect(lambda **_: "heard")

    with caplog.at_level(logging.ERROR, "kernel_app"):
        answers = [answer for _, answer in signal.send(None)]

    assert isinstance(answers[0], KeyError)
    assert answers[1] == "heard"
    assert "failing of signal happened failed" in caplog.text


def test_receiver_must_be_callable(signal: Signal) -> None:
    with pytest.raises(TypeError, match="a receiver of happened is a function, not str"):
        signal.connect("nobody")  # type: ignore[call-overload]


def test_publishing_is_told_and_may_be_changed(tmp_path: Path) -> None:
    app = App("toy", broker_url=f"sqlite:///{tmp_path}/kw.db", result_backend=None)
    after: list[Any] = []

    def before(sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
        headers["tenant"] = f"{sender} {body[0]}"

    def later(sender: str, headers: dict[str, Any], routing_key: str, **_: Any) -> None:
        after.append((sender, headers["tenant"], routing_key))

    before_task_publish.connect(before, sender="add")
    after_task_publish.connect(later, sender="add")
    try:
        app.send_task("add", (1, 2))
        app.send_task("other")
    finally:
        before_task_publish.disconnect(before, sender="add")
        after_task_publish.disconnect(later, sender="add")
        app.close()

    assert after == [("add", "add (1, 2)", "celery")]


APP = """
from kernel_app import App, Ignore, Reject, signals
from kernel_worker.testing import Ledger

app = App("toy", broker_url="sqlite:///kw.db", result_backend="sqlite:///kw.db")
ledger = Ledger("ledger")

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="fail")
def fail():
    raise ValueError("no")

@app.task(name="again", bind=True, max_retries=1, default_retry_delay=0)
def again(self):
    raise self.retry(exc=ValueError("later"))

@app.task(name="reject")
def reject():
    raise Reject("not me")

@app.task(name="ignore")
def ignore():
    raise Ignore

@app.task(name="aadd")
async def aadd(x, y):
    return x + y

def name(sender):
    return getattr(sender, "name", "")

@signals.task_prerun.connect
def prerun(sender, task_id, task, args, kwargs, **_):
    ledger.note("prerun", task=name(sender), args=list(args))

@signals.task_postrun.connect
def postrun(sender, state, retval, **_):
    ledger.note("postrun", task=name(sender), state=state, value=str(retval))

@signals.task_success.connect
def success(sender, result, **_):
    ledger.note("success", task=name(sender), value=result)

@signals.task_failure.connect
def failure(sender, task_id, exception, einfo, **_):
    ledger.note("failure", task=name(sender), error=str(exception), has_text="ValueError" in str(einfo))
    raise RuntimeError("a receiver's own bug")

@signals.task_retry.connect
def retry(sender, request, reason, **_):
    ledger.note("retry", task=name(sender), id=request.id, reason=str(reason))

@signals.task_rejected.connect
def rejected(sender, exc, **_):
    ledger.note("rejected", task=name(sender), reason=exc.reason)

@signals.task_revoked.connect
def revoked(sender, request, expired, terminated, **_):
    ledger.note("revoked", task=name(sender), expired=expired, terminated=terminated)

@signals.task_unknown.connect
def unknown(name, id, **_):
    ledger.note("unknown", task=name)

for event in ("worker_process_init", "worker_process_shutdown", "worker_ready", "worker_shutdown"):
    getattr(signals, event).connect(lambda event=event, **_: ledger.note(event), dispatch_uid=event)
"""


@pytest.mark.parametrize("pool", ["prefork", "solo", "asyncio"])
def test_applications_hear_of_their_tasks_and_processes(kw: RunKw, tmp_path: Path, ledger: Ledger, pool: str) -> None:
    (tmp_path / "toy.py").write_text(APP)
    app = App("client", broker_url=f"sqlite:///{tmp_path}/kw.db", result_backend=None)
    size = ["-c", "2"] if pool != "solo" else []
    for task, args, options in (
        ("add", (1, 2), {}),
        ("aadd", (3, 4), {}),
        ("fail", (), {}),
        ("again", (), {}),
        ("reject", (), {}),
        ("ignore", (), {}),
        ("missing", (), {}),
        ("add", (5, 6), {"expires": 0.001}),
    ):
        app.send_task(task, args, **options)
    app.close()

    worker = kw("run", "-A", "toy", "-P", pool, *size, "-l", "debug", "-f", "kw.log")
    eventually(lambda: ledger.count("postrun") == 7 and ledger.count("revoked"), within_s=15)
    processes = 2 if pool == "prefork" else 1
    # one that is not up when the worker stops is killed, though it has been initialised
    eventually(lambda: (tmp_path / "kw.log").read_text().count(" is up") == processes, within_s=15)
    assert worker.stop() == 0

    states = sorted((entry["task"], entry["state"], entry["value"]) for entry in ledger.entries("postrun"))
    assert [(task, state) for task, state, _ in states] == [
        ("aadd", "SUCCESS"),
        ("add", "SUCCESS"),
        ("again", "FAILURE"),
        ("again", "RETRY"),
        ("fail", "FAILURE"),
        ("ignore", "IGNORED"),
        ("reject", "REJECTED"),
    ]
    assert ledger.count("prerun") == 7
    assert ledger.entries("prerun", task="add")[0]["args"] == [1, 2]
    assert sorted(entry["value"] for entry in ledger.entries("success")) == [3, 7]
    assert sorted(entry["error"] for entry in ledger.entries("failure") if entry["task"] == "fail") == ["no"]
    assert all(entry["has_text"] for entry in ledger.entries("failure"))
    assert ledger.count("retry", task="again") == 1
    assert ledger.entries("rejected")[0]["reason"] == "not me"
    assert ledger.entries("revoked")[0] | {"pid": 0, "at": 0} == {
        "event": "revoked", "task": "add", "expired": True, "terminated": False, "pid": 0, "at": 0,
    }  # fmt: skip
    assert ledger.count("worker_process_init") == ledger.count("worker_process_shutdown") == processes
    assert ledger.count("worker_ready") == ledger.count("worker_shutdown") == 1
