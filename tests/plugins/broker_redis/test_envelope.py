"""Reading envelopes: what kombu can read is an envelope, everything else a reason; nothing raises."""

from __future__ import annotations

import json
import math
import random
import time

import pytest

from kernel_broker_redis.envelope import read
from kernel_worker.testing import envelope


def wrap(headers: str) -> bytes:
    return f'{{"body": "", "headers": {headers}, "properties": {{}}}}'.encode()


def test_headers_and_properties_of_a_celery_message() -> None:
    raw = envelope("proj.add", (1, 2), task_id="t1", headers={"stamps": {"a": [1.5, None, True]}})

    headers, properties, error = read(raw)

    assert error is None
    assert headers == json.loads(raw)["headers"]
    assert properties == json.loads(raw)["properties"]


@pytest.mark.parametrize("headers", ["null", "{}"])
def test_missing_headers_are_protocol_1(headers: str) -> None:
    assert read(wrap(headers)) == ({}, {}, None)


def test_what_only_pythons_json_writes_is_read() -> None:
    headers, _, error = read(wrap('{"nan": NaN, "inf": -Infinity, "big": 123456789012345678901, "half": "\\ud800"}'))

    assert error is None
    assert math.isnan(headers["nan"])
    assert headers["inf"] == -math.inf
    assert headers["big"] == 123456789012345678901
    assert headers["half"] == "\ud800"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"nul", "not JSON"),
        (b"[1]", "not a JSON object but list"),
        (b"{}", "no body"),
        (b'{"body": ""}', "no properties"),
        (b'{"body": 1, "properties": {}}', "body is no text"),
        (b'{"body": null, "properties": {}}', "body is no text"),
        (b'{"body": "", "properties": []}', "properties are no JSON object"),
        (wrap("[]"), "headers are no JSON object"),
        (wrap('"x"'), "headers are no JSON object"),
        (b'{"body": "\xff", "properties": {}}', "not UTF-8"),
        (b"\x80\x04\x95", "not UTF-8"),
        ('{"body": "", "properties": {}}'.encode("utf-16"), "not UTF-8"),
        (wrap('{"n": ' + "1" * 5000 + "}"), "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (wrap("[" * 5000 + "]" * 5000), "nested too deep"),
        (wrap('{"a": ' * 5000 + "1" + "}" * 5000), "nested too deep"),
        (b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b', "body": "", "properties": {}}', "nested too deep"),
    ],
)
def test_what_is_no_envelope_has_a_reason(raw: bytes, reason: str) -> None:
    headers, properties, error = read(raw)

    assert (headers, properties) == ({}, {})
    assert error is not None
    assert reason in error
    assert len(error) < 200


def test_random_damage_never_raises() -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    good = envelope()
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        headers, properties, _error = read(bytes(damaged))
        assert isinstance(headers, dict), f"seed {seed}"
        assert isinstance(properties, dict), f"seed {seed}"


def test_large_damaged_messages_take_bounded_time() -> None:
    began = time.monotonic()

    for raw in (envelope(padding=10_000_000)[:-5], b'{"a":' * 2_000_000, b"[1," * 3_000_000, b'"' + b"\\" * 10_000_000):
        assert read(raw)[2] is not None

    assert time.monotonic() - began < 5
