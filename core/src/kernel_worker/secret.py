"""Values that must never be printed: URLs with credentials, passwords. Imports nothing of the kernel."""

from __future__ import annotations

import re
from typing import NoReturn

MASK = "**"
_SECRET_KEY = re.compile(
    r"pass|pwd|secret|token|credential|signature|\bsig\b|auth|(api|access|account|private|shared).?key",
    re.IGNORECASE,
)


def mask_url(url: str) -> str:
    """The URL with passwords and secret query values replaced by `**`.

    Takes several URLs separated by ";" as well. Where an unescaped password lets the URL be read in two ways,
    more is masked rather than less.
    """
    return ";".join(_mask_one(part) for part in re.split(r";(?=[\w+.-]+://)", url))


def _mask_one(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    place, mark, query = rest.partition("?")
    if "@" in query.partition("=")[0]:  # the "?" belongs to a password, the query begins nowhere
        place, mark, query = rest, "", ""
    user_info, at, host = place.rpartition("@")
    user, colon, _password = user_info.partition(":")
    if at and colon:
        place = f"{user}:{MASK}@{host}"
    return scheme + separator + place + mark + "&".join(map(_mask_pair, query.split("&")))


def _mask_pair(pair: str) -> str:
    key, equals, _value = pair.partition("=")
    return f"{key}={MASK}" if equals and _SECRET_KEY.search(key) else pair


class Secret:
    """A text that shows itself masked: a URL without its password, anything else as `**`.

    Immutable. Refuses to be pickled, so that it cannot leave the process unnoticed; whoever needs the text
    asks with `reveal`.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: hand it to a driver, never to a message, a log or a file."""
        return self._text

    def __str__(self) -> str:
        if not self._text:
            return ""
        return mask_url(self._text) if "://" in self._text else MASK

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __format__(self, format_spec: str) -> str:
        return format(str(self), format_spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __bool__(self) -> bool:
        return bool(self._text)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled: reveal() what the other side needs")
