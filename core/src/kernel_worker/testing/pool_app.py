"""The application of the pool contract: its text, written into the test's folder, and a client for it.

The suite itself imports no application package: the written module does, in the worker and in the test.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from .ledger import Ledger

MODULE = "contract_app"

TEXT = '''
import asyncio
import logging
import os
import signal
import sys
import threading
import time

from kernel_app import App, SoftTimeLimitExceeded
from kernel_worker.testing.ledger import Ledger

FOLDER = {folder!r}
URL = "sqlite:///" + FOLDER + "/kw.db"

app = App("contract", broker_url=URL, result_backend=URL)
ledger = Ledger(FOLDER + "/ledger")
chatter = logging.getLogger("contract.chatter")
chatter.addHandler(logging.StreamHandler(open(os.devnull, "w")))
chatter.propagate = False


def released(name):
    return os.path.exists(FOLDER + "/release-" + name) or os.path.exists(FOLDER + "/release-all")


@app.task
def echo(*args, **kwargs):
    return [list(args), kwargs]


@app.task
def mark(name):
    ledger.note("mark", name=name)
    return name


@app.task
def pid():
    return os.getpid()


@app.task
def fail(text):
    raise ValueError(text)


@app.task
def unserializable():
    return object()


@app.task(bind=True, max_retries=5)
def retry_until(self, wanted):
    ledger.note("try", retries=self.request.retries)
    if self.request.retries < wanted:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, max_retries=1)
def retry_in_vain(self):
    ledger.note("vain")
    raise self.retry(exc=KeyError("in vain"), countdown=0)


@app.task
async def async_echo(value):
    await asyncio.sleep(0.01)
    return value


@app.task
def hold(name):
    """Runs until the test releases it."""
    ledger.note("start", name=name)
    while not released(name):
        time.sleep(0.01)
    ledger.note("end", name=name)
    return name


@app.task
def burn(name, seconds):
    """Holds the interpreter, for so long or until the test releases it."""
    ledger.note("start", name=name)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not released(name):
        look = time.monotonic() + 0.25  # seldom: to look lets others have the interpreter
        while time.monotonic() < look:
            sum(range(1000))
    ledger.note("end", name=name)
    return name


@app.task
def soft(catch):
    ledger.note("start", name="soft")
    try:
        for _ in range(2000):
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        ledger.note("soft limit")
        if catch:
            return "caught"
        raise


@app.task
def chat():
    """Does little but log. Others may run now and then, and mostly in the middle of it."""
    while True:
        for _ in range(2000):
            chatter.warning("and on it goes")
        time.sleep(0)


@app.task
def log_beside():
    """Whether another thread can log."""
    thread = threading.Thread(target=chatter.warning, args=("heard",), daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()


@app.task
def stubborn(name):
    """Ignores everything that can be raised in it."""
    ledger.note("start", name=name)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except BaseException:
            ledger.note("ignored", name=name)


@app.task
def exit_now(code):
    ledger.note("exit")
    os._exit(code)


@app.task
def kill_me():
    ledger.note("exit")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def system_exit(code):
    sys.exit(code)


@app.task
def interrupt():
    raise KeyboardInterrupt


@app.task
def shout(lines):
    for n in range(lines):
        print("shouted", n)
        print("shouted", n, file=sys.stderr)
        os.write(1, b"\\x00\\xff raw bytes {{}}\\n")
    sys.stdout.flush()
    return lines


@app.task
def close_descriptors():
    ledger.note("closing")
    os.closerange(3, 4096)
    return "closed"


@app.task
def fork_and_leave(seconds):
    """Leaves a child behind that holds copies of all descriptors."""
    child = os.fork()
    if child == 0:
        time.sleep(seconds)
        os._exit(0)
    return child
'''


@contextmanager
def written_app(folder: Path) -> Iterator[ModuleType]:
    """Write the application into `folder` and import it; closed and forgotten at the end.

    The worker imports it from its working directory, under the same name: task names begin with it.
    """
    file = folder / f"{MODULE}.py"
    file.write_text(TEXT.format(folder=str(folder)))
    spec = importlib.util.spec_from_file_location(MODULE, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.modules.pop(MODULE, None)
        if hasattr(module, "app"):
            module.app.close()


class Release:
    """Lets held tasks go on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *names: str) -> None:
        """Release the tasks of these names; without names, all, also those to come."""
        for name in names or ("all",):
            (self._folder / f"release-{name}").touch()


def ledger_in(folder: Path) -> Ledger:
    """The ledger the application writes."""
    return Ledger(folder / "ledger")
