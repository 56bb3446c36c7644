"""`kw report`: what somebody who is to help needs to know. Never a secret."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import click

from kernel_worker import __version__
from kernel_worker.config import DEFAULT, cpus_available
from kernel_worker.errors import KernelWorkerError

from .composition import Composition, Prepared, WorkerCommand


class ReportCommand(WorkerCommand):
    """Goes on without plugins when they cannot be loaded: that may be what the report is about."""

    def load(self, prepared: Prepared, pool: str | None, args: Sequence[str]) -> None:
        """As for `kw run`; a failure becomes a line of the report."""
        try:
            super().load(prepared, pool, args)
        except KernelWorkerError as error:
            prepared.problem = error.message


@click.command(cls=ReportCommand)
@click.pass_obj
def report(composition: Composition) -> None:
    """Print versions, plugins and changed settings; passwords are masked."""
    lines = [
        ("kw", __version__),
        ("python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("platform", platform.platform()),
        ("cpus", f"{cpus_available()} of {os.cpu_count()}"),
        *((name, _version(name)) for name in ("click", "pluggy", "stevedore")),
    ]
    if composition.problem:
        lines.append(("problem", composition.problem))
    if composition.hooks is not None:
        lines += composition.hooks.kw_report(composition.config)
    _section("", lines)
    entries = sorted(composition.selection, key=lambda entry: (entry.distribution, entry.kind, entry.name))
    _section("plugins", [(f"{entry.kind}:{entry.name}", f"{entry.distribution} {entry.version}") for entry in entries])
    changed = [row for row in composition.config.describe() if row[3] != DEFAULT]
    _section("settings", [(f"{section}.{name}", f"{value}  ({source})") for section, name, value, source in changed])


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # bundled without its metadata
        return "unknown"


def _section(title: str, lines: Sequence[tuple[str, str]]) -> None:
    if title:
        click.echo(f"\n{title}: {'' if lines else 'none'}".rstrip())
    width = max((len(label) for label, _ in lines), default=0)
    for label, text in lines:
        click.echo(f"  {label.ljust(width)}  {text}" if title else f"{label.ljust(width)}  {text}")
