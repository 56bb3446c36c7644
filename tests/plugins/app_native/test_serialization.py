"""Values to bytes and back, against kombu; limits on what is decoded."""

from __future__ import annotations

import bz2
import json
import lzma
import resource
import zlib
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from kombu.utils import json as kombu_json

from kernel_app.compression import BZIP2, GZIP, LZMA, compress, decompress
from kernel_app.exceptions import ConfigError, ContentDisallowed, DecodeError, EncodeError
from kernel_app.serialization import JSON, content_types, dumps, from_json, loads, nests_too_deeply, to_json

VALUES: dict[str, Any] = {
    "null": None,
    "text": 'quote " backslash \\ é \u2028 😀',
    "surrogate": "\ud800",
    "int": 2**70,
    "float": 0.1,
    "nested": {"a": [1, {"b": [True, False, None]}], "": []},
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001
    "aware datetime": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=-3))),
    "date": date(2026, 1, 2),
    "time": time(1, 2, 3, tzinfo=UTC),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=5),
    "bytes": b"abc",
    "other bytes": b"\xff\xfe",
    "int keys": {2: "a", None: "b", True: "c", 1.5: "d"},
    "inf": float("inf"),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_json_equals_kombus_both_ways(value: Any) -> None:
    ours, theirs = to_json(value), kombu_json.dumps(value)

    assert ours == theirs
    assert from_json(theirs) == kombu_json.loads(ours)
    assert type(from_json(theirs)) is type(kombu_json.loads(theirs))


def test_nan_is_kept() -> None:
    assert to_json([float("nan")]) == "[NaN]"
    assert from_json("[NaN]")[0] != from_json("[NaN]")[0]


def test_an_object_may_say_how_it_is_written() -> None:
    class Point:
        def __json__(self) -> Any:
            return {"x": 1}

    assert to_json([Point()]) == '[{"x": 1}]'


class Unwritable:
    def __json__(self) -> Any:
        raise KeyError("broken")


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({1, 2}, r"builtins\.set"),
        (timedelta(1), r"datetime\.timedelta"),
        (object(), r"builtins\.object"),
        ({(1, 2): 3}, "keys must be"),
        (CIRCLE, "contains itself"),
        (Unwritable(), "KeyError"),
        (10**5000, "ValueError"),
    ],
    ids=["set", "timedelta", "object", "tuple key", "circle", "broken __json__", "long int"],
)
def test_what_cannot_be_written_is_an_encode_error(value: Any, text: str) -> None:
    with pytest.raises(EncodeError, match=text):
        to_json(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1,]",
        b"\xff\xfe\xfd",
        b'{"__type__": "nope", "__value__": 1}',
        b'{"__type__": ["list"], "__value__": 1}',
        b'{"__type__": "datetime", "__value__": 5}',
        b'{"__type__": "uuid", "__value__": {"fields": [1]}}',
        b"[" * 5000,
        b"1" * 5000,
    ],
)
def test_what_cannot_be_read_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        from_json(data)


def test_an_object_with_more_keys_than_the_extension_stays_an_object() -> None:
    value = {"__type__": "date", "__value__": "2026-01-02", "more": 1}

    assert from_json(json.dumps(value)) == value


# --------------------------------------------------------------------------- nesting


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_nesting_is_measured_exactly(opening: str) -> None:
    per_step = opening.count("[") + opening.count("{")
    closing = "".join({"[": "]", "{": "}"}[c] for c in reversed(opening) if c in "[{")

    def nested(depth: int) -> bytes:
        return (opening * (depth // per_step) + "1" + closing * (depth // per_step)).encode()

    assert not nests_too_deeply(nested(100))
    assert nests_too_deeply(nested(102))


def test_many_shallow_containers_do_not_nest() -> None:
    assert not nests_too_deeply(json.dumps([[{"a": [1]}] for _ in range(5000)]).encode())


def test_brackets_in_strings_do_not_nest() -> None:
    assert not nests_too_deeply(json.dumps(["[" * 500, '"\\' + "{" * 500]).encode())


@pytest.mark.timeout(5)
def test_measuring_hostile_text_takes_linear_time() -> None:
    assert nests_too_deeply(b"[" * 200 + b'"\\' * 1_000_000)
    assert nests_too_deeply(b"[]" * 200 + b"[" * 1_000_000)


# --------------------------------------------------------------------------- serializers


def test_nothing_is_decoded_unless_it_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickle.loads", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("kombu.serialization.registry.loads", lambda *_, **__: pytest.fail("decoded"))

    for content_type in ("application/x-python-serialize", "application/x-yaml", "application/data", "text/plain", ""):
        with pytest.raises(ContentDisallowed, match="accept_content"):
            loads(b"cos\nsystem\n(S'true'\ntR.", content_type, "binary", content_types(["json"]))


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_other_serializers_are_kombus(serializer: str) -> None:
    content_type, encoding, body = dumps({"a": [1, "é"]}, serializer)

    assert loads(body, content_type, encoding, content_types([serializer])) == {"a": [1, "é"]}


def test_an_unknown_serializer_is_named() -> None:
    with pytest.raises(ConfigError, match="'jsno'"):
        dumps(1, "jsno")
    with pytest.raises(ConfigError, match="'jsno'"):
        content_types(["jsno"])


def test_accept_content_takes_names_and_types() -> None:
    assert content_types(["json", "application/x-yaml"]) == {JSON, "application/x-yaml"}


def test_json_in_another_encoding_is_read() -> None:
    assert loads('["é"]'.encode("latin-1"), JSON, "latin-1", frozenset({JSON})) == ["é"]
    with pytest.raises(DecodeError):
        loads(b'["\xe9"]', JSON, "no-such-encoding", frozenset({JSON}))


# --------------------------------------------------------------------------- compression


@pytest.mark.parametrize("mime", [GZIP, BZIP2, LZMA])
def test_compression_is_bounded_both_ways(mime: str) -> None:
    text = b"abc" * 1000

    assert decompress(compress(text, mime), mime, 3000) == text
    with pytest.raises(DecodeError, match="larger than 2999"):
        decompress(compress(text, mime), mime, 2999)


@pytest.mark.parametrize(
    ("mime", "data"),
    [
        (GZIP, zlib.compress(b"x" * 100)[:-5]),
        (GZIP, b"no zlib"),
        (BZIP2, bz2.compress(b"x" * 100)[:-5]),
        (LZMA, lzma.compress(b"x" * 100)[:-5]),
        ("application/x-nothing", b""),
    ],
)
def test_broken_compressed_data_is_a_decode_error(mime: str, data: bytes) -> None:
    with pytest.raises(DecodeError):
        decompress(data, mime, 1000)


@pytest.mark.parametrize("mime", [GZIP, BZIP2, LZMA])
def test_a_bomb_is_not_blown_up(mime: str) -> None:
    bomb = compress(b"\0" * (64 * 1024 * 1024), mime)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(DecodeError):
        decompress(bomb, mime, 1024 * 1024)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB; LZMA's dictionary is 8 MiB
