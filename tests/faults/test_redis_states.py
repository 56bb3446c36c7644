"""A Redis server that answers with errors for a while: the worker says what is wrong, waits, and loses nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name, started
from tests.servers import RedisServer, free_port

PASSWORD = "hunter2-of-redis"
TOLD_WITHIN_S = 30.0
AGAIN_WITHIN_S = 20.0

State = Callable[[redis.Redis], AbstractContextManager[None]]


@contextlib.contextmanager
def replica(admin: redis.Redis) -> Iterator[None]:
    admin.replicaof("127.0.0.1", "1")
    yield
    admin.replicaof("NO", "ONE")


@contextlib.contextmanager
def replica_without_primary(admin: redis.Redis) -> Iterator[None]:
    admin.config_set("replica-serve-stale-data", "no")
    admin.replicaof("127.0.0.1", "1")
    yield
    admin.replicaof("NO", "ONE")


@contextlib.contextmanager
def full(admin: redis.Redis) -> Iterator[None]:
    admin.config_set("maxmemory", 1)
    yield
    admin.config_set("maxmemory", 0)


@contextlib.contextmanager
def busy(admin: redis.Redis) -> Iterator[None]:
    admin.config_set("busy-reply-threshold", 50)

    def run() -> None:
        with _another(admin) as other, contextlib.suppress(redis.RedisError):
            other.eval("while true do end", 0)

    script = threading.Thread(target=run)
    script.start()
    eventually(lambda: "busy" in _answer(admin))
    yield
    admin.script_kill()
    script.join()


@contextlib.contextmanager
def loading(admin: redis.Redis) -> Iterator[None]:
    admin.mset({f"ballast{n}": "x" * 100 for n in range(500)})
    admin.config_set("loading-process-events-interval-bytes", 1024)
    admin.config_set("key-load-delay", 2_000)  # microseconds
    with _another(admin) as other:
        reloading = threading.Thread(target=lambda: other.execute_command("DEBUG", "RELOAD"))
        reloading.start()
        eventually(lambda: "loading" in _answer(admin))
        yield
        reloading.join(30)


@contextlib.contextmanager
def other_password(admin: redis.Redis) -> Iterator[None]:
    admin.config_set("requirepass", "another")
    admin.client_kill_filter(skipme=True, _type="normal")
    yield
    admin.config_set("requirepass", PASSWORD)


@contextlib.contextmanager
def rights_taken(admin: redis.Redis) -> Iterator[None]:
    admin.acl_setuser("default", enabled=True, commands=["-evalsha"], reset=False)
    yield
    admin.acl_setuser("default", enabled=True, commands=["+@all"], reset=False)


STATES: dict[str, tuple[State, str]] = {
    "READONLY": (replica, "the URL must lead to the primary"),
    "MASTERDOWN": (replica_without_primary, "the URL must lead to the primary"),
    "OOM": (full, "raise maxmemory of the server"),
    "BUSY": (busy, "SCRIPT KILL ends it"),
    "LOADING": (loading, "reads its data"),
    "WRONGPASS": (other_password, "check user name and password"),
    "NOPERM": (rights_taken, "grant the user the commands"),
}


def _another(admin: redis.Redis) -> redis.Redis:
    return redis.Redis(port=admin.get_connection_kwargs()["port"], password=PASSWORD)


def _answer(admin: redis.Redis) -> str:
    try:
        return str(admin.get("x"))
    except redis.RedisError as error:
        return str(error).lower()


@pytest.fixture
def server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis("--requirepass", PASSWORD, "--enable-debug-command", "yes")


@pytest.fixture
def url(server: RedisServer) -> str:
    return f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    at_once = Retry(NoBackoff(), 0)  # what the server answers, not what it answers in the end
    with redis.Redis(port=server.port, password=PASSWORD, socket_timeout=5, retry=at_once) as connection:
        yield connection


def go_through(state: str, url: str, admin: redis.Redis, worker: WorkerProcess, ledger: Ledger, folder: Path) -> None:
    """A task runs and others wait while the server is in a state; afterwards all end, each once."""
    enter, hint = STATES[state]
    key, waiting = name(), [name() for _ in range(20)]
    with client(url) as app:
        app.send_task(f"{MODULE}.hold", [key])
        started(ledger, key)
        told = worker.output.count(hint)
        for each in waiting:
            app.send_task(f"{MODULE}.work", [each, 0.001])
        with enter(admin):
            (folder / f"release-{key}").touch()
            eventually(lambda: worker.output.count(hint) > told, within_s=TOLD_WITHIN_S, message=f"{hint!r} in the log")
        ends = [key, *waiting]
        eventually(lambda: all(ledger.count("end", id=each) for each in ends), within_s=AGAIN_WITHIN_S, message=state)
    eventually(lambda: admin.hlen("unacked") == 0, within_s=AGAIN_WITHIN_S, message="all to be settled")
    assert all(ledger.count("start", id=each) == 1 for each in ends)


@pytest.mark.parametrize(
    "states",
    [
        pytest.param(["READONLY", "OOM", "WRONGPASS"], id="some"),
        pytest.param(list(STATES), id="all", marks=pytest.mark.faults),
    ],
)
def test_states_of_a_server_are_waited_for_and_told(
    folder: Path, kw: RunKw, url: str, admin: redis.Redis, ledger: Ledger, states: list[str]
) -> None:
    """One slot, so that every state finds a task that runs and others that wait."""
    worker = kw(*OPTIONS, "--lease", "30", "-b", url, "--result-backend", url, "-c", "1")

    for state in states:
        go_through(state, url, admin, worker, ledger, folder)
    admin.script_flush()
    admin.client_kill_filter(skipme=True, _type="normal")
    with client(url) as app:
        assert app.send_task(f"{MODULE}.echo", ["after all"]).get(timeout=AGAIN_WITHIN_S) == "after all"

    assert worker.stop() == 0
    assert "Traceback" not in worker.output
    assert PASSWORD not in worker.output


def test_cluster_is_told_to_be_none_of_ours(folder: Path, kw: RunKw, start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    worker = kw(*OPTIONS, "-b", server.url, "--result-backend", server.url, "-c", "1", ready=False)

    worker.wait_for_output("Redis Cluster is not supported", within_s=TOLD_WITHIN_S)

    time.sleep(0.2)  # it goes on trying
    assert worker.exit_code is None
    assert worker.stop() == 0
