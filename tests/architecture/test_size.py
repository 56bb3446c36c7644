"""The kernel stays small enough to be read in one sitting."""

from __future__ import annotations

import pytest

from .source import CORE, code_lines

AIM, CEILING = 1_500, 5_600
OUTSIDE = {"config", "config_file", "options", "secret", "worker_options"}
"""Rooms of the configuration; `cli` and `testing` are packages and not counted either. See ADR 0010."""


def test_kernel_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {file.stem: code_lines(file) for file in sorted(CORE.glob("*.py")) if file.stem not in OUTSIDE}
    total = sum(lines.values())
    table = "\n".join(f"  {room:<20}{number:>6}" for room, number in sorted(lines.items(), key=lambda item: -item[1]))

    with capsys.disabled():
        print(f"\nkernel: {total} lines of code (aim {AIM}, ceiling {CEILING})")

    assert total <= CEILING, f"{total} lines of code without configuration, cli and testing:\n{table}"
