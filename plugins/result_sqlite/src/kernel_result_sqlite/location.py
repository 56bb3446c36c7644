"""Which file a `sqlite:` URL names. Imports nothing of the kernel, and not sqlite3.

sqlite:///kw.db                      relative to the working directory
sqlite:////var/lib/app/kw.db         absolute
sqlite:///kw.db?synchronous=full     survives a power cut, not only a kill
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

SYNCHRONOUS = ("normal", "full")
"""`normal`: what a call returned for survives any kill of any process; a power cut may take the last
moments, never the file. `full`: survives a power cut too; one disk flush per transaction."""


@dataclass(frozen=True, slots=True)
class Location:
    """One SQLite file and how careful to be with it.

    :param path: absolute, so that a later change of the working directory does not matter.
    :param synchronous: one of `SYNCHRONOUS`.
    """

    path: str
    synchronous: str = "normal"


def parse_url(url: str) -> Location:
    """The file that a URL names.

    :raises ValueError: a host, no file name, an unknown option; the text says what to write instead.
    """
    parts = urlsplit(url)
    if parts.netloc:
        raise ValueError(
            f"a sqlite URL names a file, not a host ({parts.hostname!r}): write sqlite:///relative.db "
            "(three slashes) or sqlite:////absolute/path.db (four)"
        )
    name = unquote(parts.path[1:])
    if not name or name.endswith("/") or "\0" in name:
        raise ValueError(f"the sqlite URL names no file ({name!r}): write for example sqlite:///kw.db")
    if name == ":memory:":
        raise ValueError(
            "':memory:' would be another database in each process: name a file, for example sqlite:///kw.db"
        )
    if parts.fragment:
        raise ValueError(f"the sqlite URL has a part after '#': write %23 for a '#' in the file name {name!r}")
    return Location(os.path.abspath(name), **_options(parts.query))


def _options(query: str) -> dict[str, str]:
    found = dict(parse_qsl(query, keep_blank_values=True))
    for name in found:
        if name != "synchronous":
            raise ValueError(f"unknown option {name!r} in the sqlite URL (known: synchronous)")
    value = found.get("synchronous", SYNCHRONOUS[0]).lower()
    if value not in SYNCHRONOUS:
        raise ValueError(f"synchronous={value!r} in the sqlite URL: must be {' or '.join(SYNCHRONOUS)}")
    return {"synchronous": value}
