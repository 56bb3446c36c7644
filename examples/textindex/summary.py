"""Add up the results of all files and print them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .app import FileIndex

SHOWN = 10


@dataclass
class Summary:
    """Totals of one run."""

    files: int = 0
    size: int = 0
    lines: int = 0
    words: int = 0
    identifiers: Counter[str] = field(default_factory=Counter)
    largest: list[tuple[int, Path]] = field(default_factory=list)
    copies: Counter[str] = field(default_factory=Counter)  # by checksum
    failures: list[str] = field(default_factory=list)

    def add(self, path: Path, index: FileIndex) -> None:
        """Count one file in."""
        self.files += 1
        self.size += index["size"]
        self.lines += index["lines"]
        self.words += index["words"]
        self.copies[index["sha256"]] += 1
        self.identifiers.update(dict(index["identifiers"]))
        self.largest = sorted([*self.largest, (index["size"], path)], reverse=True)[:SHOWN]

    def table(self, folder: Path, elapsed_s: float) -> str:
        """The result for people; `elapsed_s` is the time from the first send to the last result."""
        rate, megabytes = self.files / elapsed_s, self.size / 1e6
        duplicates = sum(count - 1 for count in self.copies.values())
        rows = [
            f"{folder}",
            f"  files {self.files:>12,}    lines {self.lines:>12,}",
            f"  words {self.words:>12,}    size  {megabytes:>9,.1f} MB",
            f"  same content as another file: {duplicates:,}",
            "",
            f"  {'identifier':<24}{'count':>8}    {'largest file':<44}{'kB':>7}",
            f"  {'─' * 32}    {'─' * 51}",
        ]
        common = self.identifiers.most_common(SHOWN)
        for place in range(max(len(common), len(self.largest))):
            name, count = common[place] if place < len(common) else ("", "")
            left = f"  {name[:24]:<24}{count:>8,}" if name else " " * 34
            right = ""
            if place < len(self.largest):
                size, path = self.largest[place]
                right = f"    {_shorten(path.relative_to(folder)):<44}{size / 1e3:>7,.0f}"
            rows.append(left + right)
        rows += [
            "",
            f"{self.files:,} files in {elapsed_s:.2f} s: {rate:,.0f} files/s, {megabytes / elapsed_s:,.1f} MB/s",
        ]
        rows += [f"failed: {failure}" for failure in self.failures[:SHOWN]]
        if len(self.failures) > SHOWN:
            rows.append(f"... and {len(self.failures) - SHOWN:,} more failures")
        return "\n".join(rows)


def _shorten(path: Path, width: int = 43) -> str:
    text = str(path)
    return text if len(text) <= width else "…" + text[1 - width :]
