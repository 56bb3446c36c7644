"""The application: settings, tasks, sending and results in one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .context import running
from .meta import MetaCodec, address
from .results import AsyncResult
from .running import Coroutines
from .sending import Sender
from .settings import Settings
from .signals import after_task_publish
from .signature import Signature
from .task import Task
from .transport import Connections

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

    from typing_extensions import Unpack

    from .announcing import Announcer
    from .answering import AppCommand
    from .context import Context
    from .control import Control
    from .sending import PublishOptions
    from .task import TaskOptions

    P = ParamSpec("P")
    R = TypeVar("R")
    V = TypeVar("V")

    class _Decorator(Protocol):
        @overload
        def __call__(self, function: Callable[P, Coroutine[Any, Any, V]], /) -> Task[P, Coroutine[Any, Any, V], V]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> Task[P, R, R]: ...

    class _BoundDecorator(Protocol):
        @overload
        def __call__(
            self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, V]], /
        ) -> Task[P, Coroutine[Any, Any, V], V]: ...
        @overload
        def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R, R]: ...


class App:
    """An application that defines tasks, sends them, and reads their results. Needs no worker.

        app = App("shop", broker_url="redis://localhost", result_backend="redis://localhost")

        @app.task
        def add(x: int, y: int) -> int:
            return x + y

        add.delay(2, 3).get(timeout=10)

    Without URLs, broker and results are the file `kw.db` in the working directory. May be used from any thread and
    after a fork; opens nothing before the first message.

    :param name: stands for the module of tasks defined in `__main__`.
    :param settings: Celery's lowercase names; `result_backend=None` means no results.
    :raises ConfigError: an unknown setting.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        self.name = name
        self.conf = Settings(settings)
        self.tasks: dict[str, Task[..., Any, Any]] = {}
        self.commands: dict[str, AppCommand] = {}
        self.connections = Connections(self.conf)
        self.coroutines = Coroutines()
        self._sender = Sender(self.conf)
        self._codec: tuple[int, MetaCodec] | None = None
        self._announcer: Announcer | None = None

    # -- defining tasks

    if TYPE_CHECKING:

        @overload
        def task(self, function: Callable[P, Coroutine[Any, Any, V]], /) -> Task[P, Coroutine[Any, Any, V], V]: ...
        @overload
        def task(self, function: Callable[P, R], /) -> Task[P, R, R]: ...
        @overload
        def task(self, *, bind: Literal[True], **options: Unpack[TaskOptions]) -> _BoundDecorator: ...
        @overload
        def task(self, *, bind: Literal[False] = False, **options: Unpack[TaskOptions]) -> _Decorator: ...

    def task(self, *functions: Any, **options: Any) -> Any:
        """Make a task of a function: `@app.task` or `@app.task(option=...)` (see `TaskOptions`).

        :param bind: the function's first parameter is the task itself, for `self.request` and `self.retry`.
        :raises TypeError: an option of unknown name.
        """
        bind = bool(options.pop("bind", False))
        if not functions:
            return lambda decorated: self._define(decorated, bind, options)
        if len(functions) != 1 or not callable(functions[0]):
            raise TypeError("@app.task takes options by name: @app.task(name=...)")
        return self._define(functions[0], bind, options)

    def _define(self, function: Callable[..., Any], bind: bool, options: Mapping[str, Any]) -> Task[..., Any, Any]:
        given = dict(options)
        name = given.pop("name", None) or self._name(function)
        base: type[Task[..., Any, Any]] = given.pop("base", None) or Task
        known = self.tasks.get(name)
        if known is not None:
            _warn_of_duplicate(name, known, function)
            return known
        task = base()
        task.bind(self, name, given)
        task.take(function, bind)
        return self._register(task)

    def register_task(self, task: Task[..., Any, Any] | type[Task[..., Any, Any]]) -> Task[..., Any, Any]:
        """Register a task written as a subclass of `Task` with a `run` method."""
        made = task() if isinstance(task, type) else task
        if not hasattr(type(made), "run"):
            raise TypeError(f"{type(made).__name__} has no run method")
        name = getattr(made, "name", None) or self._name(type(made))
        known = self.tasks.get(name)
        if known is not None:
            _warn_of_duplicate(name, known, type(made))
            return known
        made.bind(self, name, {})
        return self._register(made)

    def _register(self, task: Task[..., Any, Any]) -> Task[..., Any, Any]:
        self._annotate(task)
        self.tasks[task.name] = task
        self._sender.forget_plans()
        return task

    def _name(self, function: Any) -> str:
        module = function.__module__
        return f"{self.name if module == '__main__' else module}.{function.__name__}"

    def _annotate(self, task: Task[..., Any, Any]) -> None:
        given = self.conf.task_annotations
        for entry in given if isinstance(given, (list, tuple)) else (given or {},):
            for name in ("*", task.name):
                for attribute, value in (entry.get(name) or {}).items():
                    setattr(task, attribute, value)

    def control_command(
        self,
        name: str = "",
        *,
        permission: Literal["read", "operate", "destroy"] = "read",
        args: Mapping[str, type] | None = None,
        variadic: str = "",
        help: str = "",
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make a remote-control command of a function: `kw inspect <name>` calls it in a running worker.

        It runs in one executor process, on a thread of its own beside the tasks, and has a second to answer with JSON.

        :param name: default: the function's.
        :param args: name to type (str, int, float, bool, list, dict, or object for any).
        :param variadic: the argument that takes all further words of a command line.
        :raises ValueError: the name is taken or no name, or the permission is none.
        """
        from .answering import AppCommand

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            command = AppCommand.of(function, name, permission, args or {}, variadic, help)
            if self.commands.setdefault(command.name, command) is not command:
                raise ValueError(f"there is a command {command.name!r} already")
            return function

        return decorate

    # -- sending

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[PublishOptions],
    ) -> AsyncResult[Any]:
        """Send a task by its name; it need not be known here. Options as for `Task.apply_async`.

        :raises TypeError: an option of unknown name.
        :raises EncodeError: an argument cannot be serialized.
        :raises OperationalError: the broker cannot be reached.
        """
        return self.publish(name, self.tasks.get(name), args or (), kwargs or {}, options)

    def publish(
        self,
        name: str,
        task: Task[..., Any, Any] | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> AsyncResult[Any]:
        """What `send_task` and `Task.apply_async` share."""
        if task is not None and self.conf.task_always_eager:
            from .eager import apply_as_sent

            return apply_as_sent(task, args, kwargs, options)
        message = self._sender.message(name, task, args, kwargs, options)
        self.connections.publish((message,), options.get("retry"), options.get("retry_policy"))
        if self.conf.task_send_sent_event:
            if self._announcer is None:
                from .announcing import Announcer

                self._announcer = Announcer(self.connections, self.conf)
            self._announcer.sent(name, message)
        if after_task_publish.receivers:
            after_task_publish.send(
                name,
                body=(args, kwargs),
                exchange=message.exchange,
                routing_key=message.routing_key,
                headers=message.headers,
            )
        result: AsyncResult[Any] = AsyncResult(message.properties["correlation_id"], self)
        result.ignored = bool(message.headers.get("ignore_result"))
        parent = running()
        if parent is not None and options.get("add_to_parent", True) and parent._owner.trail:
            parent.children.append(result)
        return result

    def signature(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
    ) -> Signature:
        """A call as data, of a task that need not be known here."""
        return Signature(name, args or (), kwargs, options, immutable=immutable, app=self)

    # -- results

    def AsyncResult(self, task_id: str) -> AsyncResult[Any]:  # Celery's name
        """The result of a task by its id."""
        return AsyncResult(task_id, self)

    @property
    def codec(self) -> MetaCodec:
        """Writes and reads stored results as the settings say."""
        version = self.conf.version
        if self._codec is None or self._codec[0] != version:
            self._codec = (version, MetaCodec(self.conf))
        return self._codec[1]

    def store_state(self, task_id: str, state: str, result: Any, request: Context | None = None) -> None:
        """Store a state at once; nothing happens when the application has no result backend.

        :raises OperationalError: the result backend cannot be reached.
        """
        if not self.connections.has_results:
            return
        children = None if request is None else [child.as_tuple() for child in request.children]
        stored = self.codec.other(task_id, state, result, children=children)
        if request is not None:
            address(stored, request.properties or {})
        self.connections.call_results(lambda backend: backend.store([stored]))

    # -- the rest

    @property
    def control(self) -> Control:
        """Remote control of running workers; see `kernel_app.control`."""
        from .control import Control

        return Control(self)

    @property
    def current_task(self) -> Task[..., Any, Any] | None:
        """The task that runs here and now, or None."""
        context = running()
        return None if context is None else context._owner

    def close(self) -> None:
        """Close the connections and event loops; they are opened again when needed."""
        self.connections.close()
        self.coroutines.close()

    def __repr__(self) -> str:
        return f"<App {self.name!r}>"


def _warn_of_duplicate(name: str, known: Task[..., Any, Any], other: Any) -> None:
    first = getattr(known, "__wrapped__", type(known))
    if (first.__module__, first.__qualname__) == (other.__module__, other.__qualname__):
        return  # the same function, imported once more
    import warnings

    warnings.warn(
        f"task name {name!r} is taken by {first.__module__}.{first.__qualname__}; "
        f"{other.__module__}.{other.__qualname__} is not registered. Give it another name=",
        stacklevel=4,
    )
