"""`kw call` and `kw result`: send a task and read a result from the command line, with or without the application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from .app import App
from .exceptions import ConfigError, DecodeError, KernelAppError, OperationalError, TimeoutError
from .importing import import_named
from .meta import exception_from_meta
from .representation import describe_error, printable, safe_repr
from .serialization import from_json, to_json
from .states import EXCEPTION_STATES, PROPAGATE_STATES, READY_STATES
from .worker import NativeLoader

EX_UNAVAILABLE = 69
"""Exit code of sysexits.h: broker or result backend cannot be reached."""


class Unavailable(click.ClickException):
    """A server cannot be reached."""

    exit_code = EX_UNAVAILABLE


_app_option = click.option("-A", "--app", "spec", metavar="MODULE[:ATTR]", envvar="KW_APP", help="The application.")
_broker_option = click.option(
    "-b", "--broker", metavar="URL", envvar="KW_BROKER", help="Broker, in place of the application's."
)
_results_option = click.option(
    "--result-backend", metavar="URL", envvar="KW_RESULT_BACKEND", help="Results, in place of the application's."
)


@click.command()
@click.argument("name")
@click.option("-a", "--args", "args", metavar="JSON", default="[]", help="Positional arguments, e.g. '[2, 3]'.")
@click.option("-k", "--kwargs", "kwargs", metavar="JSON", default="{}", help="Keyword arguments, e.g. '{\"x\": 2}'.")
@click.option("--eta", metavar="ISO", help="Not before this time, e.g. 2030-01-02T03:04:05+00:00.")
@click.option("--countdown", type=float, metavar="SECONDS", help="Not before so many seconds from now.")
@click.option("--expires", metavar="SECONDS|ISO", help="Not after so many seconds from now, or this time.")
@click.option("--queue", help="The queue to send to.")
@click.option("--serializer", help="json (default), yaml, msgpack …")
@_app_option
@_broker_option
def call(
    name: str,
    args: str,
    kwargs: str,
    eta: str | None,
    countdown: float | None,
    expires: str | None,
    queue: str | None,
    serializer: str | None,
    spec: str | None,
    broker: str | None,
) -> None:
    """Send the task NAME and print its id."""
    positional = _json(args, "--args", list, "a JSON list, e.g. '[2, 3]'")
    keywords = _json(kwargs, "--kwargs", dict, "a JSON object, e.g. '{\"x\": 2}'")
    app = _application(spec, {"broker_url": broker})
    options = {"eta": eta, "countdown": countdown, "expires": _expires(expires), "queue": queue}
    given: dict[str, Any] = {**options, "serializer": serializer}
    given = {key: value for key, value in given.items() if value is not None}
    sent = _told(lambda: app.send_task(name, positional, keywords, **given))
    click.echo(sent.id)
    app.close()


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("--timeout", type=float, metavar="SECONDS", help="Wait so long for the result; default: do not wait.")
@click.option("--traceback", "wants_traceback", is_flag=True, help="Print the traceback of a failure.")
@_app_option
@_results_option
@click.pass_context
def result(
    context: click.Context,
    task_id: str,
    timeout: float | None,
    wants_traceback: bool,
    spec: str | None,
    result_backend: str | None,
) -> None:
    """Print the result of the task with this ID as JSON.

    Exit code 0 when it succeeded, 1 when it failed or is not ready.
    """
    app = _application(spec, {"result_backend": result_backend})
    asked = app.AsyncResult(task_id)
    if timeout is not None:
        try:
            _told(lambda: asked.get(timeout, propagate=False))
        except TimeoutError as error:
            click.echo(f"kw: {printable(str(error))}", err=True)
            context.exit(1)
    meta = _told(asked.read)
    app.close()
    state, value = meta["status"], meta.get("result")
    if state in EXCEPTION_STATES and isinstance(value, Mapping):
        click.echo(f"{printable(state)}: {describe_error(exception_from_meta(value), 2000)}", err=True)
    elif state in READY_STATES:
        click.echo(_as_json(value))
    else:
        click.echo(f"{printable(state)}: not ready" + ("" if value is None else f": {_as_json(value)}"), err=True)
    if wants_traceback and meta.get("traceback"):
        click.echo("\n".join(printable(line, 2000) for line in str(meta["traceback"]).splitlines()))
    context.exit(0 if state in READY_STATES and state not in PROPAGATE_STATES else 1)


def _as_json(value: Any) -> str:
    try:
        return to_json(value)
    except KernelAppError:
        return printable(safe_repr(value), 10_000)


def _json(text: str, option: str, kind: type, wanted: str) -> Any:
    try:
        value = from_json(text)
    except DecodeError as error:
        raise click.UsageError(f"{option} must be {wanted}: {error}") from error
    if not isinstance(value, kind):
        raise click.UsageError(f"{option} must be {wanted}, not {type(value).__name__}")
    return value


def _expires(text: str | None) -> float | str | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _told(action: Callable[[], Any]) -> Any:
    """Do it; what goes wrong is told in one line."""
    try:
        return action()
    except OperationalError as error:
        raise Unavailable(str(error)) from error
    except TimeoutError:
        raise
    except (KernelAppError, ValueError, TypeError, LookupError) as error:
        raise click.UsageError(str(error)) from error


def _application(spec: str | None, overrides: Mapping[str, Any]) -> App:
    given = {name: value for name, value in overrides.items() if value}
    if spec is None:
        return App("kw", **given)
    try:
        target = import_named(spec)
    except Exception as error:  # the user's module may raise anything
        raise click.UsageError(f"-A {spec}: {describe_error(error)}") from error
    app = NativeLoader().accepts(target)
    if not isinstance(app, App):
        raise click.UsageError(f"-A {spec}: there is no kernel_app.App in it; name it with -A module:attribute")
    try:
        app.conf.update(given)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    return app
