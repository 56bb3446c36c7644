"""`kw queues`, `kw purge`, `kw dead`: look at the broker without a worker.

The broker is the one a worker would use: `-b`, environment, file, else the application's (asked in a
short-lived process, so that no user code runs here), else the default.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from kernel_worker.config import WORKER, Config, Secret
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.types import AppInfo, QueueSpec

from .composition import Composition, SettingsCommand
from .table import print_table

DEFAULT_QUEUE = "celery"

_as_json = click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")


@contextmanager
def _opened(composition: Composition) -> Iterator[tuple[Broker, list[str]]]:
    """The broker, connected, and the queues to look at.

    :raises BrokerUnavailable: it cannot be reached.
    """
    config, info = _with_application(composition)
    queues = _queues(config, info)
    driver = composition.registry.load_broker(composition.selection, url := _url(config))
    options: Mapping[str, Any] = (info.settings.get("broker_transport_options") if info else None) or {}
    broker = driver(
        BrokerContext(
            url.reveal(), f"kw-cli.{os.getpid()}", queues=queues, lease_s=config.worker.lease, options=options
        )
    )
    try:
        broker.connect()
        yield broker, [queue.name for queue in queues]
    finally:
        broker.close()


def _with_application(composition: Composition) -> tuple[Config, AppInfo | None]:
    config = composition.config
    if config.worker.app is None:
        return config, None
    from kernel_worker.worker import inspect_app

    info = inspect_app(config, composition.selection, composition.registry)
    return config.with_settings(info.settings), info


def _url(config: Config) -> Secret:
    if config.worker.broker is not None:
        return config.worker.broker
    from kernel_worker.worker import DEFAULT_URL

    return DEFAULT_URL


def _queues(config: Config, info: AppInfo | None) -> tuple[QueueSpec, ...]:
    known = {queue.name: queue for queue in info.queues} if info else {}
    if config.explicit(WORKER, "queues"):
        return tuple(known.get(name) or QueueSpec(name) for name in config.worker.queue_names)
    return tuple(known.values()) or (QueueSpec(info.default_queue if info else DEFAULT_QUEUE),)


@click.command(cls=SettingsCommand)
@_as_json
@click.pass_obj
def queues(composition: Composition, as_json: bool) -> None:
    """Show how many messages wait, run, are parked until their time, and are dead."""
    with _opened(composition) as (broker, names):
        found = [broker.size(name) for name in names]
    if as_json:
        click.echo(json.dumps([asdict(info) for info in found]))
        return
    print_table(
        ("QUEUE", "WAITING", "IN FLIGHT", "PARKED", "DEAD"),
        ((info.name, info.waiting, info.in_flight, info.parked, info.dead) for info in found),
    )


@click.command(cls=SettingsCommand)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_obj
def purge(composition: Composition, force: bool) -> None:
    """Delete the waiting and parked messages of queues; what runs and dead letters stay."""
    with _opened(composition) as (broker, names):
        if not force:
            counts = [broker.size(name) for name in names]
            what = ", ".join(f"{info.name} ({info.waiting + info.parked})" for info in counts)
            click.confirm(f"Delete all waiting messages of {what}?", abort=True)
        for name in names:
            count = broker.purge(name)
            click.echo(f"{name}: {count} message{'' if count == 1 else 's'} deleted")


@click.group(invoke_without_command=True)
@click.pass_context
def dead(ctx: click.Context) -> int:
    """Show dead letters: messages that will not be run again, with the reason."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return 2
    return 0


@dead.command("ls", cls=SettingsCommand)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many of a queue.")
@_as_json
@click.pass_obj
def dead_ls(composition: Composition, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first."""
    with _opened(composition) as (broker, names):
        letters = [letter for name in names for letter in broker.dead_letters(name, limit)]
    rows: Sequence[tuple[str, str, str, str, int, str, str]] = [
        (each.id, each.queue, *_task_of(each.raw), each.attempts, _local_time(each.died_at), each.reason)
        for each in letters
    ]
    if as_json:
        keys = ("id", "queue", "task", "task_id", "attempts", "died_at", "reason")
        click.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
    elif rows:
        print_table(("ID", "QUEUE", "TASK", "TASK ID", "ATTEMPTS", "DIED", "REASON"), rows)
    else:
        click.echo(f"no dead letters in {', '.join(names)}")


def _task_of(raw: bytes) -> tuple[str, str]:
    """Task name and id of a dead letter, as far as its headers can be read; "" where they cannot."""
    try:
        headers = json.loads(raw)["headers"]
        return _text(headers.get("task")), _text(headers.get("id"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "", ""


def _text(header: object) -> str:
    return header[:255] if isinstance(header, str) else ""


def _local_time(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(unix))
