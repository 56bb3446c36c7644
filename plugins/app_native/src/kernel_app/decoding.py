"""Read messages in an executor: envelope, headers, body (wire-protocol §4, §7, §9, §11).

What comes from a broker is input nobody vouches for. The fast way (msgspec, with the expected shape) is taken first;
where it refuses, the standard library's parser and checks with words say what is wrong, or find that it is right after
all (NaN, huge numbers, extended types).
"""

from __future__ import annotations

import json
from binascii import a2b_base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from .compression import decompress
from .exceptions import ContentDisallowed, DecodeError
from .representation import printable
from .sending import as_utc
from .serialization import JSON, MAX_DEPTH, loads, nests_too_deeply

AHEAD_BYTES = 64 * 1024
"""Larger messages are read when they are run."""
LONGEST_NAME = 255
"""Characters of a task's name or id."""


class Envelope(msgspec.Struct, gc=False):
    """kombu's virtual envelope."""

    headers: dict[str, Any]
    body: bytes = b""
    properties: dict[str, Any] = {}
    content_type: str = msgspec.field(name="content-type", default=JSON)
    content_encoding: str = msgspec.field(name="content-encoding", default="utf-8")


class Embed(msgspec.Struct, gc=False):
    """What follows a task: its signatures, or None."""

    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    chain: list[Any] | None = None
    chord: dict[str, Any] | None = None


class Call(NamedTuple):
    """One call as it came."""

    args: list[Any]
    kwargs: dict[str, Any]
    embed: Embed


NOTHING = Embed()

_read_envelope = msgspec.json.Decoder(Envelope).decode
_read_body = msgspec.json.Decoder(tuple[list[Any], dict[str, Any], Embed]).decode


def read_envelope(raw: bytes, payload: bytes | None) -> Envelope:
    """The envelope of a message.

    :param payload: the body, where the broker keeps it apart; `raw` has none then.
    :raises DecodeError: it is none.
    """
    try:
        envelope = _read_envelope(raw)
    except Exception:  # whatever the parser dislikes, the slow way decides
        return _envelope_slowly(raw, payload)
    if payload is not None:
        envelope.body = payload
    elif envelope.properties.get("body_encoding") != "base64":
        return _envelope_slowly(raw, None)
    return envelope


def _envelope_slowly(raw: bytes, payload: bytes | None) -> Envelope:
    if nests_too_deeply(raw):
        raise DecodeError(f"envelope nested deeper than {MAX_DEPTH} levels")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"envelope is not JSON: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise DecodeError(f"envelope is no object but {type(found).__name__}")
    headers, properties = found.get("headers"), found.get("properties") or {}
    if headers is None:
        headers = {}
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        raise DecodeError("headers or properties of the envelope are no object")
    content_type = found.get("content-type") or JSON
    encoding = found.get("content-encoding") or "utf-8"
    if not isinstance(content_type, str) or not isinstance(encoding, str):
        raise DecodeError("content type or encoding of the envelope is no text")
    body = payload if payload is not None else _body_bytes(found.get("body"), properties)
    return Envelope(headers, body, properties, content_type, encoding)


def _body_bytes(body: Any, properties: Mapping[str, Any]) -> bytes:
    if not isinstance(body, str):
        raise DecodeError("envelope without a body")
    try:
        if properties.get("body_encoding") == "base64":
            return a2b_base64(body.encode("ascii"))
        return body.encode("utf-8")
    except ValueError:
        raise DecodeError("the envelope's body is not base64") from None


def body_bytes(envelope: Envelope, accept: frozenset[str], limit: int) -> bytes:
    """The serialized body, uncompressed.

    :param accept: content types that may be decoded; another is refused before anything else is done.
    :param limit: most bytes, as it came and uncompressed.
    :raises ContentDisallowed: the content type is not accepted.
    :raises DecodeError: too large, or not decompressible.
    """
    body = envelope.body
    if envelope.content_type not in accept:
        raise ContentDisallowed(f"content type {printable(envelope.content_type, 80)} is not accepted (accept_content)")
    if len(body) > limit:
        raise DecodeError(f"body of {len(body)} bytes is larger than {limit} (task_max_body_bytes)")
    compression = envelope.headers.get("compression")
    if compression:
        body = decompress(body, str(compression), limit)
    return body


