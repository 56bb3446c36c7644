"""docs/pools.md says what the pools of this repository declare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_table_of_capabilities_is_what_the_pools_declare() -> None:
    """On failure: `python scripts/pools_doc.py` writes it."""
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts" / "pools_doc.py", "--check"], capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stderr
