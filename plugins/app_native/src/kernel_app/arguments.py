"""Check a task's arguments where it is called, so that a wrong call fails there and not in a worker.

Works on the code object: a call costs half a microsecond. `inspect` is imported only to word an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_VARARGS, _VARKEYWORDS = 0x04, 0x08  # co_flags, see inspect.CO_VARARGS and CO_VARKEYWORDS


class ArgumentCheck:
    """Knows which calls a function accepts.

    :param bound: the first parameter is the task itself and is not given by the caller.
    """

    __slots__ = ("_accepts_any", "_bound", "_function", "_keyword_only", "_names", "_positional_only", "_required")

    def __init__(self, function: Callable[..., Any], bound: bool) -> None:
        self._function = function
        self._bound = bound
        self._names: tuple[str, ...] = ()
        code = getattr(function, "__code__", None)
        if hasattr(function, "__self__"):  # a method: its own first parameter is given already
            code = None
        self._accepts_any = code is None or bool(code.co_flags & (_VARARGS | _VARKEYWORDS))
        if code is None:
            return
        skip = 1 if bound and code.co_argcount else 0
        self._names = code.co_varnames[skip : code.co_argcount]
        self._positional_only = max(0, code.co_posonlyargcount - skip)
        self._required = len(self._names) - min(len(self._names), len(getattr(function, "__defaults__", None) or ()))
        self._keyword_only = bool(code.co_kwonlyargcount)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """:raises TypeError: the function could not be called so."""
        if not (self._accepts_any or self._keyword_only):
            given = len(args)
            if not kwargs:
                if self._required <= given <= len(self._names):
                    return
            elif given <= len(self._names):
                names = self._names
                allowed = names[max(given, self._positional_only) :]
                if all(name in allowed for name in kwargs) and all(
                    name in kwargs for name in names[given : self._required]
                ):
                    return
        self._bind(args, kwargs)

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        import inspect

        try:
            signature = inspect.signature(self._function)
        except (TypeError, ValueError):  # a builtin that tells nothing about itself: the call will show
            return
        own = (None,) if self._bound else ()
        try:
            signature.bind(*own, *args, **kwargs)
        except TypeError as error:
            name = getattr(self._function, "__name__", "task")
            raise TypeError(f"{name}() {error}") from None

    def takes_failure(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether, as an errback with these arguments of its own, it is called with request, error and traceback.

        Celery 5.7's rule: more than one positional argument is left to be given. A bound one is always sent as a
        task, with the id: it may want to retry.
        """
        code = getattr(self._function, "__code__", None)
        if code is None or self._bound:
            return False
        left = [name for name in self._names[len(args) :] if name not in kwargs]
        return len(left) > 1 or bool(code.co_flags & _VARARGS)
