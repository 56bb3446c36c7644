"""The plugin `control`: its option, its boot step, and its sub-commands. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernel_worker import Command, hookimpl, option

if TYPE_CHECKING:
    from kernel_worker import Bootstep, Config

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
def kw_commands() -> list[Command]:
    """The commands; their module is imported when one is used."""
    return [
        Command("inspect", "kernel_control.cli:inspect", "Ask running workers."),
        Command("control", "kernel_control.cli:control", "Tell running workers to do something."),
        Command("status", "kernel_control.cli:status", "List the workers that answer."),
    ]
