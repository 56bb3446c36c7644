"""`-A` that leads nowhere: one clear message, the right exit code, no traceback, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RunKw
from tests.e2e.conftest import Command

USAGE = 2
EX_SOFTWARE = 70
EX_CONFIG = 78


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Modules that cannot be run, each for another reason."""
    sources = {
        "empty": "",
        "importing": "import does_not_exist_anywhere\n",
        "raising": "def boom():\n    raise RuntimeError('no database')\n\nboom()\n",
        "syntax": "def f(:\n    pass\n",
        "leaving": "import sys\nsys.exit(3)\n",
        "theirs": "class Celery:\n    pass\n\napp = Celery()\n",
        "two": "from kernel_app import App\nfirst = App('a')\nsecond = App('b')\n",
        "settings": "from kernel_app import App\napp = App('a', task_acks_latte=True)\n",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "code", "texts"),
    [
        ("nowhere", USAGE, ["no module named 'nowhere'"]),
        ("empty", USAGE, ["no application in it"]),
        ("empty:app", USAGE, ["has no attribute 'app'"]),
        ("two", USAGE, ["no application in it", "more than one", "module:attribute"]),
        ("theirs", USAGE, ["no application in it", "found: theirs.Celery"]),
        ("importing", EX_SOFTWARE, ["ModuleNotFoundError", "does_not_exist_anywhere", "importing.py:1"]),
        ("raising", EX_SOFTWARE, ["RuntimeError: no database", "raising.py:2"]),
        ("syntax", EX_SOFTWARE, ["SyntaxError", "syntax.py:1"]),
        ("leaving", EX_SOFTWARE, ["SystemExit", "leaving.py:2"]),
        ("settings", EX_SOFTWARE, ["task_acks_latte", "task_acks_late"]),
    ],
    ids=[
        "no module",
        "no app",
        "no attribute",
        "two apps",
        "another kind",
        "import",
        "raise",
        "syntax",
        "exit",
        "setting",
    ],
)
def test_application_that_cannot_be_run_is_told_in_one_message(
    broken: Path, kw: RunKw, spec: str, code: int, texts: list[str]
) -> None:
    worker = kw("run", "-A", spec, ready=False)

    assert worker.wait(within_s=20) == code, worker.output
    assert worker.output.count("kw: ") == 1
    assert f"-A {spec}: " in worker.output
    for text in texts:
        assert text in worker.output
    assert "Traceback" not in worker.output
    assert len(worker.output.splitlines()) <= 2
    assert not worker.family()


@pytest.mark.parametrize("spec", ["nowhere", "raising"])
def test_solo_tells_the_same(broken: Path, command: Command, spec: str) -> None:
    told = [command("run", "-A", spec, "-P", pool) for pool in ("prefork", "solo")]

    assert told[0].returncode == told[1].returncode
    assert told[0].stderr == told[1].stderr
    assert told[0].stdout == told[1].stdout == ""


def test_traceback_of_the_application_is_shown_on_request(broken: Path, command: Command) -> None:
    done = command("run", "-A", "raising", env={"KW_TRACEBACK": "1"})

    assert "raising.py" in done.stderr
    assert "Traceback" in done.stderr
    assert "RuntimeError: no database" in done.stderr


def test_commands_tell_the_same_of_an_application(broken: Path, command: Command) -> None:
    for arguments in (["queues"], ["call", "x.y"], ["report"]):
        done = command(*arguments, "-A", "nowhere")

        assert "Traceback" not in done.stderr
        if arguments[0] != "report":
            assert done.returncode == USAGE, arguments
            assert "nowhere" in done.stderr


@pytest.mark.parametrize("spec", ["./empty", "empty:", "empty/app", "a b"])
def test_application_that_is_no_module_name_is_refused(broken: Path, kw: RunKw, spec: str) -> None:
    worker = kw("run", "-A", spec, ready=False)

    assert worker.wait(within_s=20) == USAGE, worker.output
    assert f"{spec!r} is not the name of a module" in worker.output
    assert "Traceback" not in worker.output
    assert not worker.family()


def test_log_file_that_cannot_be_opened_is_told_with_its_path(broken: Path, kw: RunKw) -> None:
    worker = kw("run", "-A", "two:first", "-f", str(broken / "nowhere" / "kw.log"), ready=False)

    assert worker.wait(within_s=20) == EX_CONFIG, worker.output
    assert f"logfile {broken / 'nowhere' / 'kw.log'}: No such file or directory" in worker.output
    assert "Traceback" not in worker.output
