"""Tables for a terminal, and text from strangers made fit to be printed there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

WIDEST = 100


def printable(text: str, limit: int = WIDEST) -> str:
    """Text of unknown origin on one line, without control characters, and cut.

    Task names, ids and reasons come from whoever can send messages; a terminal obeys escape sequences.
    """
    flat = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns; numbers to the right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    right = [all(row[i].isdigit() for row in cells) and bool(cells) for i in range(len(head))]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    for row in [list(head), *cells]:
        line = "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        click.echo(line.rstrip())
