"""What follows a run: callbacks, chains, errbacks; and signatures as clients make them."""

from __future__ import annotations

import json
from typing import Any

import celery
import pytest

from kernel_app import App
from kernel_worker.types import OutcomeKind
from tests.plugins.app_native.conftest import (
    MakeApp,
    Worker,
    body_of,
    job_of,
    meta_of,
    publisher,
    results,
    sent_by_celery,
)


@pytest.fixture
def app(make_app: MakeApp) -> App:
    app = make_app(task_publish_retry=False)

    @app.task(name="add")
    def add(*values: int) -> int:
        return sum(values)

    @app.task(name="fail")
    def fail(*_: Any) -> None:
        raise ValueError("boom")

    return app


def sent(app: App) -> list[tuple[str, Any]]:
    """Name and args of what was sent."""
    return [(message.headers["task"], body_of(message)[0]) for message in publisher(app).sent]


def test_callbacks_get_the_result_before_their_own_arguments(app: App) -> None:
    add = app.tasks["add"]
    first = add.apply_async((1, 2), link=[add.s(10), add.si(5, 5), add.s().set(queue="q", priority=3)])
    outcome = Worker(app).run()

    assert sent(app) == [("add", [3, 10]), ("add", [5, 5]), ("add", [3])]
    last = publisher(app).sent[2]
    assert (last.queue, last.priority) == ("q", 3)
    assert {message.headers["parent_id"] for message in publisher(app).sent} == {first.id}
    assert {message.headers["root_id"] for message in publisher(app).sent} == {first.id}
    assert len(meta_of(outcome)["children"]) == 3


def test_a_chain_goes_on_with_its_last_element(app: App) -> None:
    add = app.tasks["add"]
    chain = [add.s(100).set(task_id="c"), add.s(10).set(task_id="b")]
    add.apply_async((1, 2), task_id="a", chain=chain)
    at_work = Worker(app)
    at_work.run()

    message = publisher(app).sent[0]
    assert (message.headers["id"], body_of(message)[0]) == ("b", [3, 10])
    assert [element["options"]["task_id"] for element in body_of(message)[2]["chain"]] == ["c"]
    at_work.run_all()
    assert app.AsyncResult("c").get(timeout=1) == 113
    assert app.AsyncResult("b").get(timeout=1) == 13


def test_a_failure_fails_the_rest_of_the_chain(app: App) -> None:
    add, fail = app.tasks["add"], app.tasks["fail"]
    fail.apply_async(chain=[add.s().set(task_id="c"), add.s().set(task_id="b"), add.s()])
    Worker(app).run()

    assert sent(app) == []
    for task_id in "bc":
        with pytest.raises(ValueError, match="boom"):
            app.AsyncResult(task_id).get(timeout=1)
        assert "boom" in (app.AsyncResult(task_id).traceback or "")


def test_errbacks_are_called_here_or_sent(app: App) -> None:
    calls: list[Any] = []

    @app.task(name="here")
    def here(request: Any, error: BaseException, traceback: str, *more: Any) -> None:
        calls.append((request.id, repr(error), "Traceback" in traceback, more))

    @app.task(name="broken")
    def broken(request: Any, error: BaseException, traceback: str) -> None:
        raise RuntimeError

    @app.task(name="by_id")
    def by_id(task_id: str) -> None: ...

    links = [broken.s(), here.s("x"), by_id.s(), app.signature("elsewhere", ("y",)), here.si(), {"no": "signature"}, 5]
    app.tasks["fail"].apply_async(task_id="i", link_error=links)
    outcome = Worker(app).run()

    assert outcome.kind is OutcomeKind.FAILURE
    assert calls == [("i", "ValueError('boom')", True, ("x",))]
    assert sent(app) == [("by_id", ["i"]), ("elsewhere", ["i", "y"]), ("here", [])]


