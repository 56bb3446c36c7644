"""Turn a batch of settlements into one write: plain commands for what is simply finished, a script for the rest.

Runs on the settle thread only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from kernel_result_redis.connection import Connection, pack
from kernel_result_redis.errors import ReplyError
from kernel_worker.types import Delivery, Settlement, Verdict

from . import scripts
from .layout import Layout

_FAR = 1e11  # the year 5138
_LETTERS = {Verdict.ACK: "A", Verdict.REQUEUE: "Q", Verdict.DELAY: "D", Verdict.DEAD: "X", Verdict.MARK: "M"}


def settle(link: Connection, layout: Layout, batch: Sequence[Settlement], marked: set[str]) -> None:
    """Carry out the verdicts; tags that are not reserved any more are skipped by the server.

    :param marked: tags this holder has marked and not finished; kept up to date.
    """
    finished: list[str] = []
    others: list[Settlement] = []
    for settlement in batch:
        delivery = settlement.delivery
        if settlement.verdict is Verdict.MARK:
            marked.add(delivery.receipt)
        elif (
            settlement.verdict is Verdict.ACK
            and not (delivery.attempts or delivery.redelivered)
            and (not marked or delivery.receipt not in marked)
        ):
            finished.append(delivery.receipt)
            continue
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
    if marked:  # not sooner: a batch that failed is repeated
        marked.difference_update(each.delivery.receipt for each in others if each.verdict is not Verdict.MARK)


class Renewal:
    """Renews the lease of one holder, and learns what was taken from it. Settle thread."""

    def __init__(self, layout: Layout, identity: str, lease_s: float) -> None:
        self._keys = (layout.unacked_index, layout.holders, layout.epoch)
        self._terms = (identity, lease_s)
        self._epoch = b""
        self._forgotten: set[str] = set()
        """Tags that are gone because the server lost its data: nobody else has them."""

    def begin(self, link: Connection) -> None:
        """Learn the epoch before anything is held. Nothing happens on later connections."""
        if self._epoch:
            return
        set_, self._epoch = link.pipeline([("SET", self._keys[2], _new_epoch(), "NX"), ("GET", self._keys[2])])
        for reply in (set_, self._epoch):
            if isinstance(reply, ReplyError):
                self._epoch = b""
                raise reply.explain(link.server)

    def renew(self, link: Connection, held: Sequence[Delivery]) -> list[Delivery]:
        """Renew the holder's lease and the scores of what it holds, so that no kombu peer restores it either.

        :return: what others took while the lease was over.
        """
        tags = [delivery.receipt for delivery in held]
        epoch, places = scripts.RENEW.run(link, self._keys, (*self._terms, _new_epoch(), *tags))
        gone = {tags[place - 1] for place in places}
        if self._epoch and epoch != self._epoch:
            self._forgotten = set(gone)
        self._epoch = epoch
        self._forgotten &= gone
        if not gone:
            return []
        return [delivery for delivery in held if delivery.receipt in gone and delivery.receipt not in self._forgotten]


def _new_epoch() -> str:
    return os.urandom(8).hex()


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
