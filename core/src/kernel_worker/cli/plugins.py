"""`kw plugins`: what is installed and selected, whether it can be imported, in which order it boots."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click

from kernel_worker.errors import KernelWorkerError, UsageError
from kernel_worker.registry import Entry
from kernel_worker.steps import order

from .composition import Composition, Prepared, WorkerCommand
from .table import print_table

_WITH_PLUGINS = "--steps"


class PluginsCommand(WorkerCommand):
    """Loads plugins only to show the boot steps: the list has to work while a plugin is broken."""

    only = ("app", "broker", "result_backend", "pool", "plugins", "workdir")

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """`kw plugins new …` is a command of its own."""
        if args[:1] == ["new"]:
            from .new_plugin import new_plugin

            return new_plugin.make_context(f"{info_name} new", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def load(self, prepared: Prepared, pool: str | None, args: Sequence[str]) -> None:
        """As for `kw run`, when `--steps` asks for it."""
        if _WITH_PLUGINS in args:
            super().load(prepared, pool, args)


@click.command(cls=PluginsCommand)
@click.option(_WITH_PLUGINS, "steps", is_flag=True, help="Print the boot steps in the order they start.")
@click.option("--check", is_flag=True, help="Import everything selected; exit 1 when something fails.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def plugins(composition: Composition, steps: bool, check: bool, as_json: bool) -> int:
    """Show the installed plugins: kind, name, distribution, and what would be selected.

    `kw plugins new KIND NAME` starts one of your own.
    """
    if steps:
        _show_steps(composition, as_json)
        return 0
    rows = [_row(composition, entry) for kind in composition.registry.entries.values() for entry in kind.values()]
    failures = _failures(composition) if check else {}
    for row in rows:
        if check and row["selected"] != "no":
            row["check"] = "failed" if (row["kind"], row["name"]) in failures else "ok"
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        columns = ["kind", "name", "distribution", "version", "selected", *(["check"] if check else [])]
        print_table([column.upper() for column in columns], ([row.get(c, "") for c in columns] for row in rows))
    else:
        click.echo("no plugins are installed: pip install kernel-worker")
    for message in failures.values():
        click.echo(f"kw: {message}", err=True)
    return 1 if failures else 0


def _row(composition: Composition, entry: Entry) -> dict[str, str]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "target": entry.target,
        "selected": _selected(composition, entry),
    }


def _selected(composition: Composition, entry: Entry) -> str:
    if entry.name not in composition.selection.of(entry.kind):
        return "no"
    if entry.kind != "pools":
        return "yes"
    try:
        chosen = composition.registry.choose_pool(composition.selection, composition.config.worker.pool)
    except UsageError:  # `kw run` would refuse: none of them is chosen
        return "available"
    return "yes" if chosen == entry.name else "available"


def _failures(composition: Composition) -> dict[tuple[str, str], str]:
    found = {}
    for entry in composition.selection:
        try:
            composition.registry.check(entry)
        except KernelWorkerError as error:
            found[entry.kind, entry.name] = error.message
    if not found:
        try:
            composition.registry.load_plugins(composition.selection)
        except KernelWorkerError as error:  # misspelt hooks show only when all are together
            found["plugins", ""] = error.message
    return found


def _show_steps(composition: Composition, as_json: bool) -> None:
    assert composition.hooks is not None
    steps, owners = composition.hooks.boot_steps(composition.config)
    rows: Iterable[tuple[str, str, str]] = [
        (step.name, owners[step.name], ", ".join(step.requires)) for step in order(steps, owners)
    ]
    if as_json:
        click.echo(json.dumps([dict(zip(("name", "plugin", "requires"), row, strict=True)) for row in rows]))
    else:
        click.echo(f"pool {composition.config.worker.pool}; steps in the order they start:")
        print_table(("STEP", "FROM", "REQUIRES"), rows)
