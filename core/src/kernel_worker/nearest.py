"""The nearest known name to one that was mistyped, in words for an error text."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, or "" when none comes close."""
    import difflib  # only on the way to an error

    by_lower = {candidate.lower(): candidate for candidate in known}
    cutoff = 0.7 if len(name) > 4 else 0.6  # two swapped letters of three are a third of the word
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error text: what there is, and what was meant most likely."""
    names = sorted(known)
    have = f" (have: {', '.join(names)})" if names else " (there are none)"
    close = nearest(name, names)
    return f"{have}. Did you mean {close!r}?" if close else have
