"""The fork server and its children: real processes, killed at every place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_pool_prefork.early import Interpreter, start_interpreter
from kernel_pool_prefork.pool import PreforkPool
from kernel_pool_prefork.spawner import MAX_ASKED, ForkServerSpawner
from kernel_worker.board import Board
from kernel_worker.drivers import Layout
from kernel_worker.errors import ExecutorError, UsageError
from kernel_worker.loop import Loop
from kernel_worker.spawn import Birth, hello_frame
from kernel_worker.testing import Ledger, eventually
from kernel_worker.wire import Channel, Frame, pack_json
from tests.core.live_pool import LivePool, call
from tests.core.toy_app import ROOT, hello, stored


@pytest.fixture
def pool() -> Iterator[LivePool]:
    pool = LivePool(ForkServerSpawner)
    yield pool
    pool.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Tasks that wait for it go on when it is there."""
    return tmp_path / "gate"


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _server(pool: LivePool) -> int:
    """Process id of the fork server, by way of its children."""
    return _parent(pool.pids[0])


def _hold_all(pool: LivePool, ledger: Ledger, gate: Path, count: int) -> None:
    """Have so many tasks running, one in each executor."""
    pool.run(*(call("toy.hold", f"held {n}", str(ledger.path), str(gate)) for n in range(count)))
    pool.until(lambda: ledger.count("start") == count)


def test_the_layout_is_one_slot_per_process() -> None:
    assert PreforkPool(PreforkPool.Options()).layout(7) == Layout(processes=7, slots=1)


def test_all_executors_are_children_of_one_server_that_is_not_the_kernel(pool: LivePool) -> None:
    pool.start(3)

    parents = {_parent(pid) for pid in pool.pids}

    assert len(parents) == 1
    assert os.getpid() not in parents
    assert _parent(parents.pop()) == os.getpid()


