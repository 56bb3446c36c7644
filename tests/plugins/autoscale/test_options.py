"""What `--autoscale` accepts, and what it refuses with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RunKw

APP = """
from kernel_app import App

app = App("toy", broker_url="sqlite:///kw.db", result_backend=None)
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--autoscale=2,10"], "MAX 2 lies below MIN 10", id="the wrong way round"),
        pytest.param(["--autoscale=3,0"], "MIN 0 is too small", id="nothing left"),
        pytest.param(["--autoscale=a,b"], "'a' is not a number", id="no numbers"),
        pytest.param(["--autoscale=3,2,1"], "is not MAX,MIN", id="three numbers"),
        pytest.param(["--autoscale=3,1", "--autoscale-keepalive=0"], "is not above zero", id="no keepalive"),
        pytest.param(["--autoscale=3,1", "-P", "solo"], "pool 'solo' runs one task at a time", id="solo"),
    ],
)
def test_impossible_bounds_are_refused_at_start(kw: RunKw, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "toy.py").write_text(APP)

    worker = kw("run", "-A", "toy", *arguments, ready=False)

    assert worker.wait() == 2
    assert words in worker.output
    assert "Traceback" not in worker.output


@pytest.mark.parametrize(
    ("arguments", "size"),
    [(["--autoscale=4,2"], 2), (["--autoscale=4,2", "-c", "3"], 3), (["--autoscale=4,2", "-c", "9"], 4), (["--autoscale=4"], 1)],
    ids=["MIN", "what -c says", "MAX when -c says more", "1 without MIN"],
)  # fmt: skip
def test_pool_starts_between_the_bounds(kw: RunKw, tmp_path: Path, arguments: list[str], size: int) -> None:
    (tmp_path / "toy.py").write_text(APP)

    worker = kw("run", "-A", "toy", *arguments)

    assert f"prefork, {size} at once" in worker.output
    assert worker.stop() == 0
