"""Turn a batch of settlements into one write: plain commands for what is simply finished, a script for the rest.

Runs on the settle thread only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kernel_result_redis.connection import Connection, pack
from kernel_result_redis.errors import ReplyError
from kernel_worker.types import Delivery, Settlement, Verdict

from . import scripts
from .layout import Layout

_FAR = 1e11  # the year 5138
_LETTERS = {Verdict.ACK: "A", Verdict.REQUEUE: "Q", Verdict.DELAY: "D", Verdict.DEAD: "X"}


def settle(link: Connection, layout: Layout, batch: Sequence[Settlement]) -> None:
    """Carry out the verdicts; tags that are not reserved any more are skipped by the server."""
    finished: list[str] = []
    others: list[Settlement] = []
    for settlement in batch:
        delivery = settlement.delivery
        if settlement.verdict is Verdict.ACK and not delivery.attempts and not delivery.redelivered:
            finished.append(delivery.receipt)
        else:
            others.append(settlement)
    calls = []
    if finished:
        # The hash first: should the server stop in between, the index holds a tag without entry, which kombu and
        # we clean up. The other way round an entry would stay for ever.
        calls += [pack(("HDEL", layout.unacked, *finished)), pack(("ZREM", layout.unacked_index, *finished))]
    keys = (layout.unacked, layout.unacked_index, layout.attempts)
    args = (layout.prefix, layout.sep, *_arguments(others))
    if others:
        calls.append(scripts.SETTLE.packed(keys, args))
    link.send(b"".join(calls))
    replies = [link.read() for _ in calls]
    unknown = others and isinstance(replies[-1], ReplyError) and replies[-1].code == "NOSCRIPT"
    if unknown:
        replies.pop()
        scripts.SETTLE.run(link, keys, args)
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply.explain(link.server)


def renew(link: Connection, layout: Layout, identity: str, lease_s: float, held: Sequence[Delivery]) -> None:
    """Renew the holder's lease and the scores of what it holds, so that no kombu peer restores it either."""
    tags = [delivery.receipt for delivery in held]
    scripts.RENEW.run(link, (layout.unacked_index, layout.holders), (identity, lease_s, *tags))


def _arguments(others: list[Settlement]) -> list[Any]:
    """Four per settlement, see lua/settle.lua. The last reserved is put back first, so that order stays."""
    others.sort(key=_serial, reverse=True)
    arguments: list[Any] = []
    for settlement in others:
        arguments += (_LETTERS[settlement.verdict], settlement.delivery.receipt, int(settlement.count))
        arguments.append(_extra(settlement))
    return arguments


def _serial(settlement: Settlement) -> int:
    return int(settlement.delivery.receipt.rsplit("|", 2)[1])


def _extra(settlement: Settlement) -> str:
    if settlement.verdict is Verdict.DELAY:
        due = settlement.until if settlement.until < _FAR else _FAR  # NaN as well: a time that never comes
        return f"{due:.6f}"
    if settlement.verdict is Verdict.DEAD:
        return json.dumps(settlement.reason)
    return ""
