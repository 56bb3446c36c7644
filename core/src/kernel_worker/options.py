"""Options as frozen dataclasses: one declaration gives the CLI flag, the environment variable,
the key in `kw.toml`, Celery's setting name, the help text and the documentation.

    @dataclass(frozen=True, slots=True)
    class PreforkOptions:
        max_tasks: int | None = option(None, "--max-tasks-per-child",
                                       celery="worker_max_tasks_per_child",
                                       help="Replace an executor after this many tasks.")
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_KEY = "kernel_worker.option"


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """How one field of an options dataclass is set from outside.

    :param flags: click's flags, e.g. ("-c", "--concurrency"); empty = not on the command line.
    :param env: environment variable; "" = derived: KW_<SECTION>_<FIELD> (KW_<FIELD> in the worker's section).
    :param celery: Celery's lowercase setting name this field obeys when the application sets it.
    :param parse: text (or the value found in a file) to the field's type; raises ValueError with a
        message for people. None = by the field's annotation.
    :param metavar: word for the value in `--help`.
    :param secret: values are URLs or passwords: wrapped in `Secret`, masked wherever printed.
    """

    flags: tuple[str, ...] = ()
    help: str = ""
    env: str = ""
    celery: str = ""
    parse: Callable[[Any], Any] | None = None
    metavar: str = ""
    secret: bool = False
    is_flag: bool = False
    choices: tuple[str, ...] = ()


def option(
    default: Any,
    *flags: str,
    help: str = "",
    env: str = "",
    celery: str = "",
    parse: Callable[[Any], Any] | None = None,
    metavar: str = "",
    secret: bool = False,
    is_flag: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare one field of an options dataclass; see `OptionSpec` for the arguments."""
    spec = OptionSpec(flags, help, env, celery, parse, metavar, secret, is_flag, choices)
    return dataclasses.field(default=default, metadata={_KEY: spec})


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a pool that has none."""


def option_fields(options: type) -> Iterator[tuple[dataclasses.Field[Any], OptionSpec]]:
    """The fields of an options dataclass with their specs, in the order of declaration."""
    for field in dataclasses.fields(options):
        yield field, field.metadata.get(_KEY, OptionSpec())


# ------------------------------------------------------------------ values found in text, files and applications
#
# Each takes what a source holds (text, or a typed value from a file or an application) and raises
# ValueError with words for people; the configuration adds section, field and source.

_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})
_FALSE = frozenset({"0", "false", "no", "off", "n", "f"})
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*")


def text(value: Any) -> str:
    """A piece of text; anything but a string is refused."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def boolean(value: Any) -> bool:
    """True or false: a bool, or one of 1/0, true/false, yes/no, on/off in any case."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError(f"{value!r} is neither true nor false")


def integer(value: Any) -> int:
    """A whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value.strip())
        except ValueError:
            pass
    raise ValueError(f"{value!r} is not a {'whole ' if _is_number(value) else ''}number")


def number(value: Any) -> float:
    """A finite number."""
    if _is_number(value) and abs(float(value)) < float("inf"):
        return float(value)
    raise ValueError(f"{value!r} is not a number")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return float(value) == float(value)
    except (TypeError, ValueError):
        return False


def at_least(least: int) -> Callable[[Any], int]:
    """A parser of whole numbers not below `least`."""

    def parse(value: Any) -> int:
        found = integer(value)
        if found < least:
            raise ValueError(f"{found} is too small: at least {least}")
        return found

    return parse


def duration(value: Any) -> float:
    """Seconds, 0 or more: a number, or text with a unit such as 500ms, 25s, 2m, 1h, 1d."""
    if isinstance(value, str):
        return _with_unit(value, _SECONDS, "a duration such as 30, 500ms, 2m or 1h")
    seconds = number(value)
    if seconds < 0:
        raise ValueError(f"{value!r} is below zero")
    return seconds


def byte_size(value: Any) -> int:
    """Bytes, at least 1: a whole number, or text with a unit such as 64k, 16M, 1G (powers of 1024)."""
    words = "a size such as 65536, 64k, 16M or 1G"
    found = int(_with_unit(value, _BYTES, words)) if isinstance(value, str) else integer(value)
    if found < 1:
        raise ValueError(f"{value!r} is not {words}")
    return found


def _with_unit(value: str, units: dict[str, Any], words: str) -> float:
    match = _NUMBER_AND_UNIT.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is not {words}")
    amount, unit = match.groups()
    factor = units.get(unit.lower()) or units.get(unit.lower().removesuffix("ib").removesuffix("b"))
    if factor is None:
        raise ValueError(f"{value!r} is not {words}")
    return float(amount) * float(factor)


def word_list(value: Any) -> tuple[str, ...]:
    """Names, in order and each once: text separated by commas, or a list of strings."""
    parts: Iterable[Any] = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{value!r} is not a list of names separated by commas")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
