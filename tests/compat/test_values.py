"""Arguments and results of every JSON type (wire-protocol §8), from each client to each worker and back."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from . import clients
from .conftest import CELERY, Pair

ODD_ZONE = timezone(timedelta(hours=5, minutes=45))

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "negative": -17,
    "integer of 64 bits": 2**64 - 1,
    "huge integer": 10**60 + 1,
    "float": 0.1,
    "tiny float": 5e-324,
    "whole float": 3.0,
    "infinity": float("inf"),
    "negative infinity": float("-inf"),
    "not a number": float("nan"),
    "empty text": "",
    "text": 'a "quoted" \\ text\n\t\x00\x7f',
    "unicode": "Grüße, 世界, \u202e, \U0001f600",
    "half of a surrogate pair": "\ud83d",
    "text that looks like JSON": '{"__type__": "datetime"}',
    "list": [1, [2, [3, []]], None],
    "object": {"a": {"b": [1, {"c": None}]}, "": 0, "ключ": True},
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001 a naive one is meant
    "datetime without microseconds": datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001
    "aware datetime": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    "datetime of another zone": datetime(2026, 7, 2, 3, 4, 5, tzinfo=ODD_ZONE),
    "date": date(2026, 2, 28),
    "time": time(1, 2, 3, 4),
    "aware time": time(1, 2, 3, tzinfo=UTC),
    "decimal": Decimal("1.10"),
    "huge decimal": Decimal("-1.234567890123456789012345678901234567890E+400"),
    "uuid": uuid.UUID(int=5),
    "bytes that are text": b"abc \xc3\xa9",
    "bytes that are no text": bytes(range(256)),
    "empty bytes": b"",
    "types in containers": {"when": [date(2026, 1, 1), {"how much": Decimal("0.5")}], "raw": [b"\xff", b"x"]},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_value_arrives_and_comes_back_as_it_was(pair: Pair, value: Any) -> None:
    answer = pair.call("mirror", value)

    got, seen_by_task = answer.value
    assert (repr(got), seen_by_task) == (repr(value), repr(value))


def test_value_may_be_a_keyword_argument(pair: Pair) -> None:
    assert pair.call("add", kwargs={"x": 1, "y": 2}).value == 3


def test_tuple_becomes_a_list(pair: Pair) -> None:
    assert pair.call("mirror", (1, (2,))).value == [[1, [2]], "[1, [2]]"]


def test_object_that_knows_its_json_is_asked(pair: Pair) -> None:
    assert pair.call("mirror", clients.Painted()).value[0] == {"colour": "red"}


@pytest.mark.parametrize("value", [{1, 2}, timedelta(seconds=1), object()], ids=["set", "timedelta", "object"])
def test_value_without_json_is_refused_by_the_client(pair: Pair, value: Any) -> None:
    if type(value) is object:
        name, text = pair.do(clients.refusal, clients.send_object, queue=pair.queue)
    else:
        name, text = pair.do(clients.refusal, clients.send, "compat.mirror", (value,), queue=pair.queue)

    assert name == "EncodeError"
    assert type(value).__name__ in text


def test_megabyte_arrives_and_comes_back(pair: Pair) -> None:
    text = "0123456789abcdef" * 65536

    assert pair.call("mirror", [text]).value[0] == [text]


def test_result_is_read_again_and_forgotten(pair: Pair) -> None:
    answer = pair.call("add", 1, 2)

    assert pair.wait(answer.id).value == 3
    assert pair.do(clients.look, answer.id, "state", "result") == ["SUCCESS", 3]
    assert pair.do(clients.look, answer.id, "date_done")[0] is not None
    assert pair.do(clients.forget, answer.id) == "PENDING"


def test_clients_have_nothing_of_the_worker(pair: Pair) -> None:
    """What makes the other tests mean something: Celery's client is stock, and ours needs no kernel."""
    own = pair.do(clients.loaded)

    assert own == [] if pair.client_kind == CELERY else "kernel_worker" not in own
