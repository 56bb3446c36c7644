"""Load the application that HELLO names, and say what is in it or why that fails.

Runs on the main thread of an executor, or of a pool's fork server.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from dataclasses import asdict
from typing import Any

from .drivers import AppLoader, LoadContext, LoadedApp
from .wire import Frame, pack_json


def import_string(text: str) -> Any:
    """The object that "module:attribute" names.

    :raises ImportError: the module or the attribute does not exist.
    """
    module, _, attribute = text.partition(":")
    value: Any = importlib.import_module(module)
    for part in attribute.split(".") if attribute else ():
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise ImportError(f"module {module!r} has no attribute {attribute!r}") from error
    return value


class LoadError(Exception):
    """The application cannot be loaded; the text is for the user, `details` the traceback."""

    def __init__(self, text: str, kind: str, details: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.details = details


def load_app(hello: dict[str, Any]) -> LoadedApp:
    """Import the application that HELLO names and let the first loader that knows it make it ready.

    Main thread of the executor (prefork: of the fork server).

    :raises LoadError: not found (kind "usage"), not an application ("usage"), or failed itself ("import").
    """
    directory = hello.get("workdir") or os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    spec: str = hello["app"]
    target = _import_target(spec)
    context = LoadContext(**hello["context"])
    loaders = [import_string(loader)() for loader in hello["loaders"]]
    for loader in loaders:
        app = loader.accepts(target)
        if app is not None:
            return _load(loader, app, context, spec)
    kinds = ", ".join(loader.name for loader in loaders) or "none"
    usual = type(getattr(target, "app", getattr(target, "celery", target)))
    raise LoadError(
        f"-A {spec}: there is no application in it, or more than one (found: {usual.__module__}.{usual.__qualname__}; "
        f"kinds of application known here: {kinds}); name it as module:attribute",
        "usage",
    )


def _load(loader: AppLoader, app: object, context: LoadContext, spec: str) -> LoadedApp:
    try:
        return loader.load(app, context)
    except Exception as error:  # the user's code or settings: told with its place
        raise LoadError(f"-A {spec}: {_describe(error)}", "import", traceback.format_exc()) from error


def _import_target(spec: str) -> Any:
    module, _, attribute = spec.partition(":")
    try:
        value = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise LoadError(
                f"-A {spec}: no module named {error.name!r} (looked in {os.getcwd()} and sys.path)", "usage"
            ) from error
        raise LoadError(f"-A {spec}: {_describe(error)}", "import", traceback.format_exc()) from error
    except BaseException as error:  # the user's module may raise anything, SystemExit too
        raise LoadError(f"-A {spec}: {_describe(error)}", "import", traceback.format_exc()) from error
    for part in attribute.split(".") if attribute else ():
        if not hasattr(value, part):
            raise LoadError(f"-A {spec}: module {module!r} has no attribute {attribute!r}", "usage")
        value = getattr(value, part)
    return value


def _describe(error: BaseException) -> str:
    """One line: what was raised, and where in the user's files."""
    place = ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
    else:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if "importlib" not in frame.filename and frame.filename != __file__:
                place = f" ({frame.filename}:{frame.lineno})"
                break
    return f"{type(error).__name__}: {str(error)[:500]}{place}"


def loaded_frame(app: LoadedApp) -> bytes:
    """The LOADED frame: `AppInfo` as JSON."""
    return pack_json(Frame.LOADED, asdict(app.info))


def failed_frame(error: BaseException) -> bytes:
    """The FAILED frame, for the kernel to show."""
    if isinstance(error, LoadError):
        return pack_json(Frame.FAILED, {"text": str(error), "kind": error.kind, "details": error.details})
    details = "".join(traceback.format_exception(error))
    return pack_json(Frame.FAILED, {"text": _describe(error), "kind": "internal", "details": details})
