"""Names of keys and channels: kombu's, and ours under `kw.`. Standard library only, no I/O.

    <queue>, <queue> sep <step>            lists of waiting envelopes, one per priority step
    unacked, unacked_index                 reserved messages, see lua/restoring.lua
    _kombu.binding.<exchange>              set of <routing key> sep <pattern> sep <queue>
    _kombu.binding_permanent.<exchange>    the same, for queues that do not expire (kombu 5.7)
    kw.holders                             zset identity of a holder -> unix time its lease ends
    kw.epoch                               text, changes when the server lost its data
    kw.attempts                            hash sha1 of envelope -> counted deliveries, see lua/restoring.lua
    kw.parked:<queue>, kw.parked.msg:…     zset id -> due time; hash id -> envelope
    kw.dead:<queue>, kw.dead.msg:…, kw.dead.info:…   zset id -> time; hashes id -> envelope, JSON

Facts of kombu's layout: kombu 5.7, transport/redis.py and transport/virtual/exchange.py, checked by running it.
"""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Iterable, Mapping
from typing import Any

_NAME_BYTES = 1000  # lua/restoring.lua looks for the queue's name in the last bytes of an entry
_RESERVED = ("kw.", "_kombu.", "celery-task-meta-", "celery-taskset-meta-")


class Layout:
    """Keys of one broker, by kombu's transport options: global_keyprefix, sep, priority_steps, unacked_key,
    unacked_index_key, unacked_mutex_key, fanout_prefix, fanout_patterns.

    Keys are given with the prefix, queue names without. Raises ValueError for options that make no sense.
    """

    def __init__(self, options: Mapping[str, Any], db: int = 0) -> None:
        self.prefix = str(options.get("global_keyprefix") or "")
        self.sep = str(options.get("sep") or "\x06\x16")
        self.steps = _steps(options.get("priority_steps"))
        own = [
            str(options.get(name) or name.removesuffix("_key"))
            for name in ("unacked_key", "unacked_index_key", "unacked_mutex_key")
        ]
        self.unacked, self.unacked_index, _ = (self.prefix + name for name in own)
        self._taken = frozenset(own)
        self.holders = self.prefix + "kw.holders"
        self.attempts = self.prefix + "kw.attempts"
        self.epoch = self.prefix + "kw.epoch"
        self._channel = _channel_prefix(options.get("fanout_prefix", True), db)
        self._has_patterns = bool(options.get("fanout_patterns", True))

    def step(self, priority: int) -> int:
        """The priority step of a priority: 0 to 9, 0 is the most urgent; rounded down to a step."""
        return self.steps[bisect(self.steps, max(0, min(9, priority))) - 1]

    def list_key(self, queue: str, step: int) -> str:
        return f"{self.prefix}{queue}{self.sep}{step}" if step else self.prefix + queue

    def list_keys(self, queue: str) -> list[str]:
        """The lists of a queue, most urgent first."""
        return [self.list_key(queue, step) for step in self.steps]

    def parked(self, queue: str) -> str:
        return f"{self.prefix}kw.parked:{queue}"

    def parked_messages(self, queue: str) -> str:
        return f"{self.prefix}kw.parked.msg:{queue}"

    def dead(self, queue: str) -> str:
        return f"{self.prefix}kw.dead:{queue}"

    def dead_messages(self, queue: str) -> str:
        return f"{self.prefix}kw.dead.msg:{queue}"

    def dead_infos(self, queue: str) -> str:
        return f"{self.prefix}kw.dead.info:{queue}"

    def binding_sets(self, exchange: str) -> tuple[str, str]:
        """The sets that hold the bindings of an exchange; the first is the one to look up."""
        return f"{self.prefix}_kombu.binding.{exchange}", f"{self.prefix}_kombu.binding_permanent.{exchange}"

    def binding(self, queue: str, exchange_type: str, routing_key: str) -> str:
        """The member of a binding set that binds `queue`."""
        pattern = topic_pattern(routing_key) if exchange_type == "topic" else ""
        return self.sep.join((routing_key, pattern, queue))

    def channel(self, exchange: str, routing_key: str) -> str:
        """The pub/sub channel of a fanout exchange."""
        topic = f"{self.prefix}{self._channel}{exchange}"
        return f"{topic}/{routing_key}" if routing_key and self._has_patterns else topic

    def bound_queues(self, members: Iterable[bytes], exchange_type: str, routing_key: str) -> list[str]:
        """Queues whose binding matches the routing key, each once, sorted.

        :param members: of the exchange's binding set. Without a pattern a member matches by equality, so
            `exchange_type` "" will do where the type is unknown.
        """
        found = set()
        for member in members:
            parts = member.decode("utf-8", "replace").split(self.sep)
            if len(parts) != 3:
                continue
            key, pattern, queue = parts
            if exchange_type == "direct" or not pattern:
                matches = key == routing_key
            else:
                matches = _matches(pattern, routing_key)
            if matches and queue:
                found.add(queue)
        return sorted(found)

    def refusal(self, queue: str) -> str:
        """Why a queue cannot have this name; "" if it can."""
        shown = ascii(queue)[:80]
        if queue in self._taken or queue.startswith(_RESERVED):
            return f"queue {shown}: the name belongs to a key of the transport or of results"
        if not queue or len(queue.encode("utf-8", "replace")) > _NAME_BYTES:
            return f"queue {shown}: a name has 1 to {_NAME_BYTES} bytes"
        if self.sep in queue or re.search(r'[\x00-\x1f\x7f"\\]', queue):
            return f"queue {shown}: a name has no control characters, quotes or backslashes"
        return ""


def topic_pattern(binding_key: str) -> str:
    """The regular expression kombu stores for a topic binding: `*` is one word, `#` any words.

    Byte for byte kombu's, so that both sides add the same member and not a second one.
    """
    words = {"*": r"[^\.]+", "#": r".*?"}
    escaped = "".join(char if char.isalnum() or char in ".#*" else f"\\{char}" for char in binding_key)
    return "^" + r"\.".join(words.get(word, word) for word in escaped.split(".")) + "$"


def entry_endings(queue: str) -> tuple[str, str]:
    """How an entry of `unacked` ends for a queue: as we write it, and as kombu does (ASCII only)."""
    return f', "{queue}"]', f", {json.dumps(queue)}]"


def _matches(pattern: str, routing_key: str) -> bool:
    try:
        return re.match(pattern, routing_key) is not None
    except re.error:  # somebody else's member; it never matched anything for kombu either
        return False


def _steps(value: Any) -> tuple[int, ...]:
    try:
        steps = tuple(sorted({int(each) for each in value})) if value else (0, 3, 6, 9)
    except (TypeError, ValueError):
        steps = (-1,)
    if steps[0] < 0:
        raise ValueError(f"priority_steps is {value!r}, but must be a list of numbers from 0 to 9")
    return steps


def _channel_prefix(option: Any, db: int) -> str:
    """kombu's `fanout_prefix`: True = "/<db>.", a text = that instead, false = none."""
    if isinstance(option, str):
        return option.replace("{db}", str(db))
    return f"/{db}." if option else ""
