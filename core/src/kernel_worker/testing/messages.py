"""Messages and results as Celery 5.7 writes them (docs: wire protocol v2). Standard library only."""

from __future__ import annotations

import base64
import json
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def envelope(
    task: str = "contract.noop",
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    task_id: str = "",
    queue: str = "celery",
    priority: int = 0,
    headers: Mapping[str, Any] | None = None,
    padding: int = 0,
) -> bytes:
    """A version 2 message in kombu's virtual envelope, as a Celery client puts it into Redis.

    :param headers: merged over the headers a client writes, e.g. eta, expires, retries, timelimit.
    :param padding: bytes of text added as a keyword argument, to make the message large.
    """
    task_id = task_id or str(uuid.uuid4())
    keywords = dict(kwargs or {})
    if padding:
        keywords["padding"] = "x" * padding
    body = json.dumps([list(args), keywords, _EMBED]).encode()
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": _headers(task, task_id, args) | dict(headers or {}),
            "properties": _properties(task_id, queue, priority),
        }
    ).encode()


def envelope_v1(
    task: str = "contract.noop", args: Sequence[Any] = (), *, task_id: str = "", queue: str = "celery"
) -> bytes:
    """A version 1 message: no headers, everything in the body."""
    task_id = task_id or str(uuid.uuid4())
    body = {"task": task, "id": task_id, "args": list(args), "kwargs": {}, "retries": 0, "eta": None, "expires": None}
    body |= {"utc": True, "callbacks": None, "errbacks": None, "timelimit": [None, None], "taskset": None}
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {},
            "properties": _properties(task_id, queue, 0),
        }
    ).encode()


def _headers(task: str, task_id: str, args: Sequence[Any]) -> dict[str, Any]:
    return {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": repr(tuple(args))[:1024],
        "kwargsrepr": "{}",
        "origin": f"gen{os.getpid()}@{socket.gethostname()}",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }


def _properties(task_id: str, queue: str, priority: int) -> dict[str, Any]:
    return {
        "correlation_id": task_id,
        "reply_to": str(uuid.uuid5(uuid.NAMESPACE_OID, str(os.getpid()))),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": priority,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }


def body_of(raw: bytes, payload: bytes | None = None) -> bytes:
    """The body bytes of a delivery or dead letter: `payload` where the broker keeps it apart, else from `raw`."""
    if payload is not None:
        return payload
    return base64.b64decode(json.loads(raw)["body"])


def task_meta(task_id: str, state: str = "SUCCESS", result: Any = None, **more: Any) -> bytes:
    """One stored state of a task, in Celery's JSON."""
    final = state in ("SUCCESS", "FAILURE", "REVOKED")
    return json.dumps(
        {
            "status": state,
            "result": result,
            "traceback": None,
            "children": [],
            "date_done": "2026-01-02T03:04:05.678901+00:00" if final else None,
            **more,
            "task_id": task_id,
        }
    ).encode()
