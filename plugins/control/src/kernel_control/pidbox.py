"""Kombu's pidbox messages: what a broadcast asks for, whom it is meant for, and how fast they may come.

Untrusted input: whoever can write to the broker can send these. Nothing here raises for what a message says, and nothing
takes long. Pure; no I/O.

Facts: reference of kombu 5.7's pidbox: body keys method, arguments, destination, pattern, matcher, ticket, reply_to.
"""

from __future__ import annotations

import fnmatch
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_BODY = 1024 * 1024
"""Bytes of a command at most; a revocation of 20,000 ids fits."""
MAX_REPLY = 4 * 1024 * 1024
"""Bytes of a reply at most."""
MAX_PATTERN = 256
MAX_QUANTIFIERS = 3
_TAIL = 2048
_BOX = re.compile(r"[\w.:@-]{1,128}")
_REPLY_TO = re.compile(rb'"reply_to": ?\{[^{}]{0,300}\}')
_TICKET = re.compile(rb'"ticket": ?"([\w-]{1,64})"')


@dataclass(frozen=True, slots=True)
class Call:
    """One command for this node.

    :param box: where the reply goes; "" = none is wanted.
    """

    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    box: str = ""
    ticket: str = ""
    error: str = ""
    """Why it is not carried out, whatever it is."""


def read(node: str, reply_exchange: str, body: bytes) -> Call | None:
    """What a broadcast asks of this node; None when it is not meant for it, or is none at all."""
    if len(body) > MAX_BODY:
        return _too_large(reply_exchange, body)
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not _is_meant(node, message):
        return None
    method, arguments = message.get("method"), message.get("arguments") or {}
    box = _box(message.get("reply_to"), reply_exchange)
    ticket = message.get("ticket")
    ticket = ticket[:64] if isinstance(ticket, str) else ""
    if not isinstance(method, str) or not isinstance(arguments, dict):
        return Call("", {}, box, ticket, "a command has a method, a text, and arguments, an object")
    return Call(method, arguments, box, ticket)


def _too_large(reply_exchange: str, body: bytes) -> Call:
    """Not read, but who sent it shall know: Celery's and our clients write the way back behind everything else."""
    tail = body[-_TAIL:]
    box = ticket = ""
    if found := _REPLY_TO.search(tail):
        try:
            box = _box(json.loads(b"{" + found.group() + b"}")["reply_to"], reply_exchange)
        except ValueError:
            pass
    if known := _TICKET.search(tail):
        ticket = known.group(1).decode()
    return Call("", {}, box, ticket, f"the command has {len(body)} bytes, at most {MAX_BODY} are read")


def _box(reply_to: Any, exchange: str) -> str:
    """The box of a way back; "" for any other exchange: a command must not make a worker publish anywhere."""
    if not isinstance(reply_to, dict) or reply_to.get("exchange") != exchange:
        return ""
    box = reply_to.get("routing_key")
    return box if isinstance(box, str) and _BOX.fullmatch(box) else ""


def _is_meant(node: str, message: Mapping[str, Any]) -> bool:
    destination = message.get("destination")
    if destination:
        return node == destination or (isinstance(destination, list) and node in destination)
    pattern, matcher = message.get("pattern"), message.get("matcher")
    if pattern and matcher:
        return isinstance(pattern, str) and _matches(node, pattern, matcher)
    return True


def _matches(node: str, pattern: str, matcher: Any) -> bool:
    if len(pattern) > MAX_PATTERN:
        return False
    if matcher == "glob":
        return _is_quick(pattern.replace("?", "."), "*", 12) and fnmatch.fnmatchcase(node, pattern)
    if matcher != "pcre" or not _is_quick(pattern, "*+?{", MAX_QUANTIFIERS):
        return False
    try:
        return re.match(pattern, node) is not None
    except re.error:
        return False


def _is_quick(pattern: str, quantifiers: str, most: int) -> bool:
    """Whether matching takes a bounded time: few quantifiers, and none of a group. The interpreter holds its lock while it
    matches, so a hostile pattern would stop the whole process."""
    plain = re.sub(r"\\.", "x", pattern)
    return sum(plain.count(each) for each in quantifiers) <= most and not re.search(r"\)[*+?{]", plain)


def encode_reply(node: str, reply: Any) -> bytes:
    """The body of a reply; one that is too large or no JSON becomes an error."""
    try:
        body = json.dumps({node: reply}).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return json.dumps({node: {"error": f"the reply is no JSON: {error}"[:300]}}).encode()
    if len(body) > MAX_REPLY:
        text = f"the reply has {len(body)} bytes, at most {MAX_REPLY} are sent"
        return json.dumps({node: {"error": text}}).encode()
    return body


class Bucket:
    """So many commands in a second, and as many at once. One thread."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._tokens = rate
        self._at = time.monotonic()

    def take(self) -> bool:
        """Whether one more may come now."""
        now = time.monotonic()
        self._tokens = min(self.rate, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
