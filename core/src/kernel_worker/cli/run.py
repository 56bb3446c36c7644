"""`kw run`: compose a worker and run it."""

from __future__ import annotations

import click

from kernel_worker.early import Early

from .composition import Composition, WorkerCommand


@click.command(
    cls=WorkerCommand,
    epilog="Each option can also be set by the environment (KW_CONCURRENCY=4; a plugin's with its name, "
    "KW_PREFORK_…) and by a settings file (kw.toml: [worker] concurrency = 4).",
)
@click.pass_obj
def run(composition: Composition) -> int:
    """Run a worker until it is told to stop."""
    assert composition.hooks is not None
    early: Early = click.get_current_context().find_root().obj
    prestarted = early.of(composition.config.worker.pool or "")

    from kernel_worker.worker import run as run_worker

    return run_worker(composition.config, composition.registry, composition.selection, composition.hooks, prestarted)
