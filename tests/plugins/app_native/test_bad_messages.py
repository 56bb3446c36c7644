"""Messages that cannot be run: each ends as INVALID, UNKNOWN or a stored failure, and the next one runs."""

from __future__ import annotations

import base64
import json
import pickle
import random
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kernel_app import App
from kernel_app.execution import NativeJob
from kernel_worker.testing import eventually
from kernel_worker.types import Outcome, OutcomeKind
from tests.plugins.app_native.conftest import MakeApp, Worker, job_of, meta_of, publisher

GOOD_HEADERS = {"task": "add", "id": "good", "lang": "py"}
GOOD_BODY = [[1, 2], {}, {}]
EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def envelope(
    content: Any = GOOD_BODY, headers: Any = GOOD_HEADERS, content_type: Any = "application/json", **changes: Any
) -> bytes:
    """An envelope; bytes as `content` are the body as it is."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    found = {
        "body": base64.b64encode(data).decode(),
        "content-type": content_type,
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {"body_encoding": "base64"},
        **changes,
    }
    return json.dumps(found).encode()


@pytest.fixture
def at_work(make_app: MakeApp) -> Worker:
    app = make_app()

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    return Worker(app)


def with_headers(**headers: Any) -> bytes:
    return envelope(headers={**GOOD_HEADERS, **headers})


PICKLED = pickle.dumps(GOOD_BODY)
ROWS: dict[str, tuple[bytes, str, bool]] = {
    # message, what the reason says, whether a failure can be stored
    "not accepted": (envelope(PICKLED, content_type="application/x-python-serialize"), "not accepted", True),
    "no content type": (envelope(content_type=""), "not accepted", True),
    "odd content type": (envelope(content_type="x/\x1b[31m"), "not accepted", True),
    "content type no text": (envelope(content_type=5), "content type", False),
    "undecodable JSON": (envelope(b"{nope"), "not JSON", True),
    "truncated JSON": (envelope(json.dumps(GOOD_BODY).encode()[:-3]), "not JSON", True),
    "empty body": (envelope(b""), "not JSON", True),
    "bad expires": (with_headers(expires="tomorrow"), "expires is no time", True),
    "expires of a wrong kind": (with_headers(expires=[1]), "expires is no time", True),
    "no task anywhere": (envelope({"foo": 1}, {"id": "x"}), "name a task", True),
    "no headers": (envelope(GOOD_BODY, {}), "name a task", False),
    "headers are a list": (envelope(headers=[1]), "headers", False),
    "two items": (envelope([[1, 2], {}]), "2 items", True),
    "four items": (envelope([[1, 2], {}, {}, {}]), "4 items", True),
    "body is a number": (envelope(5), "no list", True),
    "body is an object": (envelope({"foo": 1}), "no list", True),
    "no id": (envelope(headers={"task": "add"}), "id", False),
    "id is a number": (envelope(headers={"task": "add", "id": 5}), "id", False),
    "id is empty": (envelope(headers={"task": "add", "id": ""}), "id", False),
    "id too long": (envelope(headers={"task": "add", "id": "x" * 300}), "id", False),
    "task is no text": (envelope(headers={"task": ["add"], "id": "x"}), "name", True),
    "task too long": (envelope(headers={"task": "x" * 300, "id": "x"}), "name", True),
    "retries no count": (with_headers(retries="3"), "retries", True),
    "retries negative": (with_headers(retries=-1), "retries", True),
    "kwargs are a list": (envelope([[1], [2], {}]), "kwargs", True),
    "args are an object": (envelope([{}, {}, {}]), "args", True),
    "embed is a list": (envelope([[1, 2], {}, [1]]), "embed", True),
    "callbacks are a text": (envelope([[1, 2], {}, {"callbacks": "x"}]), "callbacks", True),
    "chord is a list": (envelope([[1, 2], {}, {"chord": [1]}]), "chord", True),
    "nested 5000 deep": (envelope(b"[" * 5000 + b"]" * 5000), "nested deeper", True),
    "nested 101 deep": (envelope(b"[" * 101 + b"]" * 101), "nested deeper", True),
    "unknown extended type": (envelope([[{"__type__": "os", "__value__": 1}], {}, {}]), "__type__", True),
    "body not base64": (envelope(body="\u20ac"), "base64", False),
    "no body": (envelope(body=None), "without a body", False),
    "unknown compression": (with_headers(compression="application/x-nope"), "compression", True),
    "wrong compression": (with_headers(compression="application/x-gzip"), "decompressed", True),
    "random bytes": (random.Random(1).randbytes(500), "not JSON", False),
    "a list": (b"[1]", "no object", False),
    "empty": (b"", "not JSON", False),
    "truncated envelope": (envelope()[:-10], "not JSON", False),
    "deep envelope": (b'{"headers": ' + b"[" * 5000, "nested deeper", False),
    "long int": (envelope(b"[[" + b"1" * 5000 + b"], {}, {}]"), "not readable", True),
}


def run(worker: Worker, raw: bytes, is_ahead: bool) -> Outcome:
    """Run a message, `is_ahead`: read before its turn has come."""
    job = job_of(raw)
    return worker.loaded.run(worker.loaded.read(job) if is_ahead else job)


@pytest.mark.parametrize("is_ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize(("raw", "reason", "stored"), ROWS.values(), ids=ROWS.keys())
def test_a_bad_message_is_invalid_with_the_reason(
    at_work: Worker, raw: bytes, reason: str, stored: bool, is_ahead: bool
) -> None:
    outcome = run(at_work, raw, is_ahead)

    assert outcome.kind is OutcomeKind.INVALID
    assert reason in outcome.error
    assert outcome.error.isprintable()
    assert (outcome.result is not None) is stored
    if stored:
        assert meta_of(outcome)["status"] == "FAILURE"
        assert meta_of(outcome)["result"]["exc_module"] == "kombu.exceptions"
    assert at_work.loaded.run(job_of(envelope())).kind is OutcomeKind.SUCCESS


TOLERATED: dict[str, bytes] = {
    "minimal": envelope(),
    "unknown headers and properties": envelope(
        headers={**GOOD_HEADERS, "x": [1]}, properties={"body_encoding": "base64", "odd": 1, "delivery_info": None}
    ),
    "null embed": envelope([[1, 2], {}, None]),
    "unknown embed keys": envelope([[1, 2], {}, {**EMBED, "more": 1}]),
    "NaN in headers": envelope(headers={**GOOD_HEADERS, "x": float("nan")}),
    "far eta": with_headers(eta="9999-01-01T00:00:00+00:00"),
    "expires later": with_headers(expires=(datetime.now(UTC) + timedelta(hours=1)).isoformat()),
    "naive expires": with_headers(expires="9999-01-01T00:00:00"),
    "expires with Z": with_headers(expires="9999-01-01T00:00:00Z"),
    "body without encoding": envelope(body=json.dumps(GOOD_BODY), properties={}),
    "null properties": envelope(body=json.dumps(GOOD_BODY), properties=None),
    "utf-16": envelope(json.dumps(GOOD_BODY).encode("utf-16"), **{"content-encoding": "utf-16"}),
    "compressed": envelope(
        zlib.compress(json.dumps(GOOD_BODY).encode()), {**GOOD_HEADERS, "compression": "application/x-gzip"}
    ),
    "hybrid": envelope({"args": [1, 2], "kwargs": {}}),
    "protocol 1": envelope({"task": "add", "id": "one", "args": [1, 2]}, {}),
    "protocol 1 with keywords": envelope({"task": "add", "id": "one", "kwargs": {"x": 1, "y": 2}}, {}),
}


@pytest.mark.parametrize("is_ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("raw", TOLERATED.values(), ids=TOLERATED.keys())
def test_odd_messages_that_mean_something_run(at_work: Worker, raw: bytes, is_ahead: bool) -> None:
    outcome = run(at_work, raw, is_ahead)

    assert (outcome.kind, outcome.error) == (OutcomeKind.SUCCESS, "")
    assert meta_of(outcome)["result"] == 3


def test_values_msgspec_would_refuse_arrive(make_app: MakeApp) -> None:
    app = make_app()
    got: list[Any] = []

    @app.task(name="add")
    def take(*values: Any) -> None:
        got.extend(values)

    text = b'[[NaN, 1e400, 123456789012345678901234567890, "\\ud800", {"\\u005f_type__": "date", "__value__": "2026-01-02"}]'
    Worker(app).loaded.run(job_of(envelope(text + b", {}, {}]")))

    assert got[0] != got[0]
    assert got[1:4] == [float("inf"), 123456789012345678901234567890, "\ud800"]
    assert got[4].isoformat() == "2026-01-02"


def test_an_unknown_task_is_told(at_work: Worker, caplog: pytest.LogCaptureFixture) -> None:
    outcome = at_work.loaded.run(job_of(with_headers(task="no.such\x1b[0m")))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "no.such\\x1b[0m")
    wanted = {"exc_type": "NotRegistered", "exc_message": ["no.such\x1b[0m"], "exc_module": "celery.exceptions"}
    assert meta_of(outcome)["result"] == wanted
    assert "\x1b" not in caplog.text


def test_a_body_over_the_limit_is_refused(make_app: MakeApp) -> None:
    app = make_app(task_max_body_bytes=1000)

    @app.task(name="add")
    def add(x: str) -> int:
        return len(x)

    at_work = Worker(app)
    large = json.dumps([["x" * 2000], {}, {}]).encode()
    packed = envelope(zlib.compress(large), {**GOOD_HEADERS, "compression": "gzip"})

    for raw, is_ahead in ((envelope(large), False), (packed, False), (envelope(large), True), (packed, True)):
        outcome = run(at_work, raw, is_ahead)
        assert outcome.kind is OutcomeKind.INVALID
        assert "larger than 1000" in outcome.error


def test_pickle_is_decoded_only_when_accepted(make_app: MakeApp) -> None:
    app = make_app(accept_content=["json", "pickle"])

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    at_work = Worker(app)
    raw = envelope(PICKLED, content_type="application/x-python-serialize", **{"content-encoding": "binary"})

    assert at_work.loaded.run(job_of(raw)).kind is OutcomeKind.SUCCESS
    assert "any code" in at_work.loaded.info.warnings[0]


READ_IN_TURN: dict[str, bytes] = {
    "pickle": envelope(PICKLED, content_type="application/x-python-serialize"),
    "extended type": envelope([[{"__type__": "date", "__value__": "2026-01-02"}, 2], {}, {}]),
    "escaped marker": envelope(b'[[{"\\u005f_type__": "date", "__value__": "2026-01-02"}], {}, {}]'),
    "compressed": TOLERATED["compressed"],
    "protocol 1": TOLERATED["protocol 1"],
    "large": envelope([["x" * 70_000, 2], {}, {}]),
    "nested deep": ROWS["nested 101 deep"][0],
    "broken": ROWS["truncated JSON"][0],
}


@pytest.mark.parametrize("raw", READ_IN_TURN.values(), ids=READ_IN_TURN.keys())
def test_what_might_do_harm_is_not_read_ahead(make_app: MakeApp, raw: bytes) -> None:
    """Were it to end the process, nobody would know which message it was."""
    worker = Worker(make_app(accept_content=["json", "pickle"]))
    job = job_of(raw)

    assert worker.loaded.read(job) is job


def test_a_conclusion_is_not_read_ahead(at_work: Worker) -> None:
    job = job_of(envelope(), conclude=OutcomeKind.LOST)

    assert at_work.loaded.read(job) is job


def test_what_was_read_ahead_expires_all_the_same(at_work: Worker) -> None:
    soon = datetime.now(UTC) + timedelta(milliseconds=200)
    ahead = at_work.loaded.read(job_of(with_headers(expires=soon.isoformat())))
    assert isinstance(ahead, NativeJob)

    eventually(lambda: datetime.now(UTC) > soon)

    assert at_work.loaded.run(ahead).kind is OutcomeKind.EXPIRED


def test_protocol_1_that_is_not_due_is_deferred(at_work: Worker) -> None:
    due = datetime(2100, 1, 1, tzinfo=UTC)
    body = {"task": "add", "id": "one", "args": [1, 2], "eta": due.isoformat()}

    outcome = at_work.loaded.run(job_of(envelope(body, {})))

    assert (outcome.kind, outcome.until) == (OutcomeKind.DEFER, due.timestamp())


def test_protocol_1_links_run(at_work: Worker) -> None:
    callback = {"task": "add", "args": [10], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}
    body = {"task": "add", "id": "one", "args": [1, 2], "callbacks": [callback], "expires": None, "retries": 0}

    at_work.loaded.run(job_of(envelope(body, {})))

    assert json.loads(publisher(at_work.app).sent[0].body)[0] == [3, 10]


@pytest.mark.timeout(30)
def test_fuzzed_messages_never_end_the_worker(at_work: Worker) -> None:
    chance = random.Random(20261121)
    good = bytearray(envelope())
    bodies = bytearray(json.dumps([[1, {"a": [2]}], {"k": "v"}, EMBED]).encode())

    for _ in range(3000):
        raw, body = bytearray(good), bytearray(bodies)
        for target in (raw, body):
            for _ in range(chance.randrange(1, 6)):
                target[chance.randrange(len(target))] = chance.randrange(256)
        run(at_work, bytes(raw), chance.random() < 0.5)
        run(at_work, envelope(bytes(body)), chance.random() < 0.5)

    assert at_work.loaded.run(job_of(envelope())).kind is OutcomeKind.SUCCESS


def test_an_app_of_another_kind_is_not_accepted(app: App) -> None:
    from kernel_app.worker import NativeLoader

    assert NativeLoader().accepts(app) is app
    assert NativeLoader().accepts(object()) is None
    assert NativeLoader().accepts(json) is None
