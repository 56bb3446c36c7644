"""`kw inspect`, `kw control` and `kw status`: ask and command running workers, `kw`'s and Celery's.

Exit codes: 0 all answered well, 1 somebody answered with an error, 3 somebody did not answer, 69 nobody did or the broker
cannot be reached, 2 a mistake on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from kernel_app import App
from kernel_app.control import Answers, merged
from kernel_app.exceptions import ConfigError, OperationalError
from kernel_app.importing import import_named
from kernel_worker import worker_settings

from .catalogue import Catalogue, Described
from .showing import print_json, print_replies, printable

EX_ERROR, EX_SOME, EX_NONE = 1, 3, 69


class Unavailable(click.ClickException):
    """The broker cannot be reached."""

    exit_code = EX_NONE


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "-t", "--timeout", type=float, default=1.0, metavar="SECONDS", help="Wait so long for each reply [1.0]."
        ),
        click.option("-d", "--destination", metavar="A,B", help="Only these nodes; who of them is silent is named."),
        click.option(
            "-b", "--broker", metavar="URL", envvar="KW_BROKER", help="Broker, in place of the application's."
        ),
        click.option("-A", "--app", "spec", metavar="MODULE[:ATTR]", envvar="KW_APP", help="The application, or none."),
    ):
        function = option(function)
    return function


class CommandWithList(click.Command):
    """Its help ends with the remote-control commands that are installed."""

    is_reading = True

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, with their arguments."""
        catalogue = Catalogue.installed()
        with formatter.section("Commands"):
            formatter.write_dl([(each.usage, each.help) for each in catalogue.of_kind(self.is_reading)])
        for problem in catalogue.problems:
            formatter.write_text(problem)


class ControlWithList(CommandWithList):
    """Those that change something."""

    is_reading = False


@click.command(cls=CommandWithList)
@_options
@click.option("--list", "wants_list", is_flag=True, help="List the commands.")
@click.argument("name", required=False, metavar="COMMAND")
@click.argument("words", nargs=-1, metavar="[ARGUMENT | NAME=VALUE]...")
def inspect(name: str | None, words: tuple[str, ...], wants_list: bool, **options: Any) -> int:
    """Ask running workers."""
    return _run(True, name, words, wants_list, **options)


@click.command(cls=ControlWithList)
@_options
@click.option("--list", "wants_list", is_flag=True, help="List the commands.")
@click.argument("name", required=False, metavar="COMMAND")
@click.argument("words", nargs=-1, metavar="[ARGUMENT | NAME=VALUE]...")
def control(name: str | None, words: tuple[str, ...], wants_list: bool, **options: Any) -> int:
    """Tell running workers to do something."""
    return _run(False, name, words, wants_list, **options)


@click.command()
@_options
def status(spec: str | None, broker: str | None, destination: str | None, timeout: float, as_json: bool) -> int:
    """List the workers that answer."""
    app = application(spec, broker)
    answers = _ask(app, "ping", {}, destination, timeout)
    replies = merged(answers.replies)
    if as_json:
        print_json({"nodes": sorted(replies), "silent": answers.silent})
    else:
        for node in sorted(replies):
            click.echo(f"{printable(node)}: OK")
    return _conclude(answers, "online", quiet=as_json)


def _run(
    is_reading: bool,
    name: str | None,
    words: Sequence[str],
    wants_list: bool,
    spec: str | None,
    broker: str | None,
    destination: str | None,
    timeout: float,
    as_json: bool,
) -> int:
    catalogue = Catalogue.installed()
    if wants_list or name is None:
        for each in catalogue.of_kind(is_reading):
            click.echo(f"{each.usage:<48} {each.help}".rstrip())
        for problem in catalogue.problems:
            click.echo(f"kw: {problem}", err=True)
        if not wants_list:
            raise click.UsageError("say which command")
        return 0
    app = application(spec, broker)
    command = catalogue.find(name) or _asked(app, name, destination, timeout, catalogue)
    if command.is_reading != is_reading:
        raise click.UsageError(
            f"{name} {'changes nothing: kw inspect' if command.is_reading else 'changes something: kw control'} {name}"
        )
    arguments = command.read_arguments(words)
    answers = _ask(app, name, arguments, destination, timeout, wants_reply=command.name != "shutdown")
    replies = merged(answers.replies)
    if command.name == "shutdown":
        click.echo("sent; workers do not answer to this")
        return 0
    if as_json:
        print_json(replies)
    else:
        print_replies(replies)
    return _conclude(answers, "answered", quiet=as_json)


