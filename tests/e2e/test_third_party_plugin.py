"""docs/writing-a-plugin.md and docs/writing-a-control-command.md, followed to the letter: their files are written, their commands are run, their output is compared.

A line "..." in a shown output stands for any lines, "..." within a line for any text; runs of blanks count as one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from kernel_worker.testing import eventually
from tests.e2e.environments import ROOT, Environment, clean_environ

PAGES = ("writing-a-plugin.md", "writing-a-control-command.md")
FILE = re.compile(r"^\*\*`(?P<path>[^`]+)`\*\*\n\n```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
READY = "ready."
END = re.compile(r"\[exit code (\d+)\]\n")


@dataclass(frozen=True)
class Step:
    """One command of the page and the output shown below it."""

    command: str
    shown: str

    @property
    def keeps_running(self) -> bool:
        """A worker that the page leaves running in its terminal."""
        return self.shown.endswith(READY)

    @property
    def fails(self) -> bool:
        """The page shows an error of `kw`, or one that a worker answered."""
        return self.shown.startswith("kw: ") or ": ERROR\n" in self.shown


def steps(block: str) -> list[Step]:
    """The commands of one console block."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [Step(command, shown.strip()) for command, _, shown in (part.partition("\n") for part in parts)]


def matches(shown: str, output: str) -> bool:
    """Whether an output looks like the page says."""
    wanted = [re.escape(part.strip()) for part in " ".join(shown.split()).split("...")]
    return re.search(".*?".join(wanted), " ".join(output.split())) is not None


class Terminal:
    """A shell in a folder, fed one command at a time."""

    def __init__(self, folder: Path, log: Path, path: Path) -> None:
        environ = clean_environ(PIP_NO_BUILD_ISOLATION="0")  # hatchling is there: not once more for each build
        self._log = log
        self._log.write_text("")
        self._read = 0
        with log.open("ab") as output:
            self._shell = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],
                cwd=folder,
                env={**environ, "PATH": f"{path}{os.pathsep}{environ['PATH']}"},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def type(self, command: str) -> None:
        """Start a command."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(f'{command}\necho "[exit code $?]"\n'.encode())
        self._shell.stdin.flush()

    @property
    def output(self) -> str:
        """What came since the last finished command."""
        return self._log.read_text()[self._read :]

    def finish(self, within_s: float = 60.0) -> tuple[str, int]:
        """Wait for the end of the command: its output and exit code."""
        found = eventually(
            lambda: END.search(self.output), within_s=within_s, message=lambda: f"no end:\n{self.output}"
        )
        assert found is not None
        output = self.output
        self._read += found.end()
        return output[: found.start()], int(found[1])

    def press_ctrl_c(self) -> None:
        """Interrupt the program in the foreground."""
        for child in psutil.Process(self._shell.pid).children():
            child.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the shell and everything started in it."""
        assert self._shell.stdin is not None
        try:
            os.killpg(self._shell.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself
        self._shell.stdin.close()
        self._shell.wait()


@pytest.fixture
def folder(tmp_path: Path, wheels: Path) -> Path:
    """An empty folder in whose .venv the members are installed already, as if they had been published, and what builds
    wheels."""
    place = tmp_path / "somewhere"
    place.mkdir()
    environment = Environment(place / ".venv")
    environment.install_members(wheels, "kernel-worker", beside=["hatchling"])
    return place


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with the `python3` of these tests: the one on PATH may be another version."""
    path = tmp_path / "programs"
    path.mkdir()
    python = path / "python3"
    python.write_text(f'#!/bin/sh\nexec "{os.path.realpath(sys.executable)}" "$@"\n')
    python.chmod(0o755)
    return path


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", PAGES)
def test_page_works_as_written(name: str, folder: Path, programs: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / name).read_text()
    for found in FILE.finditer(page):
        path = folder / found["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found["text"])
    first, second = (Terminal(folder, tmp_path / f"terminal{n}", programs) for n in (1, 2))

    try:
        terminal, running = first, None
        for step in [step for block in CONSOLE.findall(page) for step in steps(block)]:
            terminal.type(step.command)
            if step.keeps_running:
                eventually(lambda: READY in first.output or END.search(first.output), within_s=30)
                assert matches(step.shown, first.output), f"{step.command}\n{first.output}"
                terminal, running = second, step
                continue
            output, code = terminal.finish()
            assert (code != 0) == step.fails, f"{step.command}: exit code {code}\n{output}"
            assert matches(step.shown, output), f"{step.command} gave\n{output}instead of\n{step.shown}"
        assert running is not None
        first.press_ctrl_c()
        eventually(lambda: "stops (SIGINT)" in first.output, within_s=20, message=lambda: first.output)
        if "waiting up to" in first.output:
            first.press_ctrl_c()  # the page's tasks run for longer than is worth waiting for
        output, code = first.finish()
        assert code == 0, output
        assert not (folder / "lamp").exists()
    finally:
        first.close()
        second.close()
