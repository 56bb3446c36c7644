"""`-c`: a number, `auto`, or processes x slots."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernel_worker.drivers import Layout, Pool
from kernel_worker.testing import WorkerProcess
from kernel_worker.worker import Worker
from kernel_worker.worker_options import Concurrency, _concurrency


class SlotsOnly(Pool):
    """A process with as many slots as are asked for."""

    def layout(self, concurrency: int) -> Layout:
        return Layout(processes=1, slots=concurrency)


def layout(concurrency: int, count: int) -> Layout:
    """What a worker makes of `-c` when its pool shall run `count` tasks at once."""
    config = SimpleNamespace(worker=SimpleNamespace(concurrency=concurrency, tasks_at_once=count))
    worker = SimpleNamespace(config=config, pool=SlotsOnly(None))
    return Worker._layout_for(worker, count)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "total", "processes"), [("8", 8, None), ("4x250", 1000, 4), ("1X3", 3, 1)])
def test_concurrency_counts_tasks_and_remembers_processes(text: str, total: int, processes: int | None) -> None:
    value = _concurrency(text)

    assert value == total
    assert getattr(value, "processes", None) == processes


@pytest.mark.parametrize("text", ["0x5", "4x", "x4", "4x2x2", "-1x2", "axb"])
def test_what_is_no_layout_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="processes x slots as in 4x250"):
        _concurrency(text)


def test_processes_stay_as_many_when_the_pool_is_resized() -> None:
    concurrency = Concurrency.of(4, 250)

    assert layout(concurrency, 1000) == Layout(4, 250)
    assert layout(concurrency, 1001) == Layout(4, 251)
    assert layout(8, 8) == Layout(1, 8)


def test_a_pool_with_one_slot_in_each_process_refuses_a_layout(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": os.fspath(Path(__file__).parents[2])}
    arguments = ["run", "-A", "tests.core.toy_app:app", "-P", "prefork", "-c", "4x2"]
    worker = WorkerProcess(arguments, cwd=tmp_path, env=environment)

    assert worker.wait(within_s=20) == 2
    assert "pool 'prefork' runs one task in each process, not --concurrency 4x2" in worker.output
