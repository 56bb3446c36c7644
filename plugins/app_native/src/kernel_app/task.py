"""A task: a function with a name, that can be called here and sent to be run elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from .arguments import ArgumentCheck
from .context import CURRENT, Context, request_of
from .exceptions import Retry
from .sending import PublishOptions
from .signature import Signature

if TYPE_CHECKING:
    from typing import Generic, NoReturn, ParamSpec

    from typing_extensions import TypeVar, Unpack

    from .app import App
    from .results import AsyncResult, EagerResult

    P = ParamSpec("P")
    R = TypeVar("R")
    V = TypeVar("V", default=R)

    class _Typed(Generic[P, R, V]):
        pass
else:

    class _Typed:
        # `Task[...]` in an annotation costs no typing machinery, and takes any number of parameters.
        def __class_getitem__(cls, parameters):
            return cls


class FromSetting:
    """An attribute that is the application's setting unless the task says otherwise."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, task: Task[..., Any, Any] | None, owner: type) -> Any:
        app = None if task is None else task.__dict__.get("app")
        return None if app is None else app.conf[self._name]


def _setting(name: str) -> Any:
    return FromSetting(name)  # an instance's or a subclass's own value shadows it


class TaskOptions(TypedDict, total=False):
    """Options of `@app.task`, with Celery's names and meanings."""

    name: str | None
    base: type[Task[..., Any, Any]] | None
    typing: bool
    queue: str | None
    exchange: str | None
    routing_key: str | None
    acks_late: bool | None
    acks_on_failure: bool | None
    acks_on_timeout: bool | None
    acks_on_failure_or_timeout: bool | None
    reject_on_worker_lost: bool | None
    max_retries: int | None
    default_retry_delay: float
    autoretry_for: Sequence[type[BaseException]]
    dont_autoretry_for: Sequence[type[BaseException]]
    retry_kwargs: Mapping[str, Any]
    retry_backoff: bool | float
    retry_backoff_max: int
    retry_jitter: bool
    time_limit: float | None
    soft_time_limit: float | None
    ignore_result: bool | None
    store_errors_even_if_ignored: bool | None
    store_eager_result: bool | None
    track_started: bool | None
    rate_limit: str | float | None
    priority: int | None
    serializer: str | None
    compression: str | None
    delivery_mode: int | None
    expires: float | datetime | None
    throws: Sequence[type[BaseException]]
    trail: bool
    resultrepr_maxsize: int


