"""Replies for people: a table where a reply is a list of objects, else lines. What comes from workers is untrusted text."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

WIDEST = 60
_COLUMNS = ("id", "name", "args", "kwargs", "eta", "running", "worker_pid", "routing_key")
_NOT_SHOWN = ("exchange", "bindings", "delivery_info")


def printable(text: str, limit: int = 200) -> str:
    """Text of unknown origin on one line, without control characters, and cut."""
    flat = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def print_replies(replies: Mapping[str, Any]) -> None:
    """Print what each node answered, by name."""
    for node in sorted(replies):
        reply = replies[node]
        if isinstance(reply, Mapping) and "error" in reply:
            click.echo(f"{printable(node)}: ERROR")
            _print_text(reply["error"])
            continue
        click.echo(f"{printable(node)}: OK")
        _print_reply(reply)


def _print_reply(reply: Any) -> None:
    if isinstance(reply, Mapping) and set(reply) == {"ok"}:
        _print_text(reply["ok"])
    elif isinstance(reply, list) and reply and all(isinstance(each, Mapping) for each in reply):
        _print_table([_row(each) for each in reply])
    elif isinstance(reply, list):
        for each in reply:
            click.echo(f"    * {printable(str(each))}")
        if not reply:
            click.echo("    - empty -")
    elif isinstance(reply, Mapping):
        lines = list(_lines(reply))
        width = max((len(name) for name, _ in lines), default=0)
        for name, value in lines:
            click.echo(f"    {name.ljust(width)}  {value}".rstrip())
        if not lines:
            click.echo("    - empty -")
    else:
        _print_text(reply)


def _print_text(value: Any) -> None:
    for line in str(value).splitlines() or [""]:
        click.echo(f"    {printable(line, 2000)}".rstrip())


def _lines(reply: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in reply.items():
        name = printable(f"{prefix}{key}")
        if isinstance(value, Mapping) and value:
            found += _lines(value, f"{prefix}{key}.")
        else:
            found.append((name, printable(value if isinstance(value, str) else json.dumps(value))))
    return found


def _row(entry: Mapping[str, Any]) -> dict[str, str]:
    """One object as cells. Entries of `scheduled` hold the request inside."""
    inner = entry.get("request")
    flat: dict[str, Any] = {**(inner if isinstance(inner, Mapping) else {}), **entry}
    flat.pop("request", None)
    if isinstance(began := flat.get("time_start"), (int, float)):
        flat["running"] = f"{max(0.0, time.time() - began):.1f} s"
    shown = [name for name in _COLUMNS if flat.get(name) not in (None, "")] or [
        name for name in flat if name not in _NOT_SHOWN
    ]
    return {name: _cell(flat[name]) for name in shown}


def _cell(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value), WIDEST)


def _print_table(rows: Sequence[Mapping[str, str]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in columns}
    click.echo("    " + "  ".join(name.upper().ljust(widths[name]) for name in columns).rstrip())
    for row in rows:
        click.echo("    " + "  ".join(row.get(name, "").ljust(widths[name]) for name in columns).rstrip())
