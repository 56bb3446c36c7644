"""`kw run`: compose a worker and run it."""

from __future__ import annotations

import click

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
    pool = composition.registry.load_pool(composition.selection, composition.config.worker.pool or "")
    prestarted = pool.prestart()  # its interpreter starts while this process imports the worker

    from kernel_worker.worker import run as run_worker

    return run_worker(composition.config, composition.registry, composition.selection, composition.hooks, prestarted)
