"""The plugin `control`: its option, its boot steps, and its sub-commands. Light to import."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernel_worker import Command, KernelWorkerError, hookimpl, option

if TYPE_CHECKING:
    from kernel_worker import Bootstep, Config
    from kernel_worker.worker import Worker

kw_api = 1

OFF = "off"
PERMISSIONS = ("read", "operate", "destroy", OFF)


@dataclass(frozen=True, slots=True)
class ControlOptions:
    """Section `control`."""

    permission: str | None = option(
        None,
        "--control",
        choices=PERMISSIONS,
        metavar="|".join(PERMISSIONS),
        help="Up to which permission remote-control commands are obeyed [destroy: all].",
    )


@hookimpl
def kw_options() -> type:
    """The options of this plugin."""
    return ControlOptions


@hookimpl
def kw_control_step(config: Config) -> Bootstep | None:
    """The listener, unless remote control is off."""
    options: ControlOptions = config.section("control")
    if options.permission == OFF:
        return None
    from .step import ControlStep

    return ControlStep(options.permission)


@hookimpl
def kw_bootsteps(config: Config) -> list[Bootstep]:
    """The step that imports the commands, unless remote control is off."""
    if config.section("control").permission == OFF:
        return []
    from .step import CommandsStep

    return [CommandsStep()]


@hookimpl
def kw_worker_starting(worker: Worker) -> None:
    """Import the commands while another process imports the application: the step `commands` finds them done."""
    if worker.config.section("control").permission != OFF:
        worker.loop.post(_import_ahead, worker)


def _import_ahead(worker: Worker) -> None:
    with contextlib.suppress(KernelWorkerError):  # the step meets it again, and tells
        worker.registry.control_commands(worker.selection)


@hookimpl(trylast=True)
def kw_worker_ready(worker: Worker) -> None:
    """The worker says that it is ready when it can be commanded: a ping right after that line is answered."""
    step = worker.sequence.apis.get("control")
    if step is not None:
        step.wait(worker)


@hookimpl
def kw_commands() -> list[Command]:
    """The commands; their module is imported when one is used."""
    return [
        Command("inspect", "kernel_control.cli:inspect", "Ask running workers."),
        Command("control", "kernel_control.cli:control", "Tell running workers to do something."),
        Command("status", "kernel_control.cli:status", "List the workers that answer."),
    ]
