"""`kw queues`, `kw purge`: look after queues without a worker."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from .brokers import opened
from .composition import Composition, SettingsCommand
from .table import print_table


@click.command(cls=SettingsCommand)
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def queues(composition: Composition, as_json: bool) -> None:
    """Show how many messages wait, run, are parked until their time, and are dead."""
    with opened(composition) as (broker, names):
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
    with opened(composition) as (broker, names):
        if not force:
            counts = [broker.size(name) for name in names]
            what = ", ".join(f"{info.name} ({info.waiting + info.parked})" for info in counts)
            click.confirm(f"Delete all waiting messages of {what}?", abort=True)
        for name in names:
            count = broker.purge(name)
            click.echo(f"{name}: {count} message{'' if count == 1 else 's'} deleted")