def read_call(envelope: Envelope, accept: frozenset[str], limit: int) -> Call:
    """The call in the body of a message whose headers name the task: protocol 2, or a protocol-1 body under them.

    :raises DecodeError: it cannot be read, or is no call. See `body_bytes` for the arguments.
    """
    body = body_bytes(envelope, accept, limit)
    if envelope.content_type == JSON and _is_plain(body):
        try:
            return Call(*_read_body(body))
        except Exception:  # whatever the parser dislikes, the slow way decides
            pass
    found = loads(body, envelope.content_type, envelope.content_encoding, accept)
    if isinstance(found, dict) and "args" in found:
        return call_of_protocol_1(found)
    if not isinstance(found, (list, tuple)):
        raise DecodeError(f"body is no list but {type(found).__name__}")
    if len(found) != 3:
        raise DecodeError(f"body has {len(found)} items; it needs args, kwargs and embed")
    args, kwargs, embed = found
    return Call(*_checked(args, kwargs), _embed(embed))


def read_plainly(raw: bytes, payload: bytes | None, accept: frozenset[str], limit: int) -> tuple[Envelope, Call] | None:
    """A small message of protocol 2 with a body of plain JSON; None for any other, and for what is not in order.

    Can do no harm, whatever is in the message: runs no code of the application's, and raises nothing. See `body_bytes`
    for the arguments.
    """
    if len(raw) > AHEAD_BYTES or (payload is not None and len(payload) > AHEAD_BYTES) or JSON not in accept:
        return None
    try:
        envelope = read_envelope(raw, payload)
        check_headers(envelope.headers)
        body = envelope.body
        if envelope.content_type != JSON or envelope.headers.get("compression") or len(body) > limit:
            return None
        return (envelope, Call(*_read_body(body))) if _is_plain(body) else None
    except Exception:  # whatever it is, `read_call` finds the words
        return None


def _is_plain(body: bytes) -> bool:
    """Whether no value of the body can be of an extended type, and nothing is nested too deeply.

    The second test is for the marker written with escapes: an underscore is \\u005f.
    """
    return b"__type__" not in body and b"\\u005" not in body and not nests_too_deeply(body)


def _checked(args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    if not isinstance(args, (list, tuple)):
        raise DecodeError(f"args are no list but {type(args).__name__}")
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise DecodeError("kwargs are no object with text keys")
    return list(args), kwargs


def _embed(embed: Any) -> Embed:
    if not embed:
        return NOTHING
    if not isinstance(embed, dict):
        raise DecodeError(f"embed is no object but {type(embed).__name__}")
    links = [embed.get(name) for name in ("callbacks", "errbacks", "chain")]
    chord = embed.get("chord")
    if not all(link is None or isinstance(link, (list, tuple)) for link in links):
        raise DecodeError("callbacks, errbacks or chain is no list")
    if chord is not None and not isinstance(chord, dict):
        raise DecodeError("chord is no signature")
    callbacks, errbacks, chain = (None if link is None else list(link) for link in links)
    return Embed(callbacks, errbacks, chain, chord)


# --------------------------------------------------------------------------- protocol 1


def read_protocol_1(envelope: Envelope, accept: frozenset[str], limit: int) -> tuple[dict[str, Any], Call]:
    """Headers in the manner of protocol 2, and the call, of a message without a `task` header.

    :raises DecodeError: it cannot be read, or is no task message.
    """
    body = body_bytes(envelope, accept, limit)
    found = loads(body, envelope.content_type, envelope.content_encoding, accept)
    if not isinstance(found, dict) or "task" not in found:
        raise DecodeError("neither headers nor body name a task")
    names = ("task", "id", "group", "group_index", "retries", "eta", "expires", "timelimit")
    headers = {name: found.get(name) for name in names}
    headers["group"] = headers["group"] or found.get("taskset")
    headers["retries"] = headers["retries"] or 0
    headers["root_id"] = headers["id"]
    headers["parent_id"] = None
    headers["ignore_result"] = None
    return headers, call_of_protocol_1(found)


def call_of_protocol_1(body: dict[str, Any]) -> Call:
    """The call in a protocol-1 body.

    :raises DecodeError: it is none.
    """
    args, kwargs = body.get("args"), body.get("kwargs")
    return Call(*_checked([] if args is None else args, {} if kwargs is None else kwargs), _embed(body))


# --------------------------------------------------------------------------- headers


def usable_id(value: Any) -> str | None:
    """The id if a result can be stored under it."""
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_NAME else None


def check_headers(headers: Mapping[str, Any]) -> None:
    """:raises DecodeError: a header that is needed is missing or of a wrong kind."""
    name = headers.get("task")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise DecodeError("the task's name is no text, empty, or too long")
    if usable_id(headers.get("id")) is None:
        raise DecodeError("the task's id is missing, no text, or too long")
    retries = headers.get("retries", 0)
    if type(retries) is not int or retries < 0:
        raise DecodeError("retries is no count")


def unix_time(value: Any, what: str) -> float:
    """The unix time of an ISO 8601 header; a naive one is UTC.

    :raises DecodeError: it is none.
    """
    try:
        return as_utc(datetime.fromisoformat(value)).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise DecodeError(f"{what} is no time in ISO 8601") from None