def test_an_errback_is_called_by_what_its_signature_leaves_open(app: App) -> None:
    """Arguments that it brings along do not make a taker of ids a taker of failures, and a bound one is sent."""
    calls: list[Any] = []

    @app.task(name="by_id")
    def by_id(task_id: str, note: str) -> None:
        calls.append("by_id")

    @app.task(name="bound", bind=True)
    def bound(self: Any, request: Any, error: BaseException, traceback: str) -> None:
        calls.append("bound")

    @app.task(name="by_keyword")
    def by_keyword(request: Any, error: BaseException, traceback: str, note: str) -> None:
        calls.append("by_keyword")

    app.tasks["fail"].apply_async(
        task_id="i", link_error=[by_id.s("x"), by_id.s(note="x"), bound.s(), by_keyword.s(note="x")]
    )
    Worker(app).run()

    assert calls == ["by_keyword"]
    assert sent(app) == [("by_id", ["i", "x"]), ("by_id", ["i"]), ("bound", ["i"])]


def test_errbacks_do_not_run_after_a_retry(app: App) -> None:
    @app.task(name="retried", autoretry_for=(ValueError,), retry_kwargs={"countdown": 1})
    def retried() -> None:
        raise ValueError

    retried.apply_async(link_error=app.signature("errback"))
    Worker(app).run()

    assert [name for name, _ in sent(app)] == ["retried"]


@pytest.mark.parametrize(("late", "kind"), [(True, OutcomeKind.REJECT), (False, OutcomeKind.FAILURE)])
def test_a_chain_that_cannot_go_on_now_is_not_lost(app: App, late: bool, kind: OutcomeKind) -> None:
    add = app.tasks["add"]
    add.acks_late = late
    add.apply_async((1,), chain=[add.s()])
    publisher(app).outages = 1
    outcome = Worker(app).run()

    assert (outcome.kind, outcome.requeue) == (kind, late)


BROKEN_LINKS: dict[str, Any] = {
    "number": 5,
    "no task": {"args": []},
    "task is a number": {"task": 5},
    "args are an object": {"task": "add", "args": {"a": 1}},
    "options are a list": {"task": "add", "options": [1]},
    "empty chain": {"task": "celery.chain", "subtask_type": "chain", "kwargs": {}},
    "chord": {"task": "celery.chord", "subtask_type": "chord", "kwargs": {}},
    "bad eta": {"task": "add", "options": {"eta": "soon"}},
    "bad countdown": {"task": "add", "options": {"countdown": "soon"}},
}


@pytest.mark.parametrize("link", BROKEN_LINKS.values(), ids=BROKEN_LINKS.keys())
def test_a_broken_callback_is_a_failure_of_the_task(app: App, link: Any) -> None:
    app.tasks["add"].apply_async((1, 2), link=[link])

    assert Worker(app).run().kind is OutcomeKind.FAILURE


def test_options_of_a_callback_that_are_unknown_are_left_out(app: App) -> None:
    link = {"task": "add", "options": {"task_id": "x", "producer": 1, "broker_url": "redis://evil", "queue": "q"}}
    app.tasks["add"].apply_async((1, 2), link=[link])
    Worker(app).run()

    assert [(message.queue, message.headers["id"]) for message in publisher(app).sent] == [("q", "x")]


def test_part_of_a_chord_runs_and_the_chord_fails_visibly(app: App, caplog: pytest.LogCaptureFixture) -> None:
    body = app.signature("sum", options={"task_id": "body"})
    app.tasks["add"].apply_async((1, 2), task_id="part", chord=body)
    outcome = Worker(app).run()

    assert outcome.kind is OutcomeKind.SUCCESS
    assert app.AsyncResult("body").state == "FAILURE"
    assert "chord" in caplog.text


def chord_in_celerys_shape() -> dict[str, Any]:
    """As it stands in a chain: a group of two and a body, whose ids are chosen already."""

    def part(name: str, kind: str | None = None, **kwargs: Any) -> dict[str, Any]:
        return {"task": "add", "args": [], "kwargs": kwargs, "options": {"task_id": name}, "subtask_type": kind}

    header = part("group", "group", tasks=[part("m0"), part("m1")])
    return part("chord", "chord", header=header, body=part("body"))


@pytest.mark.parametrize("link", ["chain", "link"])
@pytest.mark.parametrize("task", ["add", "fail"])
def test_nobody_waits_for_a_chord_that_will_not_run(app: App, task: str, link: Any) -> None:
    """Its body and members are told, whoever brought it along; only a callback of a failed task is not due at all."""
    app.tasks[task].apply_async(task_id="i", **{link: [chord_in_celerys_shape()]})
    Worker(app).run()

    assert app.AsyncResult("i").state == "FAILURE"
    expected = "PENDING" if (task, link) == ("fail", "link") else "FAILURE"
    assert {app.AsyncResult(task_id).state for task_id in ("body", "m0", "m1")} == {expected}


