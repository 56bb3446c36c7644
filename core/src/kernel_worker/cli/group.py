"""The commands of `kw`. Each is imported when it is used; plugins contribute further ones.

A user's mistake ends with one line that names it, one that mends it, and the error's exit code;
`KW_TRACEBACK=1` shows where it was raised.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from kernel_worker.early import Early
from kernel_worker.errors import KernelWorkerError, PluginError

_COMMANDS = {
    "run": ("kernel_worker.cli.run:run", "Run a worker."),
    "purge": ("kernel_worker.cli.queues:purge", "Delete the waiting messages of queues."),
    "queues": ("kernel_worker.cli.queues:queues", "Show queues: waiting, in flight, parked, dead."),
    "dead": ("kernel_worker.cli.dead:dead", "Show dead letters, put them back, delete them."),
    "plugins": ("kernel_worker.cli.plugins:plugins", "Show and check what is installed and selected."),
    "report": ("kernel_worker.cli.report:report", "Print versions and settings, for a bug report."),
}


class Kw(click.Group):
    """The group of all commands: the kernel's are known by name, those of plugins are asked for when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The kernel's commands only: others need plugins, see `format_commands`."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; plugins are loaded only for a name that the kernel does not know.

        :raises PluginError: an installed plugin, or the command itself, cannot be imported.
        """
        if cmd_name in _COMMANDS:
            return _import_command(_COMMANDS[cmd_name][0])
        for name, (target, _, plugin) in _plugin_commands().items():
            if name == cmd_name:
                try:
                    return _import_command(target)
                except Exception as error:  # a plugin's import may raise anything; the user is told which one it was
                    reason = f"{type(error).__name__}: {error}"
                    raise PluginError(f"command {name!r} of {plugin} cannot be imported: {reason}") from error
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, and an unknown command is told with the nearest one."""
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and name not in (known := _plugin_commands()):
            from kernel_worker.nearest import did_you_mean

            raise click.UsageError(f"no command named {name!r}{did_you_mean(name, [*_COMMANDS, *known])}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands without importing them. A broken plugin is named and does not hide the help."""
        rows = [(name, about) for name, (_, about) in _COMMANDS.items()]
        problem = ""
        try:
            rows += [(name, about) for name, (_, about, _) in _plugin_commands().items()]
        except KernelWorkerError as error:
            problem = error.message
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))
        if problem:
            formatter.write_paragraph()
            formatter.write_text(f"Not all commands are listed: {problem}")


def _import_command(target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, click.Command):
        raise TypeError(f"{target} is a {type(found).__name__}, not a click command")
    return found


def _plugin_commands() -> dict[str, tuple[str, str, str]]:
    """Target, help and plugin of the commands that installed plugins contribute, by name."""
    from kernel_worker.registry import Registry

    registry = Registry.discover()
    hooks = registry.load_plugins(registry.select(), builtin=False)
    found: dict[str, tuple[str, str, str]] = {}
    for command in hooks.kw_commands():
        plugin = hooks.contributor(command)
        other = "the kernel" if command.name in _COMMANDS else found.get(command.name, ("", "", ""))[2]
        if other:
            raise PluginError(f"plugin {plugin} brings a command {command.name!r}, which {other} has already")
        found[command.name] = (command.target, command.help, plugin)
    return found


def _show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from kernel_worker import __version__

        click.echo(f"kw {__version__}")
        ctx.exit()


@click.group(
    cls=Kw,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Print it.")
@click.pass_context
def kw(ctx: click.Context) -> int:
    """Run background tasks, and look after them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return 2
    return 0


def run_command(words: Sequence[str], early: Early) -> int:
    """Run one command line; its errors become messages.

    :param early: what was begun for `kw run`; its root context's object.
    :return: the exit code; see `kernel_worker.errors` for those of errors.
    """
    try:
        code: Any = kw.main(list(words), prog_name="kw", standalone_mode=False, obj=early)
        return code if isinstance(code, int) else 0
    except KernelWorkerError as error:
        if os.environ.get("KW_TRACEBACK") == "1":
            raise
        _complain(error.message, error.hint)
        return error.exit_code
    except click.ClickException as error:
        _complain(_words(error), _where_help_is(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("kw: stopped", err=True)
        interrupted = isinstance(error.__cause__ or error, KeyboardInterrupt)
        return 130 if interrupted else 1  # 1: the answer to a question was no
    except BrokenPipeError:  # whoever read our output has gone, as in `kw queues | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _complain(message: str, hint: str) -> None:
    click.echo(f"kw: {message}", err=True)
    if hint:
        click.echo(f"    {hint}", err=True)


def _words(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):  # click words it differently from version to version
        close = f". Did you mean {error.possibilities[0]}?" if error.possibilities else ""
        return f"no option {error.option_name}{close}"
    return error.format_message()


def _where_help_is(error: click.ClickException) -> str:
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return ""
    if isinstance(error, click.NoSuchOption) and error.ctx.parent is None:
        return f"options come after the command: kw run {error.option_name} …"
    return f"see {error.ctx.command_path} --help"
