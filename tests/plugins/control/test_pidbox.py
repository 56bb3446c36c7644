"""Messages from anybody: read without raising, quickly, and never followed to where they must not lead."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from kernel_control.pidbox import MAX_BODY, MAX_REPLY, Bucket, encode_reply, read

NODE, REPLIES = "w1@host", "reply.celery.pidbox"


def message(**changes: Any) -> bytes:
    value = {
        "method": "ping",
        "arguments": {},
        "destination": None,
        "pattern": None,
        "matcher": None,
        "ticket": "t-1",
        "reply_to": {"exchange": REPLIES, "routing_key": "box-1"},
        **changes,
    }
    return json.dumps(value).encode()


def test_a_broadcast_is_for_everybody() -> None:
    call = read(NODE, REPLIES, message(method="revoke", arguments={"task_id": "x"}))

    assert call is not None
    assert (call.method, call.arguments, call.box, call.ticket) == ("revoke", {"task_id": "x"}, "box-1", "t-1")


@pytest.mark.parametrize(
    ("changes", "is_meant"),
    [
        ({"destination": [NODE]}, True),
        ({"destination": ["other@host"]}, False),
        ({"destination": "w1@hostile"}, False),
        ({"destination": [NODE], "pattern": "x", "matcher": "glob"}, True),
        ({"pattern": "w?@*", "matcher": "glob"}, True),
        ({"pattern": "x*", "matcher": "glob"}, False),
        ({"pattern": r"w\d@", "matcher": "pcre"}, True),
        ({"pattern": "(", "matcher": "pcre"}, False),
        ({"pattern": "w1@host", "matcher": "nosuch"}, False),
        ({"pattern": "w1@host"}, True),
        ({"pattern": ["w1"], "matcher": "glob"}, False),
    ],
)
def test_only_the_meant_node_takes_it(changes: dict[str, Any], is_meant: bool) -> None:
    assert (read(NODE, REPLIES, message(**changes)) is not None) is is_meant


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "a*a*a*a*a*a*a*b", "x" * 10_000])
@pytest.mark.parametrize("matcher", ["glob", "pcre"])
def test_no_pattern_takes_long(pattern: str, matcher: str) -> None:
    began = time.monotonic()

    read("a" * 250, REPLIES, message(pattern=pattern, matcher=matcher))

    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"[]", b"7", b"null", b"{", b'"' * 100, b"[" * 100_000],
    ids=["empty", "bytes", "list", "number", "null", "cut", "quotes", "deep"],
)
def test_what_is_no_message_is_dropped(body: bytes) -> None:
    assert read(NODE, REPLIES, body) is None


@pytest.mark.parametrize("changes", [{"method": 7}, {"method": None}, {"arguments": [1]}, {"arguments": "x"}])
def test_a_malformed_command_is_answered(changes: dict[str, Any]) -> None:
    call = read(NODE, REPLIES, message(**changes))

    assert call is not None
    assert call.error


@pytest.mark.parametrize(
    "reply_to",
    [
        {"exchange": "celery", "routing_key": "box-1"},
        {"exchange": REPLIES, "routing_key": "a\nb"},
        {"exchange": REPLIES, "routing_key": 7},
        {"exchange": REPLIES},
        "box-1",
        None,
    ],
)
def test_a_command_cannot_make_a_worker_publish_anywhere(reply_to: Any) -> None:
    call = read(NODE, REPLIES, message(reply_to=reply_to))

    assert call is not None
    assert call.box == ""


def test_a_huge_command_is_not_read_and_yet_answered() -> None:
    call = read(NODE, REPLIES, message(arguments={"task_id": "x" * MAX_BODY}))

    assert call is not None
    assert str(MAX_BODY) in call.error
    assert (call.box, call.ticket) == ("box-1", "t-1")


@pytest.mark.parametrize("reply", [object(), {"x": object()}, {1, 2}])
def test_a_reply_that_is_no_json_becomes_an_error(reply: Any) -> None:
    assert "no JSON" in json.loads(encode_reply(NODE, reply))[NODE]["error"]


def test_a_reply_that_is_too_large_becomes_an_error() -> None:
    assert str(MAX_REPLY) in json.loads(encode_reply(NODE, "x" * MAX_REPLY))[NODE]["error"]


def test_a_bucket_lets_so_many_pass_and_no_more() -> None:
    bucket = Bucket(20)

    assert sum(bucket.take() for _ in range(100)) in (20, 21)
