"""The dead letters of a queue: list, find, put back, delete. Any thread, on the connection of `shelves`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from kernel_result_redis.connection import Connection
from kernel_worker.types import DeadLetter

from . import scripts
from .layout import Layout
from .shelves import answers

_PAGE = 500  # letters taken out by one call: a few milliseconds of the server's time


def newest(link: Connection, layout: Layout, queue: str, limit: int) -> list[DeadLetter]:
    """The newest first."""
    if limit < 1:
        return []
    (found,) = answers(link, [("ZREVRANGE", layout.dead(queue), 0, limit - 1)])
    return _read(link, layout, queue, found)


def find(link: Connection, layout: Layout, queue: str, letter_id: str) -> DeadLetter | None:
    """One of them."""
    letters = _read(link, layout, queue, [letter_id.encode("utf-8", "replace")])
    return letters[0] if letters else None


def exhume(link: Connection, layout: Layout, queue: str, ids: Sequence[str] | None, *, replay: bool) -> int:
    """Put letters back at the end of their list, or delete them; how many were found.

    :param ids: None = all that are dead at the moment of the call.
    """
    keys = (layout.dead(queue), layout.dead_messages(queue), layout.dead_infos(queue))
    steps = f" {' '.join(map(str, layout.steps))} "
    pages = _pages(link, layout, queue) if ids is None else _cut(ids)
    return sum(
        int(scripts.EXHUME.run(link, keys, (layout.list_key(queue, 0), layout.sep, steps, int(replay), *page)))
        for page in pages
    )


def _cut(ids: Sequence[str]) -> Iterator[list[bytes]]:
    known = [each.encode("utf-8", "replace") for each in dict.fromkeys(ids)]
    for start in range(0, len(known), _PAGE):
        yield known[start : start + _PAGE]


def _pages(link: Connection, layout: Layout, queue: str) -> Iterator[list[bytes]]:
    """All ids, oldest first, up to the newest now: what is put back may die again at once, and need not be taken twice.
    Each page must be gone before the next is asked for."""
    dead = layout.dead(queue)
    (newest_now,) = answers(link, [("ZREVRANGE", dead, 0, 0, "WITHSCORES")])
    while newest_now:
        (page,) = answers(link, [("ZRANGEBYSCORE", dead, "-inf", repr(newest_now[0][1]), "LIMIT", 0, _PAGE)])
        if not page:
            return
        yield page


def _read(link: Connection, layout: Layout, queue: str, ids: Sequence[bytes]) -> list[DeadLetter]:
    if not ids:
        return []
    keys = (layout.dead_messages(queue), layout.dead_infos(queue))
    commands = [("HMGET", key, *ids) for key in keys] + [("ZMSCORE", layout.dead(queue), *ids)]
    letters = []
    for letter_id, raw, text, died_at in zip(ids, *answers(link, commands), strict=True):
        if raw is not None and died_at is not None:  # else deleted meanwhile
            info = json.loads(text) if text else {}
            reason, attempts = str(info.get("reason", "")), int(info.get("attempts", 0))
            letters.append(
                DeadLetter(letter_id.decode("utf-8", "replace"), queue, raw, reason, float(died_at), attempts)
            )
    return letters
