"""A boot step of an installed plugin that fails: everything started before is stopped, and the plugin is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RunKw

EX_SOFTWARE = 70
PLUGIN = '''
from pathlib import Path

from kernel_worker import Bootstep, hookimpl

kw_api = 1


class First(Bootstep):
    """Comes up, and notes that it was taken down again."""

    name = "first"
    requires = ("consumer",)

    def start(self, ctx):
        Path("first-started").touch()

    def stop(self, ctx, deadline):
        Path("first-stopped").touch()


class Lamp(Bootstep):
    """Fails when all else is up."""

    name = "lamp"
    requires = ("first",)

    def start(self, ctx):
        raise OSError("the lamp is broken")


@hookimpl
def kw_bootsteps(config):
    return [First(), Lamp()]
'''


@pytest.fixture
def lamp(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with a plugin distribution, as `pip install` leaves it."""
    site = tmp_path / "site"
    info = site / "acme_lamp-2.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-lamp\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[kernel_worker.plugins]\nlamp = acme_lamp\n")
    (site / "acme_lamp.py").write_text(PLUGIN)
    return site


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_failing_step_rolls_back_and_names_its_plugin(shop: Path, kw: RunKw, lamp: Path, pool: str) -> None:
    worker = kw("run", "-A", "shop", "-P", pool, ready=False, env={"PYTHONPATH": str(lamp)})

    assert worker.wait() == EX_SOFTWARE
    for text in ("'lamp'", "acme-lamp 2.5", "OSError: the lamp is broken"):
        assert text in worker.output
    assert "Traceback" not in worker.output
    assert " ready." not in worker.output
    assert (shop / "first-started").exists()
    assert (shop / "first-stopped").exists()
    assert not worker.family()


def test_plugin_can_be_left_out(shop: Path, kw: RunKw, lamp: Path) -> None:
    worker = kw("run", "-A", "shop", "-P", "solo", "--plugins=-lamp", env={"PYTHONPATH": str(lamp)})

    assert worker.stop() == 0
    assert not (shop / "first-started").exists()