def _asked(app: App, name: str, destination: str | None, timeout: float, catalogue: Catalogue) -> Described:
    """A command that is not installed here: a worker may have it, in its application or a plugin of its own."""
    answers = _ask(app, "commands", {}, destination, timeout)
    for reply in answers.replies:
        for described in reply.values():
            if isinstance(described, Mapping) and isinstance(found := described.get(name), Mapping):
                return Described.from_reply(name, found)
    raise click.UsageError(catalogue.unknown(name))


def _ask(
    app: App,
    command: str,
    arguments: Mapping[str, Any],
    destination: str | None,
    timeout: float,
    wants_reply: bool = True,
) -> Answers:
    nodes = [node.strip() for node in destination.split(",") if node.strip()] if destination else None
    try:
        return app.control.ask(command, arguments, nodes, timeout=timeout, wants_reply=wants_reply, is_brief=True)
    except (OperationalError, ConfigError) as error:
        raise Unavailable(str(error)) from error


def _conclude(answers: Answers, word: str, quiet: bool) -> int:
    """Who was silent, on stderr; the exit code."""
    nodes = {node for reply in answers.replies for node in reply}
    expected = max(len(nodes) + len(answers.silent), answers.heard or 0)
    if not nodes:
        who = f": {', '.join(map(printable, answers.silent))}" if answers.silent else ""
        click.echo(f"kw: no worker answered in time{who}", err=True)
        return EX_NONE
    if not quiet:
        click.echo(
            f"\n{len(nodes)} of {expected} nodes {word}."
            if expected > len(nodes)
            else f"\n{len(nodes)} node{'s' * (len(nodes) > 1)} {word}."
        )
    if expected > len(nodes):
        names = ", ".join(map(printable, answers.silent)) or "their names are not known: another timeout (-t) may help"
        click.echo(f"kw: {expected - len(nodes)} did not answer: {names}", err=True)
        return EX_SOME
    is_error = any(
        isinstance(value, dict) and "error" in value for reply in answers.replies for value in reply.values()
    )
    return EX_ERROR if is_error else 0


def application(spec: str | None, broker: str | None) -> App:
    """An application that knows the broker: that of `-A`, of either library, or one made for `-b`. What the command line
    and the environment leave out is looked up in the settings file.

    :raises click.UsageError: it cannot be imported.
    :raises ConfigError: the settings file is damaged.
    """
    settings: dict[str, Any] = {}
    if not (spec and broker):
        configured = worker_settings()
        spec = spec or configured.get("worker", "app")
        if not broker and (named := configured.get("worker", "broker")) is not None:
            broker = named.reveal()
    if spec is not None:
        conf = _settings_of(spec)
        for name in (
            "broker_url",
            "broker_read_url",
            "broker_write_url",
            "broker_transport_options",
            "control_exchange",
        ):
            if (value := conf.get(name)) is not None:
                settings[name] = value
    if broker:
        settings["broker_url"] = broker
        settings.pop("broker_write_url", None)
    try:
        return App("kw", **settings)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _settings_of(spec: str) -> Mapping[str, Any]:
    try:
        target = import_named(spec)
    except Exception as error:  # the user's module may raise anything
        raise click.UsageError(f"-A {spec}: {type(error).__name__}: {printable(str(error))}") from error
    for found in (target, getattr(target, "app", None), getattr(target, "celery", None), *vars(target).values()):
        conf = getattr(found, "conf", None)
        if isinstance(conf, Mapping):
            return conf
    raise click.UsageError(f"-A {spec}: there is no application in it; name it as module:attribute")
