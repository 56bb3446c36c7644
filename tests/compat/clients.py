"""What clients do: functions that run in a process of their own, on an application that knows only names.

Imports nothing of ours, so that Celery's client is a stock one. Each function takes the application first, of either kind: the two libraries are called in the same words. What they return is
plain data, so that the test's process needs neither.
"""

from __future__ import annotations

import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

WAIT_S = 20.0


def serve(connection: Connection, kind: str, url: str) -> None:
    """Main of a client's process: run the functions it is sent, until the connection ends."""
    applications: dict[str, Any] = {}
    while True:
        try:
            function, settings, args, kwargs = connection.recv()
        except EOFError:
            return
        try:
            key = repr(settings)
            app = applications.get(key) or applications.setdefault(key, _application(kind, url, settings))
            connection.send((True, function(app, *args, **kwargs)))
        except Exception:  # whatever it is, the test shall show it
            connection.send((False, traceback.format_exc()))


def _application(kind: str, url: str, settings: Mapping[str, Any]) -> Any:
    if kind == "kw":
        from kernel_app import App

        return App("client", broker_url=url, result_backend=url, **settings)
    import celery

    app = celery.Celery("client", broker=url, backend=url, set_as_current=False)
    app.conf.update(settings)
    return app


class Answer(NamedTuple):
    """What became of a call, as the client's own `AsyncResult` tells it."""

    state: str
    value: Any
    """What the task returned."""
    error: str
    """Module and name of the class that `get` raised; "" if it returned."""
    args: tuple[Any, ...]
    """Arguments of that exception."""
    traceback: str | None
    id: str


class Painted:
    """Knows how to become JSON."""

    def __json__(self) -> Any:
        return {"colour": "red"}


def call(
    app: Any, task: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
) -> Answer:
    """Send and wait."""
    return answer(app.send_task(task, args, kwargs, **options))