def test_tasks_run_and_results_are_stored_before_acks(
    pool: LivePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_worker.prefetch.SURPLUS_S", 60.0)  # on a slow machine as well nothing goes back
    pool.start(2, results=tmp_path / "results")

    pool.run(*(call("toy.add", str(n), n, n) for n in range(100)))
    verdicts = pool.wait_for_verdicts(100)

    assert verdicts == {str(n): "ack" for n in range(100)}
    results = {task_id: payload for batch in stored(tmp_path / "results") for task_id, _, payload in batch}
    assert results == {str(n): str(2 * n) for n in range(100)}


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_killed_child_is_replaced_and_others_are_not_touched(
    pool: LivePool, ledger: Ledger, gate: Path, busy: bool
) -> None:
    pool.start(2)
    if busy:
        _hold_all(pool, ledger, gate, 2)
    before = pool.pids
    victim = before[0]

    os.kill(victim, signal.SIGKILL)
    pool.until(lambda: victim not in pool.pids and pool.supervisor.up_count == 2)
    gate.touch()

    assert before[1] in pool.pids
    assert pool.ends == [(victim, "signal SIGKILL")]
    if busy:
        pool.until(lambda: len(pool.settlements) == 2)
        assert sorted((each.verdict.value, each.count) for each in pool.settlements) == [
            ("ack", False),
            ("requeue", True),
        ]


@pytest.mark.parametrize(
    ("task", "arguments", "reason"),
    [
        ("toy.exit_at_once", (0,), "exit 0"),
        ("toy.exit_at_once", (7,), "exit 7"),
        ("toy.kill_itself", (), "signal SIGKILL"),
        ("toy.close_descriptors", (), "exit "),  # 0 or 1: by the report it cannot send, or its minder
    ],
    ids=["exit 0", "exit 7", "signal", "closes descriptors"],
)
def test_a_task_that_takes_its_process_along_is_dead_after_the_last_attempt(
    pool: LivePool,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    arguments: tuple[int, ...],
    reason: str,
) -> None:
    """Cause (closes descriptors): the task ended well, its executor died of the report it could not send, and what the
    board said did not count: handed out again for ever."""
    monkeypatch.setattr("kernel_worker.supervisor.DEAF_S", 30.0)  # on a slow machine as well it ends by itself
    pool.start(1, results=tmp_path / "results")

    pool.run(call(task, "poison", str(ledger.path), *arguments, attempts=2))
    pool.until(lambda: pool.settlements)

    assert [(each.verdict.value, each.count) for each in pool.settlements] == [("dead", True)]
    assert reason in pool.settlements[0].reason
    assert [(task_id, state) for batch in stored(tmp_path / "results") for task_id, state, _ in batch][-1] == (
        "poison",
        "LOST",
    )
    assert ledger.count("start") == 1


def test_a_child_that_closes_its_descriptors_and_goes_on_ends(
    pool: LivePool, ledger: Ledger, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself when its minder finds the connection closed, or killed by the supervisor: whoever is first."""
    monkeypatch.setattr("kernel_worker.supervisor.DEAF_S", 0.05)
    pool.start(2)

    pool.run(call("toy.close_descriptors", "deaf", str(ledger.path), str(gate)))
    pool.until(lambda: pool.settlements)
    pool.until(lambda: pool.supervisor.up_count == 2)

    assert [(each.verdict.value, each.count) for each in pool.settlements] == [("requeue", True)]
    assert [reason for _, reason in pool.ends] in (["it closed its connection to the worker"], ["exit 1"])


def test_growing_and_shrinking_interrupts_nothing(pool: LivePool, ledger: Ledger, gate: Path) -> None:
    pool.start(1)
    _hold_all(pool, ledger, gate, 1)
    busy = pool.pids[0]

    pool.supervisor.resize(Layout(4, 1))
    pool.until(lambda: pool.supervisor.up_count == 4)
    pool.supervisor.resize(Layout(1, 1))
    pool.until(lambda: len(pool.supervisor.executors) == 1)
    left = pool.pids
    pool.supervisor.resize(Layout(2, 1))
    pool.until(lambda: pool.supervisor.up_count == 2)
    gate.touch()

    assert left == [busy]
    assert pool.wait_for_verdicts(1) == {"held 0": "ack"}
    assert [reason for _, reason in pool.ends] == ["retired"] * 3


def test_shrinking_below_what_is_busy_waits_for_it(pool: LivePool, ledger: Ledger, gate: Path) -> None:
    pool.start(3)
    _hold_all(pool, ledger, gate, 3)

    pool.supervisor.resize(Layout(1, 1))
    pool.loop.turn(0)
    pool.loop.turn(0)
    all_there = len(pool.supervisor.executors)
    gate.touch()
    pool.until(lambda: len(pool.supervisor.executors) == 1)

    assert all_there == 3
    assert set(pool.wait_for_verdicts(3).values()) == {"ack"}


def test_everything_recovers_when_the_fork_server_is_killed(pool: LivePool, ledger: Ledger, gate: Path) -> None:
    pool.start(2)
    _hold_all(pool, ledger, gate, 1)
    old, children = _server(pool), pool.pids

    os.kill(old, signal.SIGKILL)
    pool.until(lambda: pool.supervisor.up_count == 2 and not set(pool.pids) & set(children))
    gate.touch()
    pool.run(call("toy.noop", "after"))
    verdicts = pool.wait_for_verdicts(2)

    assert _server(pool) != old
    assert verdicts["held 0"] == "requeue"
    assert verdicts["after"] == "ack"
    for pid in children:
        eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}") or _is_zombie(pid))  # type: ignore[misc]


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_executors_asked_for_while_the_dead_server_is_not_yet_reported_are_accounted_for(
    pool: LivePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: its closed socket was noticed first and a second server started, whose start made the report of the first
    one's end, and with it the end of all its executors, be ignored: they were waited for as long as the worker ran."""
    monkeypatch.setattr("kernel_worker.supervisor.RESTART_DELAY_S", 0.01)
    pool.start(2)
    server = _server(pool)
    os.kill(server, signal.SIGKILL)
    eventually(lambda: _is_zombie(server))

    spawner = pool.supervisor._spawner
    assert isinstance(spawner, ForkServerSpawner)
    spawner._read()  # the loop happened to see the closed socket before the exit
    pool.supervisor.resize(Layout(3, 1))
    pool.until(lambda: len(pool.ends) == 3)
    pool.until(lambda: pool.supervisor.up_count == 3)

    assert len({_parent(pid) for pid in pool.pids}) == 1


def test_a_server_that_is_killed_while_it_loads_is_a_failure_with_a_reason(pool: LivePool, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    text = f"import os, time\nopen({str(pid)!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(60)\n"
    (tmp_path / "slow_app.py").write_text(text)
    pool.begin(app="slow_app", workdir=str(tmp_path))

    pool.until(lambda: _kill_by_file(pid))
    pool.until(lambda: pool.supervisor.failure)

    assert isinstance(pool.supervisor.failure, ExecutorError)
    assert "the fork server ended with status -9" in pool.supervisor.failure.message


def test_a_server_that_died_before_it_was_used_is_a_failure_with_a_reason(pool: LivePool) -> None:
    process, sock = start_interpreter()
    process.kill()
    eventually(lambda: _is_zombie(process.pid))
    value = hello()
    spawner = ForkServerSpawner(pool.loop, value, pool.supervisor)
    spawner.prestarted = process, sock

    pool.supervisor.start_loading(spawner, value)
    pool.until(lambda: pool.supervisor.failure)

    assert "the fork server ended with status -9" in str(pool.supervisor.failure)


def _kill_by_file(path: Path) -> bool:
    if not path.exists() or not path.read_text().endswith("\n"):
        return False
    os.kill(int(path.read_text()), signal.SIGKILL)
    return True


def test_a_wrong_application_is_told_in_its_own_words(pool: LivePool) -> None:
    pool.begin(app="no_such_module")

    pool.until(lambda: pool.supervisor.failure)
    first = pool.supervisor.failure
    pool.until(lambda: pool.supervisor._spawner._process is None)  # type: ignore[union-attr]

    assert isinstance(first, UsageError)
    assert "no module named 'no_such_module'" in first.message
    assert pool.supervisor.failure is first


def test_an_init_hook_that_fails_in_every_child_is_given_up(pool: LivePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_worker.supervisor.RESTART_DELAY_S", 0.001)
    monkeypatch.setattr("kernel_worker.supervisor.MAX_EARLY_DEATHS", 3)
    pool.begin(plugins=["tests.core.toy_executor_plugin:broken"])
    pool.until(lambda: pool.supervisor.app)
    pool.supervisor.resize(Layout(2, 1))

    pool.until(lambda: pool.supervisor.failure)

    assert "executors ended before they were up, 3 times in a row; the last: exit 1" in str(pool.supervisor.failure)


def test_what_the_import_printed_is_printed_once(tmp_path: Path) -> None:
    """Cause: it lay in the fork server's buffer and was copied into every child, which wrote it when it ended."""
    (tmp_path / "loud_app.py").write_text("from tests.core.toy_app import app\nprint('imported')\n")
    code = f"""
import sys
sys.path[:0] = [{ROOT!r}]
from kernel_pool_prefork.spawner import ForkServerSpawner
from kernel_worker.drivers import Layout
from tests.core.live_pool import LivePool
pool = LivePool(ForkServerSpawner)
pool.start(3, app="loud_app:app", workdir={str(tmp_path)!r})
pool.supervisor.resize(Layout(0, 1))
pool.until(lambda: not pool.supervisor.executors)
pool.close()
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    environment.pop("PYTHONUNBUFFERED", None)

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "imported\n"


@pytest.mark.parametrize(
    "stdout",
    ["os.close(1)", "r, w = os.pipe(); os.close(r); os.dup2(w, 1)"],
    ids=["closed", "without a reader"],
)
def test_an_application_that_prints_when_imported_is_served_whatever_stdout_is(tmp_path: Path, stdout: str) -> None:
    """Cause: the fork server took the failing flush for the end of the kernel, or died of it, again and again."""
    (tmp_path / "loud_app.py").write_text("from tests.core.toy_app import app\nprint('imported')\n")
    code = f"""
import os, sys
{stdout}
sys.path[:0] = [{ROOT!r}]
from kernel_pool_prefork.spawner import ForkServerSpawner
from tests.core.live_pool import LivePool, call
pool = LivePool(ForkServerSpawner)
pool.start(1, app="loud_app:app", workdir={str(tmp_path)!r})
pool.run(call("toy.noop", "a"))
verdicts = pool.wait_for_verdicts(1)
pool.close()
sys.stderr.write(f"{{verdicts}}")
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    environment.pop("PYTHONUNBUFFERED", None)

    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)

    assert done.stderr.endswith("{'a': 'ack'}")


def test_threads_of_the_import_are_warned_of(
    pool: LivePool, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "threaded_app.py").write_text(
        "import threading\nfrom tests.core.toy_app import app\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", ROOT)

    pool.start(1, app="threaded_app:app", workdir=str(tmp_path))

    assert "importing the application started 1 threads" in capfd.readouterr().err


def test_children_share_no_descriptor_with_each_other(pool: LivePool) -> None:
    """A copy of another child's socket in this one would keep its end from being noticed."""
    pool.start(3)

    sockets = [_sockets(pid) for pid in pool.pids]

    # Of each child's sockets (its channel and the pair that wakes its minder) none is found in another child.
    for index, mine in enumerate(sockets):
        others = set().union(*(each for other, each in enumerate(sockets) if other != index))
        assert not mine & others


def _sockets(pid: int) -> set[str]:
    links = (os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd"))
    return {link for link in links if link.startswith("socket:")}


def test_children_die_with_a_killed_kernel_and_its_server(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path[:0] = [{ROOT!r}]
from kernel_pool_prefork.spawner import ForkServerSpawner
from tests.core.live_pool import LivePool, call
pool = LivePool(ForkServerSpawner)
pool.start(2)
pool.run(call("toy.hold", "a", {str(tmp_path / "ledger")!r}, {str(tmp_path / "gate")!r}))
pool.until(lambda: os.path.exists({str(tmp_path / "ledger")!r}))
print(*pool.pids, flush=True)
os.kill(os.getpid(), 9)
"""
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pids = [int(word) for word in parent.stdout.split()]

    assert len(pids) == 2, parent.stderr
    for pid in pids:
        eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}") or _is_zombie(pid), within_s=2.0)  # type: ignore[misc]


def test_a_replacement_is_forked_from_the_imported_application(pool: LivePool) -> None:
    """By the same server: a new interpreter takes about 50 ms and the import."""
    pool.start(1)
    victim, server = pool.pids[0], _server(pool)

    os.kill(victim, signal.SIGKILL)
    pool.until(lambda: pool.pids not in ([], [victim]))

    assert _server(pool) == server


class _Silent:
    """Hears what a spawner tells, and says nothing."""

    def on_loaded(self, info: dict[str, Any]) -> None: ...
    def on_failed(self, failure: dict[str, Any]) -> None: ...
    def on_born(self, key: int, pid: int) -> None: ...
    def on_exited(self, key: int, status: int) -> None: ...


def _asked(sock: socket.socket) -> int:
    """How many executors have been asked for since the last call."""
    data, fds, _, _ = socket.recv_fds(sock, 65536, 256, socket.MSG_DONTWAIT)
    for fd in fds:
        os.close(fd)
    return data.count(b'"slots"')


def test_executors_are_asked_for_few_at_a_time() -> None:
    """Cause: requests for some hundred were sent without reading the answers, until both sides waited for each other."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    spawner = ForkServerSpawner(loop, {}, _Silent())
    spawner.prestarted = (process, ours)
    try:
        spawner.start()
        theirs.recv(65536)
        for key in range(40):
            end, other = socket.socketpair()
            other.close()
            spawner.spawn(Birth(key, end, Board.create(1), 1))
        first = sum(_asked(theirs) for _ in range(MAX_ASKED))

        theirs.send(pack_json(Frame.FORKED, {"key": 0, "pid": 1}) + pack_json(Frame.EXITED, {"key": 1, "status": 1}))
        loop.turn(5.0)
        second = sum(_asked(theirs) for _ in range(2))
    finally:
        process.kill()
        process.communicate()
        spawner.stop()
        theirs.close()
        loop.close()

    assert (first, second) == (MAX_ASKED, 2)


def _loaded_by(server: Interpreter, app: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """The first thing a server that was started ahead says, asked for an application."""
    server.sock.sendall(hello_frame({**hello(), "app": app, "workdir": str(folder)}))
    server.sock.settimeout(20)
    channel = Channel(server.sock)
    while not (frames := channel.receive()):
        pass
    kind, payload = frames[0]
    return kind, json.loads(payload)


@pytest.mark.parametrize("ahead", ["counted_app:app", "another_app", ""])
def test_application_is_imported_once_whatever_was_imported_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counted_app.py").write_text(
        "from tests.core.toy_app import app\nwith open('imports', 'a') as file:\n    file.write('x')\n"
    )
    (tmp_path / "another_app.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    server = start_interpreter(ahead)
    try:
        kind, info = _loaded_by(server, "counted_app:app", tmp_path)
    finally:
        server.close()

    assert kind == Frame.LOADED, info
    assert "toy.add" in info["tasks"]
    assert (tmp_path / "imports").read_text() == "x"


def test_application_that_fails_ahead_is_told_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_ahead.py").write_text("raise RuntimeError('not like this')\n")
    server = start_interpreter("broken_ahead")
    try:
        kind, failure = _loaded_by(server, "broken_ahead", tmp_path)
    finally:
        server.close()

    assert kind == Frame.FAILED
    assert "RuntimeError: not like this" in failure["text"]


def test_a_fork_server_that_hangs_when_it_is_started_again_is_replaced(
    pool: LivePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its import hangs the second time, and no more the third time."""
    monkeypatch.setattr("kernel_pool_prefork.spawner.RELOAD_S", 0.3)
    monkeypatch.setattr("kernel_worker.supervisor.RESTART_DELAY_S", 0.1)
    count = tmp_path / "count"
    (tmp_path / "slowly.py").write_text(
        "import pathlib, time\n"
        "from tests.core.toy_app import *\n"
        f"count = pathlib.Path({str(count)!r})\n"
        "count.write_text(count.read_text() + 'x' if count.exists() else 'x')\n"
        "if len(count.read_text()) == 2:\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.getcwd()}")
    pool.start(1, app="slowly:app")
    first = pool.pids

    os.kill(_parent_of(first[0]), signal.SIGKILL)
    pool.until(lambda: pool.supervisor.up_count == 1 and pool.pids != first)

    assert len(count.read_text()) >= 3
    assert "has not imported the application again" in caplog.text


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
