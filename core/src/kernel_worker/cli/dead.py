"""`kw dead`: look at dead letters, put them back, delete them. Works on every broker that keeps them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from kernel_worker.drivers import Broker
from kernel_worker.errors import KernelWorkerError, UsageError
from kernel_worker.types import BrokerCapability, DeadLetter

from .brokers import opened
from .composition import Composition, SettingsCommand
from .table import print_table, printable

WIDEST_VALUE = 1000

_as_json = click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
_ids = click.argument("ids", nargs=-1, metavar="[ID]...")


@click.group(invoke_without_command=True)
@click.pass_context
def dead(ctx: click.Context) -> int:
    """Look after dead letters: messages that will not be run again, with the reason."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return 2
    return 0


@contextmanager
def _graveyard(composition: Composition) -> Iterator[tuple[Broker, list[str]]]:
    """The broker and the queues to look at.

    :raises UsageError: the broker keeps no dead letters.
    """
    with opened(composition) as (broker, names):
        if BrokerCapability.DEAD_LETTER not in broker.capabilities:
            scheme = broker.context.url.partition(":")[0]
            raise UsageError(
                f"the broker {scheme!r} keeps no dead letters", hint="see `kw plugins` for what a broker can do"
            )
        yield broker, names


# ---------------------------------------------------------------------- looking


@dead.command("ls", cls=SettingsCommand)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many of a queue.")
@_as_json
@click.pass_obj
def dead_ls(composition: Composition, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first."""
    with _graveyard(composition) as (broker, names):
        letters = [letter for name in names for letter in broker.dead_letters(name, limit)]
    rows: Sequence[tuple[str, str, str, str, int, str, str]] = [
        (each.id, each.queue, *_task_of(each), each.attempts, _local_time(each.died_at), each.reason)
        for each in letters
    ]
    if as_json:
        keys = ("id", "queue", "task", "task_id", "attempts", "died_at", "reason")
        click.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
    elif rows:
        print_table(("ID", "QUEUE", "TASK", "TASK ID", "ATTEMPTS", "DIED", "REASON"), rows)
    else:
        click.echo(f"no dead letters in {', '.join(names)}")


@dead.command("show", cls=SettingsCommand)
@click.argument("id")
@click.option("--raw", is_flag=True, help="Write the message as it came, byte for byte (AMQP: its body).")
@_as_json
@click.pass_obj
def dead_show(composition: Composition, id: str, raw: bool, as_json: bool) -> None:
    """Show one dead letter: why and when it died, its headers and properties."""
    if raw and as_json:
        raise UsageError("--raw and --json do not go together")
    with _graveyard(composition) as (broker, names):
        letter = next(filter(None, (broker.dead_letter(name, id) for name in names)), None)
    if letter is None:
        raise _unknown([id], names)
    if raw:
        sys.stdout.buffer.write(letter.raw if letter.payload is None else letter.payload)
        sys.stdout.buffer.flush()
    elif as_json:
        click.echo(json.dumps(_described(letter)))
    else:
        _print_letter(_described(letter))


def _described(letter: DeadLetter) -> dict[str, Any]:
    """What there is to say of a letter, JSON-able; empty where its envelope cannot be read."""
    task, task_id = _task_of(letter)
    envelope = _envelope(letter)
    return {
        "id": letter.id,
        "queue": letter.queue,
        "reason": letter.reason,
        "died_at": _local_time(letter.died_at),
        "attempts": letter.attempts,
        "bytes": len(letter.raw) + len(letter.payload or b""),
        "task": task,
        "task_id": task_id,
        "content_type": envelope.get("content-type"),
        "content_encoding": envelope.get("content-encoding"),
        "headers": _mapping(envelope.get("headers")),
        "properties": _mapping(envelope.get("properties")),
    }


def _print_letter(described: Mapping[str, Any]) -> None:
    for key, value in described.items():
        if not isinstance(value, dict):
            _print_value(key, value)
    for title in ("headers", "properties"):
        if described[title]:
            click.echo(f"{title}:")
        for key, value in described[title].items():
            _print_value(f"  {printable(key)}", value)


def _print_value(key: str, value: object) -> None:
    if value not in (None, ""):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(f"{key}: {printable(text, WIDEST_VALUE)}")


# ---------------------------------------------------------------------- changing


@dead.command("replay", cls=SettingsCommand)
@_ids
@click.option("--all", "everything", is_flag=True, help="All dead letters of the queues.")
@click.pass_obj
def dead_replay(composition: Composition, ids: Sequence[str], everything: bool) -> None:
    """Put dead letters back at the end of their queue, as they came; their attempts are forgotten."""
    _refuse_unclear(ids, everything)
    with _graveyard(composition) as (broker, names):
        _each(names, broker, ids, broker.replay_dead, "put back")


@dead.command("drop", cls=SettingsCommand)
@_ids
@click.option("--all", "everything", is_flag=True, help="All dead letters of the queues.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def dead_drop(composition: Composition, ids: Sequence[str], everything: bool, yes: bool) -> None:
    """Delete dead letters for good."""
    _refuse_unclear(ids, everything)
    with _graveyard(composition) as (broker, names):
        if not yes:
            what = f"{len(ids)} dead letter{'' if len(ids) == 1 else 's'}"
            if everything:
                what = "all dead letters of " + ", ".join(f"{name} ({broker.size(name).dead})" for name in names)
            click.confirm(f"Delete {what}?", abort=True)
        _each(names, broker, ids, broker.drop_dead, "deleted")


def _refuse_unclear(ids: Sequence[str], everything: bool) -> None:
    if bool(ids) == everything:
        raise UsageError("name dead letters by their id, or say --all", hint="`kw dead ls` shows the ids")


def _each(
    names: Sequence[str],
    broker: Broker,
    ids: Sequence[str],
    act: Callable[[str, Sequence[str] | None], int],
    done: str,
) -> None:
    """Act on the letters with these ids, or on all; say how many of each queue.

    :raises KernelWorkerError: some were not found; the others are done.
    """
    missing = list(dict.fromkeys(ids))
    for name in names:
        here = [each for each in missing if broker.dead_letter(name, each) is not None]
        count = act(name, here) if here else act(name, None) if not ids else 0
        missing = [each for each in missing if each not in here]
        if count or not ids:
            click.echo(f"{name}: {count} dead letter{'' if count == 1 else 's'} {done}")
    if missing:
        raise _unknown(missing, names)


def _unknown(ids: Sequence[str], names: Sequence[str]) -> KernelWorkerError:
    shown = ", ".join(repr(printable(each)) for each in ids)
    return KernelWorkerError(
        f"no dead letter {shown} in {', '.join(names)}", hint="`kw dead ls -Q QUEUE` shows the ids"
    )


# ---------------------------------------------------------------------- reading


def _envelope(letter: DeadLetter) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(letter.raw))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _task_of(letter: DeadLetter) -> tuple[str, str]:
    """Task name and id of a dead letter, as far as its headers can be read; "" where they cannot."""
    headers = _mapping(_envelope(letter).get("headers"))
    return _text(headers.get("task")), _text(headers.get("id"))


def _text(header: object) -> str:
    return header[:255] if isinstance(header, str) else ""


def _local_time(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(unix))