def test_failures_that_cannot_be_stored_are_logged(app: App, caplog: pytest.LogCaptureFixture) -> None:
    app.tasks["fail"].apply_async(chain=[app.signature("add", options={"task_id": "c"})])
    raw = publisher(app).sent.pop().envelope()
    results(app).outages = 1
    outcome = Worker(app).loaded.run(job_of(raw))

    assert outcome.kind is OutcomeKind.FAILURE
    assert "cannot be stored" in caplog.text


# --------------------------------------------------------------------------- what Celery clients send


def celery_canvas(make: Any) -> bytes:
    """The one envelope that a Celery client sends for a canvas."""
    (envelope,) = sent_by_celery(lambda client: make(client).apply_async())
    return json.dumps(envelope).encode()


def test_a_chain_of_celery_runs_to_its_end(app: App) -> None:
    def make(client: Any) -> Any:
        return client.signature("add", (1, 2)) | client.signature("add", (10,)) | client.signature("add", (100,))

    raw = celery_canvas(make)
    at_work = Worker(app)
    at_work.run(raw)
    at_work.run_all()

    assert [json.loads(stored.payload)["result"] for stored in results(app).history] == [3, 13, 113]


def test_a_chain_of_celery_that_ends_in_a_group_runs(app: App) -> None:
    def make(client: Any) -> Any:
        from celery import group

        return client.signature("add", (1, 2)) | group(
            client.signature("add", (10,), app=client), client.signature("add", (20,), app=client), app=client
        )

    raw = celery_canvas(make)
    at_work = Worker(app)
    at_work.run(raw)
    messages = list(publisher(app).sent)
    at_work.run_all()

    assert [json.loads(stored.payload)["result"] for stored in results(app).history] == [3, 13, 23]
    assert [message.headers["group_index"] for message in messages] == [0, 1]
    assert len({message.headers["group"] for message in messages}) == 1


def test_a_chain_as_a_callback_runs(app: App) -> None:
    def make(client: Any) -> Any:
        add = client.signature
        return add("add", (1, 2), link=add("add", (10,), app=client) | add("add", (100,), app=client))

    raw = celery_canvas(make)
    at_work = Worker(app)
    at_work.run(raw)
    at_work.run_all()

    assert [json.loads(stored.payload)["result"] for stored in results(app).history] == [3, 13, 113]


# --------------------------------------------------------------------------- signatures


def test_a_signature_has_celerys_shape(app: App) -> None:
    signature = app.tasks["add"].s(1, x=2).set(queue="q")
    theirs = celery.Celery("peer", set_as_current=False).signature("add", (1,), {"x": 2}, queue="q")

    assert json.loads(json.dumps(signature)) == json.loads(json.dumps(theirs))


def test_a_signature_can_be_sent_with_more_arguments(app: App) -> None:
    signature = app.tasks["add"].s(2)

    signature.delay(1)
    signature.clone().set(countdown=5, immutable=True).apply_async((9,))

    assert sent(app) == [("add", [1, 2]), ("add", [2])]
    assert signature["options"] == {}


def test_links_are_added_to_a_signature(app: App) -> None:
    signature = app.tasks["add"].s(1)
    copy = signature.clone()
    signature.link(app.signature("cb"))
    signature.on_error(app.signature("eb"))

    signature.delay()

    embed = body_of(publisher(app).sent[0])[2]
    assert [embed["callbacks"][0]["task"], embed["errbacks"][0]["task"]] == ["cb", "eb"]
    assert copy["options"] == {}


# --------------------------------------------------------------------------- ends the kernel decided on