class Task(_Typed["P", "R", "V"]):
    """A task of an application. Made by `@app.task`; subclass it for `base=` to add hooks or defaults.

    P are the function's parameters, R what calling it returns, V the result (for an `async def` task R is a
    coroutine of V). Attributes that are None follow the application's settings.
    """

    name: str
    app: App
    run: Callable[..., Any]
    """The function; with `bind=True` its first parameter is filled in."""

    typing: bool = True
    """Check the arguments where the task is called."""
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    max_retries: int | None = 3
    default_retry_delay: float = 180
    """Seconds."""
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_kwargs: Mapping[str, Any] = {}
    retry_backoff: bool | float = False
    retry_backoff_max: int = 600
    retry_jitter: bool = True
    throws: tuple[type[BaseException], ...] = ()
    """Errors that are no surprise: logged as INFO, without a traceback."""
    expires: float | datetime | None = None
    trail: bool = True
    resultrepr_maxsize: int = 1024
    acks_late: bool = _setting("task_acks_late")
    acks_on_failure: bool | None = _setting("task_acks_on_failure")
    acks_on_timeout: bool | None = _setting("task_acks_on_timeout")
    acks_on_failure_or_timeout: bool = _setting("task_acks_on_failure_or_timeout")
    reject_on_worker_lost: bool | None = _setting("task_reject_on_worker_lost")
    time_limit: float | None = _setting("task_time_limit")
    soft_time_limit: float | None = _setting("task_soft_time_limit")
    ignore_result: bool = _setting("task_ignore_result")
    store_errors_even_if_ignored: bool = _setting("task_store_errors_even_if_ignored")
    store_eager_result: bool = _setting("task_store_eager_result")
    track_started: bool = _setting("task_track_started")
    rate_limit: str | float | None = _setting("task_default_rate_limit")
    priority: int | None = _setting("task_default_priority")
    serializer: str | None = None
    compression: str | None = None
    delivery_mode: int | None = None

    _check: ArgumentCheck

    def bind(self, app: App, name: str, options: Mapping[str, Any]) -> None:
        """Make it a task of `app`. Called once, by the application.

        :raises TypeError: an option of unknown name.
        """
        for option, value in options.items():
            if not hasattr(type(self), option) or option.startswith("_") or option in _NO_OPTIONS:
                _refuse(option, name)
            if value is None and option != "max_retries":
                continue  # None follows the settings
            self.__dict__[option] = _classes(value) if option in _CLASSES else value
        self.name = name
        self.app = app
        if hasattr(type(self), "run"):
            self._check = ArgumentCheck(type(self).run, bound=True)

    def take(self, function: Callable[..., Any], bound: bool) -> None:
        """Run this function; with `bound`, with the task as its first argument."""
        self.run = partial(function, self) if bound else function
        self._check = ArgumentCheck(function, bound)
        for attribute in ("__doc__", "__name__", "__qualname__", "__module__"):
            self.__dict__[attribute] = getattr(function, attribute, None)
        self.__dict__["__wrapped__"] = function

    # -- calling

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here and now, like the function it was made from."""
        direct = Context({"args": args, "kwargs": kwargs}, CURRENT.get(), self)
        token = CURRENT.set(direct)
        try:
            value: R = self.run(*args, **kwargs)
            return value
        finally:
            CURRENT.reset(token)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[V]:
        """Send it. The short form of `apply_async`.

        :raises TypeError: the function could not be called with these arguments.
        :raises EncodeError: an argument cannot be serialized.
        :raises OperationalError: the broker cannot be reached.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[PublishOptions],
    ) -> AsyncResult[V]:
        """Send it, with options (see `PublishOptions`). Any thread.

        :raises TypeError: the function could not be called with these arguments, or an option of unknown name.
        :raises ValueError: soft_time_limit above time_limit.
        :raises EncodeError: an argument cannot be serialized.
        :raises OperationalError: the broker cannot be reached, after the retries of the publish policy.
        """
        args, kwargs = args or (), kwargs or {}
        if self.typing:
            self._check(args, kwargs)
        if options.get("shadow") is None and type(self).shadow_name is not Task.shadow_name:
            options["shadow"] = self.shadow_name(args, kwargs, dict(options))
        return self.app.publish(self.name, self, args, kwargs, options)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        throw: bool | None = None,
        **options: Any,
    ) -> EagerResult[V]:
        """Run it here and now as a worker would: with a request, retries and callbacks.

        :param throw: raise what the task raises; None means `task_eager_propagates`.
        """
        from .eager import apply

        return apply(self, args or (), kwargs or {}, throw, options)

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """The call as data: for `link`, `link_error`, or to be sent later."""
        return Signature(self.name, args, kwargs, app=self.app)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """As `s`, and it ignores what it is called with later."""
        return Signature(self.name, args, kwargs, immutable=True, app=self.app)

    def signature(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature:
        """The call as data, with publish options."""
        immutable = bool(options.pop("immutable", False))
        return Signature(self.name, args or (), kwargs, options, immutable=immutable, app=self.app)

    def AsyncResult(self, task_id: str) -> AsyncResult[V]:  # Celery's name
        """The result of a message sent earlier."""
        return self.app.AsyncResult(task_id)

    # -- while it runs

    @property
    def request(self) -> Context:
        """The request it runs for; outside of a worker one that says `called_directly`."""
        return request_of(self)

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Send the running task again, with the same id, and end this run by raising `Retry`.

        :param throw: False returns the `Retry` instead of raising it; the run then ends as it ends.
        :param countdown: seconds; with neither it nor `eta`, `default_retry_delay`.
        :param max_retries: overrides the task's limit for this time.
        :raises Retry: always in a worker, unless there is no try left.
        :raises BaseException: `exc` when there is no try left (MaxRetriesExceededError without one), or when the
            task was called directly.
        """
        from .retrying import retry

        made = retry(self, args, kwargs, exc, eta, countdown, max_retries, options)
        if throw:
            raise made
        return made

    def update_state(self, task_id: str | None = None, state: str | None = None, meta: Any = None) -> None:
        """Store a state of your own, e.g. progress, for those who look at the result. Writes at once.

        :raises OperationalError: the result backend cannot be reached.
        """
        request = self.request
        self.app.store_state(task_id or request.id, state or "PENDING", meta, request)

    def takes_failure(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether, as an errback with these arguments of its own, it is called where the task failed, with request,
        error and traceback before them; else it is sent, with the id."""
        return self._check.takes_failure(args, kwargs)

    # -- hooks for subclasses

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before each run."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called when it returned. What this raises is logged only."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when it failed; `einfo.traceback` is the traceback as text."""

    def on_retry(self, exc: BaseException | None, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when it is tried again."""

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called after success and failure."""

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str | None:
        """A name to show in place of the task's, chosen when it is sent."""

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"task {self.name!r} is not sent as a value; send its name")


def _classes(value: Any) -> tuple[type[BaseException], ...]:
    return (value,) if isinstance(value, type) else tuple(value)


_CLASSES = frozenset({"autoretry_for", "dont_autoretry_for", "throws"})
_NO_OPTIONS = frozenset(
    name for name, value in vars(Task).items() if (callable(value) or isinstance(value, property)) and name != "typing"
)


def _refuse(option: str, name: str) -> None:
    import difflib

    known = set(TaskOptions.__annotations__) | {"bind"}
    near = difflib.get_close_matches(option, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; a base= class may declare it as an attribute"
    raise TypeError(f"task {name!r}: there is no option {option!r}{hint}")
