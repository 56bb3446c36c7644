"""The Lua scripts of the broker, see `lua/`: one per change of state, each atomic on the server."""

from __future__ import annotations

from pathlib import Path

from kernel_result_redis.script import Script


def _load(name: str, *, after: str = "") -> Script:
    folder = Path(__file__).parent / "lua"
    return Script(name, "\n".join((folder / f"{each}.lua").read_text("utf-8") for each in (after, name) if each))


FETCH = _load("fetch")
SETTLE = _load("settle", after="restoring")
RENEW = _load("renew")
SURVEY = _load("survey")
RELEASE = _load("release", after="restoring")
PUT_BACK = _load("put_back")
IN_FLIGHT = _load("in_flight")
PURGE = _load("purge")
EXHUME = _load("exhume")
