"""`kw events`: watch what workers and tasks do; a live table, one line per event, or JSON lines."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from kernel_worker import Secret, worker_settings
from kernel_worker.errors import BrokerUnavailable, UsageError

from .defaults import EXCHANGE
from .inlets import Inlet, Received, open_inlet
from .picture import Picture

DEFAULT_BROKER = "sqlite:///kw.db"
REFRESH_S = 1.0
RETRY_S = 1.0
TASK_ROWS = 15
CLEAR = "\x1b[H\x1b[J"
_DETAILS = ("name", "args", "kwargs", "result", "exception", "runtime", "eta", "queue", "active", "processed", "freq")
_WORDS = {"worker-online": "started", "worker-offline": "shutdown", "worker-heartbeat": "heartbeat"}


@click.command()
@click.option("-b", "--broker", "url", metavar="URL", help="The broker [KW_BROKER, settings file, sqlite:///kw.db].")
@click.option("-d", "--dump", is_flag=True, help="Print one line per event.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print each event as JSON, one per line.")
@click.option("--exchange", default=EXCHANGE, show_default=True, help="The exchange of events (event_exchange).")
@click.option("--seconds", type=float, metavar="SECONDS", help="Stop after this long.")
def events(url: str | None, dump: bool, as_json: bool, exchange: str, seconds: float | None) -> None:
    """Watch what workers and tasks do, until Ctrl-C.

    Workers tell of tasks when they were started with -E, or after `kw control enable_events`.
    """
    if not url:
        named = worker_settings().get("worker", "broker")
        url = named.reveal() if named is not None else DEFAULT_BROKER
    try:
        inlet = open_inlet(url, {}, exchange)
    except ValueError as error:
        raise UsageError(f"--broker {Secret(url)}: {error}") from None
    if inlet is None:
        raise UsageError(f"no events on {Secret(url)}: they go over Redis, AMQP and SQLite")
    try:
        inlet.connect()
    except ConnectionError as error:
        raise BrokerUnavailable(str(error)) from None
    deadline = time.monotonic() + seconds if seconds else float("inf")
    is_table = not (dump or as_json)
    try:
        if is_table and sys.stdout.isatty():
            _watch(inlet, deadline)
        else:
            _print_each(inlet, deadline, as_json)
    except KeyboardInterrupt:
        pass
    finally:
        inlet.close()


def _received(inlet: Inlet, deadline: float) -> Iterator[Received]:
    """What comes, at least every second; over losses of the connection."""
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            yield inlet.receive(min(REFRESH_S, left_s))
        except ConnectionError as error:
            click.echo(f"kw: {error}; trying again", err=True)
            while (left_s := deadline - time.monotonic()) > 0:
                time.sleep(min(RETRY_S, left_s))
                try:
                    inlet.connect()
                    break
                except ConnectionError:
                    continue


def _print_each(inlet: Inlet, deadline: float, as_json: bool) -> None:
    for received in _received(inlet, deadline):
        for event in received:
            click.echo(json.dumps(event) if as_json else line_of(event))
        sys.stdout.flush()


def line_of(event: Mapping[str, Any]) -> str:
    """One event on one line, fit for a terminal."""
    kind = str(event.get("type"))
    what = _WORDS.get(kind, kind.removeprefix("task-"))
    details = " ".join(f"{key}={_plain(event[key])}" for key in _DETAILS if event.get(key) is not None)
    who = _plain(event.get("uuid") or "")
    return " ".join(
        part for part in (_clock_time(event), _plain(event.get("hostname")), _plain(what), who, details) if part
    )


def _clock_time(event: Mapping[str, Any]) -> str:
    at = event.get("timestamp")
    try:
        return datetime.fromtimestamp(at).isoformat(sep=" ", timespec="milliseconds")  # type: ignore[arg-type]  # noqa: DTZ006 (for the person here)
    except (TypeError, ValueError, OverflowError, OSError):
        return "-"


def _watch(inlet: Inlet, deadline: float) -> None:
    picture = Picture()
    shown_at = 0.0
    for received in _received(inlet, deadline):
        now = time.time()
        for event in received:
            picture.add(event, now)
        if time.monotonic() - shown_at >= REFRESH_S or not shown_at:
            shown_at = time.monotonic()
            click.echo(CLEAR + "\n".join(lines_of(picture, now, shutil.get_terminal_size().columns)))


def lines_of(picture: Picture, now: float, width: int) -> list[str]:
    """The table, not wider than the terminal."""
    lines = [f"{'WORKER':<28} {'STATE':<8} {'ACTIVE':>6} {'DONE':>9} {'LOAD':>6}"]
    for name, worker in sorted(picture.workers.items()):
        load = worker.facts.get("loadavg")
        first = load[0] if isinstance(load, list) and load else ""
        state = "online" if worker.is_online(now) else "offline"
        lines.append(
            f"{_plain(name, 28):<28} {state:<8} {_plain(worker.facts.get('active', '')):>6} "
            f"{_plain(worker.facts.get('processed', '')):>9} {_plain(first):>6}"
        )
    lines += ["", f"{'TASK':<36} {'STATE':<9} {'WORKER':<20} NAME"]
    for task in list(picture.tasks.values())[: -TASK_ROWS - 1 : -1]:
        more = task.facts.get("result") or task.facts.get("exception") or ""
        lines.append(
            f"{_plain(task.id, 36):<36} {_plain(task.state, 9):<9} {_plain(task.worker, 20):<20} "
            f"{_plain(task.facts.get('name') or '?')} {_plain(more)}"
        )
    lines += ["", " ".join(f"{_plain(kind)}: {count}" for kind, count in sorted(picture.counts.items()))]
    return [line[:width] for line in lines]


def _plain(value: Any, limit: int = 100) -> str:
    """Text of unknown origin on one line, without control characters, and cut: a terminal obeys escape sequences."""
    flat = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
