"""The example application on each pool and broker: the client's table is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RunKw
from tests.e2e.environments import ROOT, clean_environ


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent", "eventlet", "asyncio"])
def test_client_gets_the_index_of_a_folder(kw: RunKw, tmp_path: Path, url: str, pool: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for n in range(40):
        (tree / f"file{n:02}.txt").write_text("alpha beta\n" * (n + 1))
    (tree / "copy.txt").write_text("alpha beta\n")
    options = ("-A", "examples.textindex.app", "-P", pool, "-b", url, "--result-backend", url)
    worker = kw("run", *options, "--workdir", str(ROOT))

    done = subprocess.run(
        [sys.executable, "-m", "examples.textindex.run", "-b", url, str(tree)],
        cwd=ROOT,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=50,
    )

    shown = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "files 41 lines 821 words 1,642" in shown
    assert "same content as another file: 1" in shown
    assert worker.stop() == 0