def send(app: Any, task: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> str:
    """Send, and return the id."""
    return str(app.send_task(task, args, kwargs, **options).id)


def send_object(app: Any, **options: Any) -> str:
    """Send what nobody can write."""
    return send(app, "compat.mirror", (object(),), **options)


def send_many(app: Any, task: str, calls: Sequence[Sequence[Any]], **options: Any) -> list[str]:
    """Send one after the other; the ids."""
    return [send(app, task, args, **options) for args in calls]


def wait(app: Any, task_id: str, within_s: float = WAIT_S) -> Answer:
    """Wait for a task sent earlier."""
    return answer(app.AsyncResult(task_id), within_s)


def wait_many(app: Any, task_ids: Sequence[str]) -> list[Answer]:
    """Wait for several."""
    return [wait(app, task_id) for task_id in task_ids]


def answer(result: Any, within_s: float = WAIT_S) -> Answer:
    """Wait for a result and describe it."""
    try:
        value = result.get(timeout=within_s)
    except Exception as error:
        if result.state not in ("FAILURE", "REVOKED"):
            raise  # no result in time
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        return Answer(result.state, None, name, error.args, result.traceback, result.id)
    return Answer(result.state, value, "", (), result.traceback, result.id)


def states(app: Any, task: str, args: Sequence[Any], **options: Any) -> list[tuple[str, str]]:
    """The states a task goes through, each with what the result says meanwhile, seen by asking again and again."""
    result = app.send_task(task, args, **options)
    seen: list[tuple[str, str]] = []
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        again = app.AsyncResult(result.id)
        state, info = again.state, again.info
        entry = (state, type(info).__name__ if isinstance(info, Exception) else repr(info))
        if entry not in seen and again.state == state:
            seen.append(entry)
        if state in ("SUCCESS", "FAILURE", "REVOKED"):
            return seen
        time.sleep(0.005)
    return seen


def look(app: Any, task_id: str, *names: str) -> list[Any]:
    """Attributes of a result."""
    result = app.AsyncResult(task_id)
    return [getattr(result, name) for name in names]


def children(app: Any, task_id: str) -> list[Answer]:
    """What became of the tasks that a task sent."""
    return [answer(child) for child in app.AsyncResult(task_id).children]


def forget(app: Any, task_id: str) -> str:
    """Delete a result; the state afterwards."""
    app.AsyncResult(task_id).forget()
    return str(app.AsyncResult(task_id).state)


def refusal(app: Any, function: Callable[..., Any], *args: Any, **options: Any) -> tuple[str, str]:
    """Class and text of what another function of this module raises."""
    try:
        function(app, *args, **options)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def linked(
    app: Any, task: str, args: Sequence[Any], link: str, link_args: Sequence[Any], *, kind: str = "link", **more: Any
) -> tuple[Answer, str]:
    """Call a task with one link (or `kind="link_error"`); the answer, and the link's id."""
    link_id = str(uuid.uuid4())
    options = {"task_id": link_id}
    signature = app.signature(link, args=list(link_args), options=options, immutable=more.pop("immutable", False))
    return answer(app.send_task(task, args, **{kind: signature}, **more)), link_id


def call_with_chain(
    app: Any,
    task: str,
    args: Sequence[Any],
    rest: Sequence[Sequence[Any]],
    ids: Sequence[str],
    queue: str,
) -> None:
    """Send a task and, in its message, what follows; with these ids, in the order in which they run."""
    steps = [
        app.signature(name, args=own, options={"task_id": task_id, "queue": queue})
        for (name, *own), task_id in zip(rest, ids[1:], strict=True)
    ]
    app.send_task(task, args, task_id=ids[0], queue=queue, chain=steps[::-1])


def through_topic(app: Any, exchange: str, keys: Sequence[str], task: str, calls: Sequence[Sequence[Any]]) -> list[str]:
    """Send to a topic exchange that only the worker has bound queues to."""
    if type(app).__module__.startswith("kernel_app"):
        options: dict[str, Any] = {"exchange": exchange, "exchange_type": "topic"}
    else:  # a Celery client that has not declared an exchange takes it for a direct one
        from kombu import Exchange

        topic = Exchange(exchange, type="topic")
        options = {"exchange": topic, "declare": [topic]}
    return [send(app, task, args, routing_key=key, **options) for key, args in zip(keys, calls, strict=True)]


# --------------------------------------------------------------------------- what only Celery's client has


def _signature(app: Any, step: Sequence[Any], queue: str) -> Any:
    """("add", 1, 2) as a signature; the first name "si add" makes it immutable."""
    name, *args = step
    immutable = name.startswith("si ")
    task = f"compat.{name.removeprefix('si ')}"
    return app.signature(task, args=args, immutable=immutable).set(queue=queue)


def chain(
    app: Any, steps: Sequence[Sequence[Any]], queue: str, stamps: Mapping[str, Any] | None = None
) -> list[Answer]:
    """Run a chain; the answers of its steps from first to last."""
    from celery import chain as make_chain

    made = make_chain(*(_signature(app, step, queue) for step in steps), app=app)
    if stamps:
        made.stamp(**stamps)
    result = made.apply_async()
    found = []
    while result is not None:
        found.append(result)
        result = result.parent
    return [answer(app.AsyncResult(each.id)) for each in reversed(found)]


def expired_chain(app: Any, queue: str) -> Any:
    """The result of a chain whose first step has expired."""
    from celery import chain as make_chain

    first = _signature(app, ("add", 1), queue).set(expires=-1)
    return make_chain(first, _signature(app, ("add", 2), queue), app=app).apply_async().get(timeout=WAIT_S)


def chain_with_group(app: Any, first: Sequence[Any], members: Sequence[Sequence[Any]], queue: str) -> list[Answer]:
    """A chain whose last step is a group; the answers of its members."""
    from celery import chain as make_chain
    from celery import group as make_group

    made = make_group((_signature(app, member, queue) for member in members), app=app)
    result = make_chain(_signature(app, first, queue), made, app=app).apply_async()
    return [answer(member) for member in result.results]


def group(app: Any, members: Sequence[Sequence[Any]], queue: str) -> tuple[list[Any], int]:
    """Run a group; what `GroupResult.get` gives, and how many it counts as completed."""
    from celery import group as make_group

    result = make_group((_signature(app, member, queue) for member in members), app=app).apply_async()
    values = result.get(timeout=WAIT_S)
    return values, result.completed_count()


def chord(app: Any, members: Sequence[Sequence[Any]], body: Sequence[Any], queue: str) -> Answer:
    """Run a chord; the answer of its body."""
    from celery import chord as make_chord

    header = [_signature(app, member, queue) for member in members]
    return answer(make_chord(header, app=app)(_signature(app, body, queue)))


def chain_with_chord(
    app: Any, steps: Sequence[Sequence[Any]], queue: str, *, wait_for_members: bool = True
) -> tuple[Answer, list[Answer]]:
    """A chain that has a chord in it: steps, a group of two, a task; the answers of that task and of the group."""
    from celery import chain as make_chain
    from celery import group as make_group

    members = make_group((_signature(app, ("add", n), queue) for n in range(2)), app=app)
    first = (_signature(app, step, queue) for step in steps)
    result = make_chain(*first, members, _signature(app, ("total",), queue), app=app).apply_async()
    last = answer(app.AsyncResult(result.id))
    waited = result.parent.results if wait_for_members else ()
    return last, [answer(app.AsyncResult(member.id)) for member in waited]


def chunks(app: Any, queue: str) -> Answer:
    """`task.chunks`, of which Celery makes `celery.starmap`; the answer of the first chunk."""
    from celery.canvas import xstarmap

    made = xstarmap(app.signature("compat.add"), [(1, 2), (3, 4)], app=app)
    return answer(made.apply_async(queue=queue))


def loaded(app: Any) -> list[str]:
    """Our packages in this process."""
    return sorted({name.partition(".")[0] for name in sys.modules if name.startswith("kernel_")})


def command(app: Any, name: str, arguments: Mapping[str, Any], nodes: Sequence[str], timeout: float = 5.0) -> Any:
    """What each of the nodes answers to a remote-control command: {node: reply}."""
    found: dict[str, Any] = {}
    replies = app.control.broadcast(
        name, arguments=dict(arguments), destination=list(nodes), reply=True, timeout=timeout
    )
    for reply in replies:
        found.update(reply)
    return found


def question(app: Any, name: str, args: Sequence[Any], node: str) -> Any:
    """What a method of `app.control.inspect` gives."""
    return getattr(app.control.inspect([node], timeout=5.0), name)(*args)


def order(app: Any, name: str, args: Sequence[Any], node: str) -> Any:
    """What a method of `app.control` gives."""
    return getattr(app.control, name)(*args, destination=[node], reply=True, timeout=5.0)


def command_line(app: Any, *words: str) -> tuple[int, str]:
    """Exit code and output of Celery's own command line, run in this process: one of its own takes a second each time."""
    from celery.bin.celery import celery as program
    from click.testing import CliRunner

    done = CliRunner().invoke(program, words, prog_name="celery", auto_envvar_prefix="CELERY", catch_exceptions=False)
    return done.exit_code, done.output


def commands_of_celery(app: Any) -> dict[str, set[str]]:
    """Names of all commands that Celery's command line offers, by "inspect" and "control"."""
    from celery.worker.control import Panel

    found: dict[str, set[str]] = {"inspect": set(), "control": set()}
    for name, about in Panel.meta.items():
        if about.visible:
            found[about.type].add(name)
    return found
