"""Text made from values nobody vouches for: bounded reprs, and lines that are safe to print.

Hot: `bounded_repr` runs twice per message sent.
"""

from __future__ import annotations

from typing import Any

REPR_CHARS = 1024
"""Longest argsrepr and kwargsrepr of a message (wire-protocol §2)."""

_PLAIN = frozenset({int, float, bool, type(None)})
_FEW, _SHORT_TEXT, _BIG_INT = 6, 128, 1 << 200
"""Six members of at most 128 characters (their escapes quadruple it at worst) are text enough for the builtin repr."""
_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}


def bounded_repr(value: Any, limit: int = REPR_CHARS, depth: int = 3) -> str:
    """The repr of a container, at most about `limit` characters; containers nested deeper than `depth` are `[...]`.

    Never raises, whatever the `__repr__` of a member does, and never makes a large text to cut it afterwards
    (except where a foreign `__repr__` does so).
    """
    if _is_small(value):
        return repr(value)
    parts: list[str] = []
    _write(value, parts, limit, depth)
    return "".join(parts)


def _is_small(value: Any) -> bool:
    """Whether the builtin repr is safe and short: few plain members."""
    kind = type(value)
    if kind is dict:
        return not value or (len(value) <= _FEW and _is_small(tuple(value)) and _is_small(tuple(value.values())))
    if (kind is not tuple and kind is not list) or len(value) > _FEW:
        return False
    for member in value:
        kind = type(member)
        if kind in _PLAIN:
            if kind is int and not -_BIG_INT < member < _BIG_INT:
                return False
        elif kind is not str or len(member) > _SHORT_TEXT:
            return False
    return True


def _write(value: Any, parts: list[str], room: int, depth: int) -> int:
    """Append the repr of `value`; returns the room that is left."""
    kind = type(value)
    if kind is str or kind is bytes:
        text = repr(value) if len(value) <= room else repr(value[: max(room, 0)])[:-1] + "..." + "'"
    elif kind is int and value.bit_length() > 4 * REPR_CHARS:
        text = f"<int of {value.bit_length()} bits>"  # its decimal text costs quadratic time
    elif kind in _BRACKETS or kind is dict:
        return _write_container(value, parts, room, depth)
    else:
        text = safe_repr(value)
        if len(text) > room:
            text = text[: max(room, 0)] + "..."
    parts.append(text)
    return room - len(text)


def _write_container(value: Any, parts: list[str], room: int, depth: int) -> int:
    is_dict = type(value) is dict
    opening, closing = ("{", "}") if is_dict else _BRACKETS[type(value)]
    if depth <= 0 and value:
        parts.append(f"{opening}...{closing}")
        return room - len(parts[-1])
    if type(value) is tuple and len(value) == 1:
        closing = ",)"
    parts.append(opening)
    room -= len(opening) + len(closing)
    for index, member in enumerate(value.items() if is_dict else value):
        if index:
            parts.append(", ")
            room -= 2
        if room <= 0:
            parts.append("...")
            break
        if is_dict:
            room = _write(member[0], parts, room, 0)
            parts.append(": ")
            room = _write(member[1], parts, room - 2, depth - 1)
        else:
            room = _write(member, parts, room, depth - 1)
    parts.append(closing)
    return room


def safe_repr(value: Any) -> str:
    """`repr(value)`, or what can be said of it when that raises."""
    try:
        return repr(value)
    except Exception as error:  # a task's own class; its bug must not become ours
        return f"<{type(value).__name__}: repr raised {type(error).__name__}>"


def safe_str(value: Any) -> str:
    """`str(value)`, or what can be said of it when that raises."""
    try:
        return str(value)
    except Exception as error:  # a task's own class; its bug must not become ours
        return f"<{type(value).__name__}: str raised {type(error).__name__}>"


def printable(text: str, limit: int = 200) -> str:
    """Untrusted text for a log line or a terminal: one line, escaped, cut.

    Line breaks, escape sequences, bidirectional controls and other unprintable characters become backslash escapes.
    """
    if len(text) > limit:
        text = text[:limit] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def describe_error(error: BaseException, limit: int = 200) -> str:
    """Type and text of an exception, safe to print on one line."""
    text = printable(safe_str(error), limit)
    name = printable(type(error).__name__, 100)
    return f"{name}: {text}" if text else name
