"""What a user gets with `pip install`: the built wheels in fresh environments outside the repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernel_worker.testing import eventually
from tests.e2e.environments import Environment, clean_environ, members, run

pytestmark = pytest.mark.timeout(240)  # environments are made, and packages installed

PROJ = """\
from kernel_app import App

app = App("proj")


@app.task
def add(x: int, y: int) -> int:
    return x + y
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("complete") / "venv")
    environment.install_members(wheels, "kernel-worker")
    return environment


@pytest.fixture(scope="module")
def core_alone(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("core") / "venv")
    environment.install_members(wheels, "kernel-worker-core")
    return environment


@contextmanager
def worker(kw: Path, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that is ready; killed if the test leaves it running."""
    log = folder / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [kw, "run", *arguments],
            cwd=folder,
            env=clean_environ(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        eventually(
            lambda: "ready." in log.read_text() or process.poll() is not None,
            within_s=20,
            message=log.read_text,
        )
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_every_member_builds_a_wheel_of_its_own(wheels: Path) -> None:
    built = {path.name.split("-")[0].replace("_", "-") for path in wheels.glob("*.whl")}

    assert built == set(members())


def test_kernel_worker_alone_runs_a_task_on_the_embedded_broker(complete: Environment, tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text(PROJ)
    call = "from proj import add; print(add.delay(2, 40).get(timeout=20))"

    with worker(complete.bin / "kw", tmp_path, "-A", "proj", "-c", "2") as process:
        answer = run([str(complete.bin / "python"), "-c", call], cwd=tmp_path)
        process.terminate()
        code = process.wait(20)

    assert answer == "42\n"
    assert code == 0
    assert (tmp_path / "kw.db").exists()


def test_green_pool_is_one_more_distribution(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without it, the line that installs it; with it, a worker of a thousand slots."""
    folder = tmp_path_factory.mktemp("green")
    environment = Environment(folder / "venv")
    environment.install_members(wheels, "kernel-worker")
    (folder / "proj.py").write_text(PROJ)
    command = [environment.bin / "kw", "run", "-A", "proj", "-P", "gevent", "-c", "1000"]
    refused = subprocess.run(command, cwd=folder, env=clean_environ(), capture_output=True, text=True, timeout=60)

    environment.install_members(wheels, "kernel-pool-gevent")
    call = "from proj import add; print(add.delay(2, 40).get(timeout=20))"
    with worker(environment.bin / "kw", folder, *command[2:]) as process:
        answer = run([str(environment.bin / "python"), "-c", call], cwd=folder)
        process.terminate()
        code = process.wait(20)

    assert refused.returncode == 2
    assert "pip install kernel-pool-gevent" in refused.stderr
    assert (answer, code) == ("42\n", 0)


def test_environment_holds_nothing_of_the_repository(complete: Environment, tmp_path: Path) -> None:
    show = "import kernel_worker, kernel_app; print(kernel_worker.__file__); print(kernel_app.__file__)"

    files = run([str(complete.bin / "python"), "-c", show], cwd=tmp_path).split()

    assert all(Path(file).is_relative_to(complete.bin.parent) for file in files)


def test_core_alone_says_what_is_missing_and_how_to_install_it(core_alone: Environment, tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text("app = None\n")

    done = subprocess.run(
        [core_alone.bin / "kw", "run", "-A", "proj"],
        cwd=tmp_path,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 2
    for word in ("pool", "broker", "application loader"):
        assert word in done.stderr
    assert "pip install kernel-worker" in done.stderr
    assert "Traceback" not in done.stderr


def test_name_of_an_uninstalled_plugin_disappears(
    wheels: Path, core_alone: Environment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("uninstall")
    environment = Environment(folder / "venv")
    environment.install_members(wheels, "kernel-pool-solo", "kernel-pool-prefork")
    kw = [str(environment.bin / "kw"), "plugins"]
    python = str(environment.bin / "python")
    before = run(kw, cwd=folder)

    run([sys.executable, "-m", "pip", "--python", python, "uninstall", "-q", "-y", "kernel-pool-solo"], cwd=folder)
    after = run(kw, cwd=folder)

    assert "kernel-pool-solo" in before
    assert "solo" not in after
    assert "kernel-pool-prefork" in after
