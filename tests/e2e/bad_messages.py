"""Messages that cannot be run, or hardly: rows of the tables in test_bad_messages.py.

Each row is made when it is needed, for one of them has a hundred megabytes.
"""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import os
import pickle
import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from kernel_worker.testing import envelope
from kernel_worker.testing.messages import envelope_v1

MEGABYTE = 1024 * 1024
EXPLODED = "exploded"
"""The file that a pickle creates when somebody loads it."""

CALL = [[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
Make = Callable[[str], bytes]
"""Gives a message for a task id."""


class Exploding:
    """Pickled, it is a command."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {EXPLODED}",)


def message(
    task_id: str,
    body: Any = CALL,
    over: Mapping[str, Any] | None = None,
    *,
    without: tuple[str, ...] = (),
    **changes: Any,
) -> bytes:
    """A call of `add(1, 2)`, spoiled.

    :param body: a value for JSON, or the bytes themselves.
    :param over: headers, over those of a Celery client.
    :param without: headers that are left out.
    :param changes: of the envelope; `_` in a name stands for `-`.
    """
    whole = json.loads(envelope("victim.add", (1, 2), task_id=task_id, headers=over))
    for name in without:
        del whole["headers"][name]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    whole["body"] = base64.b64encode(data).decode()
    whole.update((name.replace("_", "-"), value) for name, value in changes.items())
    return json.dumps(whole).encode()


def raw(data: bytes) -> Make:
    """Bytes that hold no id."""
    return lambda task_id: data


def body(content: Any, **headers: Any) -> Make:
    """A message with this body."""
    return lambda task_id: message(task_id, content, headers)


def header(**headers: Any) -> Make:
    """A message with these headers over the usual ones."""
    return lambda task_id: message(task_id, over=headers)


def compressed(data: bytes, mime: Any) -> Make:
    """A message whose body is compressed, or says so."""
    return body(data, compression=mime)


def changed(**changes: Any) -> Make:
    """A message with this done to its envelope."""
    content = changes.pop("body", CALL)
    return lambda task_id: message(task_id, content, **changes)


def replaced(old: bytes, new: bytes) -> Make:
    """A good message in which something is replaced as text."""

    def make(task_id: str) -> bytes:
        good = message(task_id)
        assert old in good
        return good.replace(old, new, 1)

    return make


def truncated(task_id: str) -> bytes:
    return message(task_id)[:-20]


def pickled(content_type: str) -> Make:
    """A command, under some label."""
    return changed(body=pickle.dumps([[Exploding()], {}, {}]), content_type=content_type, content_encoding="binary")


def bomb() -> bytes:
    """A megabyte of zlib that becomes a gigabyte of zeros: one block many times, and the checksum they have."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(16 * MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (1024 * MEGABYTE % 65521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + block * 64 + b"\x03\x00" + checksum.to_bytes(4, "big")


def packed_zeros(task_id: str, pack: Callable[[bytes], bytes], mime: str) -> bytes:
    """A few bytes that become 64 MB."""
    return compressed(pack(bytes(64 * MEGABYTE)), mime)(task_id)


def lzma_of_zeros(zeros: bytes) -> bytes:
    """At its quickest."""
    return lzma.compress(zeros, preset=0)


def large(task_id: str, size: int) -> bytes:
    """A call whose argument has so many bytes."""
    return message(task_id, b'[["' + b"x" * size + b'", 2], {}, {}]')


NESTED = b"[" * 5000 + b"]" * 5000
V1 = {"task": "victim.add", "args": [1, 2]}

# What is dead at once. Text that the reason has; whether the failure can be stored (the id is known).
DEAD: dict[str, tuple[Make, str, bool]] = {
    # -- rows of the protocol's table
    "unknown task": (header(task="victim.nobody"), "unknown task victim.nobody", True),
    "content type that is not accepted": (changed(content_type="application/x-msgpack"), "not accepted", True),
    "undecodable JSON": (body(b"{nope"), "not JSON", True),
    "eta that is no time": (header(eta="tomorrow"), "eta", False),
    "expires that is no time": (header(expires="tomorrow"), "expires", False),
    "no task anywhere": (lambda task_id: message(task_id, {"foo": 1}, without=("task",)), "name a task", True),
    "body of two items": (body([[1, 2], {}]), "2 items", True),
    "task but no id": (lambda task_id: message(task_id, without=("id",)), "'id'", False),
    "kwargs that are a list": (body([[1], [2], {}]), "kwargs", True),
    # -- what is no envelope
    "random bytes": (raw(random.Random(1).randbytes(3000)), "", False),
    "random bytes that are text": (raw(base64.b85encode(random.Random(2).randbytes(3000))), "not JSON", False),
    "empty": (raw(b""), "not JSON", False),
    "null": (raw(b"null"), "not a", False),
    "a list": (raw(b"[1, 2]"), "not a", False),
    "a text": (raw(b'"text"'), "not a", False),
    "a huge integer": (raw(b"1" * 100_000), "not JSON", False),
    "an empty object": (raw(b"{}"), "", False),
    "truncated envelope": (truncated, "not JSON", False),
    "two envelopes": (lambda task_id: message(task_id) * 2, "not JSON", False),
    "UTF-16": (lambda task_id: message(task_id).decode().encode("utf-16"), "UTF-8", False),
    "bad UTF-8 in the envelope": (replaced(b'"lang": "py"', b'"lang": "\xff\xfe"'), "UTF-8", False),
    "zero bytes": (raw(bytes(1000)), "not JSON", False),
    "5,000 deep": (raw(NESTED), "", False),
    "5,000 deep and never closed": (raw(b'{"headers": ' + b'{"a": ' * 5000), "", False),
    "5,000 deep in a header": (replaced(b'"lang": "py"', b'"lang": ' + NESTED), "", False),
    "100,000 deep in a property": (replaced(b'"delivery_mode": 2', b'"x": ' + b"[" * 100_000 + b"]" * 100_000), "", False),
    "huge integer in a header": (replaced(b'"retries": 0', b'"retries": ' + b"9" * 5000), "", False),
    "headers that are a list": (changed(headers=[1]), "headers", False),
    "headers that are a text": (changed(headers="x"), "headers", False),
    "no headers, and a body of protocol 2": (changed(headers={}), "name a task", False),
    "properties that are a list": (changed(properties=[1]), "properties", False),
    "no body": (replaced(b'"body": ', b'"nobody": '), "body", False),
    "body that is a number": (replaced(b'"body": "', b'"body": 5, "x": "'), "body", False),
    "body that is no base64": (replaced(b'"body": "', b'"body": "\xe2\x82\xac!'), "base64", False),
    "content type that is a number": (changed(content_type=5), "content type", False),
    "content encoding that is a list": (changed(content_encoding=["utf-8"]), "encoding", False),
    # -- bodies
    "empty body": (body(b""), "not JSON", True),
    "body of random bytes": (body(random.Random(3).randbytes(3000)), "", True),
    "truncated body": (body(json.dumps(CALL).encode()[:-5]), "not JSON", True),
    "bad UTF-8 in the body": (body(b'[["\xff"], {}, {}]'), "", True),
    "body that is null": (body(None), "no list", True),
    "body that is a text": (body("x"), "no list", True),
    "body of no items": (body([]), "0 items", True),
    "body of four items": (body([*CALL, 1]), "4 items", True),
    "args that are an object": (body([{"a": 1}, {}, {}]), "args", True),
    "args that are null": (body([None, {}, {}]), "args", True),
    "embed that is a text": (body([[1, 2], {}, "x"]), "embed", True),
    "callbacks that are a number": (body([[1, 2], {}, {"callbacks": 5}]), "callbacks", True),
    "chord that is a list": (body([[1, 2], {}, {"chord": [1]}]), "chord", True),
    "body 5,000 deep": (body(NESTED), "nested", True),
    "argument 5,000 deep": (body(b"[[" + NESTED + b", 2], {}, {}]"), "nested", True),
    "huge integer in the body": (body(b"[[1, " + b"9" * 5000 + b"], {}, {}]"), "", True),
    "unknown __type__": (body([[{"__type__": "os.system", "__value__": "true"}, 2], {}, {}]), "__type__", True),
    "content encoding that nobody knows": (changed(body=b'[["\\u005f_type__"]]', content_encoding="klingon"), "encoding", True),
    "body over the limit": (lambda task_id: large(task_id, 16 * MEGABYTE + 1), "larger than 16777216", True),
    "body of 100 MB": (lambda task_id: large(task_id, 100 * MEGABYTE), "large", False),
    # -- labels
    "pickle": (pickled("application/x-python-serialize"), "not accepted", True),
    "pickle under its short name": (pickled("pickle"), "not accepted", True),
    "pickle that says it is JSON": (pickled("application/json"), "", True),
    "pickle that says it is data": (pickled("application/data"), "not accepted", True),
    "yaml": (changed(body=b"!!python/object/apply:os.system [touch exploded]", content_type="application/x-yaml"), "not accepted", True),
    "content type with control characters": (changed(content_type="x/\x1b[31m\r\n"), "not accepted", True),
    # -- compression
    "bomb of a gigabyte": (lambda task_id: message(task_id, bomb(), {"compression": "application/x-gzip"}), "larger than", True),
    "bzip2 bomb": (lambda task_id: packed_zeros(task_id, bz2.compress, "application/x-bz2"), "larger than", True),
    "lzma bomb": (lambda task_id: packed_zeros(task_id, lzma_of_zeros, "application/x-lzma"), "larger than", True),
    "unknown compression": (compressed(b"x", "application/x-nope"), "compression", True),
    "compression that is a list": (compressed(b"x", ["application/x-gzip"]), "compression", True),
    "compression that is a number": (compressed(b"x", 5), "compression", True),
    "not compressed at all": (body(CALL, compression="application/x-gzip"), "decompressed", True),
    "compressed and truncated": (compressed(zlib.compress(json.dumps(CALL).encode())[:-6], "application/x-gzip"), "early", True),
    "compression whose package is not installed": (compressed(b"x", "application/x-brotli"), "brotli", True),
    # -- headers
    "task that is a list": (header(task=["victim.add"]), "task", False),
    "empty task": (header(task=""), "task", False),
    "task of a megabyte": (header(task="x" * MEGABYTE), "task", False),
    "id that is a number": (header(id=5), "id", False),
    "id that is an object": (header(id={}), "id", False),
    "id that is null": (header(id=None), "id", False),
    "empty id": (header(id=""), "id", False),
    "id of a megabyte": (header(id="x" * MEGABYTE), "id", False),
    "id with half of a surrogate pair": (header(id="\ud83d"), "id", False),
    "id with control characters that is no text": (header(id=["\x1b[31m"]), "id", False),
    "timelimit that is a text": (header(timelimit="60"), "timelimit", False),
    "timelimit that is a number": (header(timelimit=60), "timelimit", False),
    "timelimit of one": (header(timelimit=[60]), "timelimit", False),
    "timelimit of texts": (header(timelimit=["60", "30"]), "timelimit", False),
    "timelimit of an object": (header(timelimit={"hard": 1, "soft": 2}), "timelimit", False),
    "negative timelimit": (header(timelimit=[-1, None]), "timelimit", False),
    "infinite timelimit": (header(timelimit=[float("inf"), None]), "timelimit", False),
    "timelimit that is no number": (header(timelimit=[float("nan"), None]), "timelimit", False),
    "retries that are a text": (header(retries="3"), "retries", True),
    "negative retries": (header(retries=-1), "retries", True),
    "retries that are a fraction": (header(retries=1.5), "retries", True),
    "eta that is a number": (header(eta=5), "eta", False),
    "eta that is an object": (header(eta={"at": 5}), "eta", False),
    "empty eta": (header(eta=""), "eta", False),
    "eta with control characters": (header(eta="\x1b[31m\n"), "eta", False),
    "expires that is a list": (header(expires=[1]), "expires", False),
    # -- protocol 1
    "protocol 1 without an id": (lambda task_id: message(task_id, V1, headers={}), "id", False),
    "protocol 1 with an odd eta": (lambda task_id: _v1(task_id, eta="soon"), "eta", True),
    "protocol 1 with args that are a text": (lambda task_id: _v1(task_id, args="12"), "args", False),
    "protocol 1 of an unknown task": (lambda task_id: _v1(task_id, task="victim.nobody"), "unknown task", True),
}  # fmt: skip


def _v1(task_id: str, **changes: Any) -> bytes:
    whole = json.loads(envelope_v1("victim.add", (1, 2), task_id=task_id))
    content = {**json.loads(base64.b64decode(whole["body"])), **changes}
    whole["body"] = base64.b64encode(json.dumps(content).encode()).decode()
    return json.dumps(whole).encode()


# Odd, but they say what is wanted: they run.
RUNS: dict[str, Make] = {
    "protocol 1": lambda task_id: envelope_v1("victim.add", (1, 2), task_id=task_id),
    "protocol 1 without args": lambda task_id: _v1(task_id, args=[], kwargs={"x": 1, "y": 2}),
    "protocol 2 with a body of protocol 1": body({"args": [1], "kwargs": {"y": 2}}),
    "only the headers that are needed": lambda task_id: message(
        task_id,
        without=(
            "lang",
            "shadow",
            "eta",
            "expires",
            "retries",
            "timelimit",
            "root_id",
            "parent_id",
            "stamps",
            "ignore_result",
        ),
    ),
    "NaN in the headers": header(odd=float("nan")),
    "Infinity and a huge integer in the body": body(b"[[1, 2], {}, {}]", odd=float("inf")),
    "duplicate headers": replaced(b'"lang": "py"', b'"lang": "py", "lang": "js", "task": "victim.nobody"'),
    "duplicate bodies": replaced(b'"body": "', b'"body": "garbage", "body": "'),
    "header of a megabyte": header(odd="x" * MEGABYTE),
    "ten thousand headers": header(**{f"odd{n}": n for n in range(10_000)}),
    "stamps of wrong kinds": header(stamps=5, stamped_headers="x"),
    "lineage of wrong kinds": header(root_id=5, parent_id={}, group=[1], group_index="x", shadow=5, origin=None),
    "representations of wrong kinds": header(argsrepr=5, kwargsrepr=[]),
    "nesting of a wrong kind": header(replaced_task_nesting="x"),
    "priority that is a text": changed(properties={"priority": "high", "body_encoding": "base64", "delivery_info": 5}),
    "no delivery info": changed(properties={"body_encoding": "base64"}),
    "shadow with control characters": header(shadow="\x1b[31mred\r\n"),
    "body in UTF-16": changed(body=json.dumps(CALL).encode("utf-16"), content_encoding="utf-16"),
    "eta long ago": header(eta="1970-01-01T00:00:00"),
    "limits of zero": header(timelimit=[0, 0]),
}