CONCLUSIONS: dict[str, tuple[OutcomeKind, str, str, str, list[Any], str]] = {
    # kind, text, state, exc_type, exc_message, exc_module
    "lost": (
        OutcomeKind.LOST, "Worker exited prematurely: signal 9", "FAILURE", "WorkerLostError",
        ["Worker exited prematurely: signal 9"], "billiard.exceptions",
    ),
    "timeout": (OutcomeKind.TIMEOUT, "2", "FAILURE", "TimeLimitExceeded", [2], "billiard.exceptions"),
    "expired": (OutcomeKind.EXPIRED, "", "REVOKED", "TaskRevokedError", ["expired"], "celery.exceptions"),
    "revoked": (OutcomeKind.REVOKED, "terminated", "REVOKED", "TaskRevokedError", ["terminated"], "celery.exceptions"),
    "unknown": (OutcomeKind.UNKNOWN, "", "FAILURE", "NotRegistered", ["fail"], "celery.exceptions"),
    "invalid": (OutcomeKind.INVALID, "why", "FAILURE", "DecodeError", ["why"], "kombu.exceptions"),
    "late soft limit": (
        OutcomeKind.FAILURE, "SoftTimeLimitExceeded", "FAILURE", "SoftTimeLimitExceeded", [], "billiard.exceptions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", CONCLUSIONS.values(), ids=CONCLUSIONS.keys())
def test_an_end_without_a_run_is_stored(app: App, row: tuple[OutcomeKind, str, str, str, list[Any], str]) -> None:
    kind, text, state, exc_type, message, module = row
    errback, rest = app.signature("errback"), app.signature("add", options={"task_id": "rest"})
    app.tasks["fail"].apply_async(task_id="i", link_error=errback, chain=[rest])
    raw = publisher(app).sent.pop().envelope()

    stored = Worker(app).loaded.conclude(job_of(raw, hard=2.0), kind, text)

    assert stored is not None
    meta = json.loads(stored.payload)
    assert (meta["task_id"], meta["status"]) == ("i", state)
    assert meta["result"] == {"exc_type": exc_type, "exc_message": message, "exc_module": module}
    failed = state == "FAILURE"
    assert sent(app) == ([("errback", ["i"])] if failed else [])
    assert app.AsyncResult("rest").state == ("FAILURE" if failed else "PENDING")


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"headers": {"task": "add"}}'])
def test_nothing_is_stored_for_what_has_no_id(app: App, raw: bytes) -> None:
    assert Worker(app).loaded.conclude(job_of(raw), OutcomeKind.LOST, "x") is None


def test_the_end_of_a_task_whose_body_cannot_be_read_is_stored(app: App) -> None:
    raw = b'{"headers": {"task": "add", "id": "i"}, "body": "!", "properties": {"body_encoding": "base64"}}'

    stored = Worker(app).loaded.conclude(job_of(raw), OutcomeKind.INVALID, "x")

    assert stored is None or stored.state == "FAILURE"


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "value"),
    [
        ("celery.map", (), {"task": {"task": "add"}, "it": [1, 2]}, [1, 2]),
        ("celery.starmap", (), {"task": {"task": "add"}, "it": [[1, 2], [3, 4]]}, [3, 7]),
        ("celery.starmap", (), {"task": {"task": "add_async"}, "it": [[1, 2]]}, [3]),
        ("celery.accumulate", (1, 2), {"index": 1}, 2),
    ],
)
def test_built_in_tasks_call_the_task_of_a_signature(
    app: App, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
) -> None:
    @app.task(name="add_async")
    async def add_async(x: int, y: int) -> int:
        return x + y

    app.send_task(name, args, kwargs)

    assert meta_of(Worker(app).run())["result"] == value


def test_chunks_are_sent_as_several_messages(app: App) -> None:
    app.send_task("celery.chunks", kwargs={"task": {"task": "add"}, "it": [[1, 2], [3, 4], [5, 6]], "n": 2})
    outcome = Worker(app).run()

    assert [message.headers["task"] for message in publisher(app).sent] == ["celery.starmap"] * 2
    assert [member[0][0] for member in meta_of(outcome)["result"][1]] == [
        message.headers["id"] for message in publisher(app).sent
    ]


def test_a_built_in_task_with_a_signature_of_no_task_here_fails(app: App) -> None:
    app.send_task("celery.map", kwargs={"task": {"task": "nosuch"}, "it": [1]})

    assert meta_of(Worker(app).run())["result"]["exc_type"] == "NotRegistered"
