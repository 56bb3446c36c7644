"""The file itself: URLs, rights, wrong and damaged files, full disks, several processes creating it."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from kernel_broker_sqlite import SqliteBroker, SqlitePublisher
from kernel_result_sqlite import SqliteResults, database
from kernel_result_sqlite.failures import FileRefused, FileUnavailable, explain
from kernel_result_sqlite.location import Location, parse_url
from kernel_worker.drivers import BrokerContext
from kernel_worker.errors import BrokerRefused, BrokerUnavailable, ConfigError
from kernel_worker.testing import collect, envelope
from kernel_worker.types import Settlement, StoredResult, Verdict

from .conftest import Message

NOBODY = 65534


def connected(url: str, **more: object) -> SqliteBroker:
    broker = SqliteBroker(BrokerContext(url, **more))  # type: ignore[arg-type]
    broker.connect()
    return broker


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("sqlite:///kw.db", Location("{cwd}/kw.db")),
        ("sqlite:///sub/kw.db", Location("{cwd}/sub/kw.db")),
        ("sqlite:////var/lib/kw.db", Location("/var/lib/kw.db")),
        ("sqlite:////a%20b/%23%3f.db?synchronous=FULL", Location("/a b/#?.db", "full")),
        ("sqlite:///kw.db?synchronous=normal", Location("{cwd}/kw.db", "normal")),
    ],
)
def test_url_names_a_file(url: str, location: Location) -> None:
    path = location.path.replace("{cwd}", os.getcwd())

    assert parse_url(url) == Location(path, location.synchronous)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite://kw.db", r"not a host \('kw.db'\).*three slashes"),
        ("sqlite://user:secret@host/kw.db", r"not a host \('host'\)"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:////var/lib/", "names no file"),
        ("sqlite:///a%00b", "names no file"),
        ("sqlite:///:memory:", "each process"),
        ("sqlite:///kw.db#1", "%23"),
        ("sqlite:///kw.db?mode=ro", "unknown option 'mode'"),
        ("sqlite:///kw.db?synchronous=off", "normal or full"),
    ],
)
def test_url_that_names_no_file_is_a_configuration_error(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        SqliteBroker(BrokerContext(url))
    with pytest.raises(ValueError, match=problem):
        SqlitePublisher(url, {})
    with pytest.raises(ValueError, match=problem):
        SqliteResults(url, {})

    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- wrong files


def make_folder(file: Path) -> None:
    file.mkdir()


def make_text(file: Path) -> None:
    file.write_text("This is no database, though it is long enough to have a header.\n" * 100)


def make_newer(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 1000")
    connection.close()


def make_nothing(file: Path) -> None:
    file.parent.rmdir()


@pytest.mark.parametrize(
    ("prepare", "error", "text", "hint"),
    [
        (make_folder, BrokerRefused, "is a folder", "name a file"),
        (make_text, BrokerRefused, "not an SQLite database", "another file"),
        (make_newer, BrokerRefused, "schema version 1000", "upgrade"),
        (make_nothing, BrokerUnavailable, "does not exist", "mkdir -p"),
    ],
    ids=["folder", "text", "newer version", "no folder"],
)
def test_wrong_file_is_explained(
    tmp_path: Path, prepare: Callable[[Path], None], error: type[Exception], text: str, hint: str
) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "kw.db"
    prepare(file)
    url = f"sqlite:///{file}"

    with pytest.raises(error, match=text) as caught:
        connected(url).fetch(10, 0.0)
    with pytest.raises(ConnectionError, match=text):
        SqlitePublisher(url, {}).publish(Message(envelope()))
    with pytest.raises(ConnectionError, match=text):
        SqliteResults(url, {}).store([StoredResult("t1", "SUCCESS", b"{}")])

    assert str(file) in str(caught.value) or str(file.parent) in str(caught.value)
    assert hint in caught.value.hint  # type: ignore[attr-defined]


def test_damage_found_at_work_is_refused(file: Path, url: str, publisher: SqlitePublisher) -> None:
    publisher.publish_many([Message(envelope()) for _ in range(500)])
    publisher.close()
    with file.open("r+b") as bytes_of_file:
        bytes_of_file.seek(20 * 4096)
        bytes_of_file.write(b"\xa5" * 200 * 4096)
    broker = connected(url)

    with pytest.raises(BrokerRefused, match="damaged") as caught:
        collect(broker, 500)

    assert f"sqlite3 {file} .recover" in caught.value.hint
    broker.close()


# ---------------------------------------------------------------- rights


@pytest.mark.parametrize(("umask", "mode"), [(0, 0o640), (0o077, 0o600)], ids=["none", "strict"])
def test_new_file_is_readable_by_nobody_else(file: Path, url: str, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        broker = connected(url)
    finally:
        os.umask(before)

    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in file.parent.iterdir()}
    broker.close()

    assert modes == {"kw.db": mode, "kw.db-wal": mode, "kw.db-shm": mode}


def test_file_that_may_not_be_written_is_unavailable(
    tmp_path: Path, url: str, file: Path, start: Callable[..., BaseProcess]
) -> None:
    connected(url).close()
    file.chmod(0o444)

    def connect_as_nobody() -> None:
        if os.geteuid() == 0:  # who may write anything
            os.setuid(NOBODY)
        with pytest.raises(BrokerUnavailable, match=r"read-only for user id|cannot be opened by user id"):
            connected(url).publish("celery", b"x")

    folders = {each: each.stat().st_mode for each in (tmp_path, *tmp_path.parents) if each.stat().st_mode & 5 != 5}
    try:
        for folder in folders:  # pytest keeps them for the test's own user
            folder.chmod(0o755)
        process = start(connect_as_nobody)
        process.join(20)
    finally:
        for folder, mode in folders.items():
            folder.chmod(mode)

    assert process.exitcode == 0


# ---------------------------------------------------------------- full, locked, gone


def publish_until_unavailable(broker: SqliteBroker) -> int:
    """How many messages the broker took."""
    for published in range(100_000):
        try:
            broker.publish("celery", envelope(task_id=str(published)))
        except BrokerUnavailable:
            return published
    raise AssertionError("there was room for everything")


def test_disk_that_is_full_is_unavailable_and_later_works_on(url: str, start: Callable[..., BaseProcess]) -> None:
    """The system's limit of file sizes stands for the end of the disk."""

    def fill() -> None:
        broker = connected(url, holder="filler", lease_s=30.0)
        results = SqliteResults(url, {})
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
        published = publish_until_unavailable(broker)
        with pytest.raises(BrokerUnavailable, match=r"kw\.db"):
            broker.publish("celery", b"x" * 1_000_000)
        with pytest.raises(ConnectionError, match=r"kw\.db"):
            results.store([StoredResult("t1", "SUCCESS", b"x" * 1_000_000)])
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

        assert published > 50
        broker.connect()
        got = collect(broker, published)
        assert [each.headers["id"] for each in got] == [str(n) for n in range(published)]
        broker.settle([Settlement(each, Verdict.ACK) for each in got])
        broker.publish("celery", envelope())
        results.store([StoredResult("t1", "SUCCESS", b"x")])

    process = start(fill)
    process.join(30)

    assert process.exitcode == 0


def test_full_disk_is_named() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 2")
    connection.execute("CREATE TABLE t (x)")
    with pytest.raises(sqlite3.Error) as caught:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()

    error = explain("/srv/kw.db", caught.value, 5.0)

    assert str(error) == "/srv/kw.db cannot grow: the disk or the quota is full"
    assert isinstance(error, FileUnavailable)
    assert not isinstance(error, FileRefused)


@pytest.fixture
def locked(file: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteBroker]:
    """A broker whose file another program has locked for writing."""
    broker = connected(url)
    monkeypatch.setattr(database, "PATIENCE_S", 0.2)
    shell = sqlite3.connect(file, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    yield broker
    shell.execute("ROLLBACK")
    shell.close()
    broker.close()


def test_file_locked_by_another_program_is_unavailable(locked: SqliteBroker) -> None:
    with pytest.raises(BrokerUnavailable, match=r"locked by another process for more than 0\.2 s"):
        locked.publish("celery", envelope())
    with pytest.raises(BrokerUnavailable, match="locked"):
        locked.renew([])
    assert locked.size("celery").waiting == 0


def test_close_of_a_locked_broker_raises_nothing(locked: SqliteBroker) -> None:
    locked.close()


def test_deleted_file_is_made_again_by_who_goes_on(file: Path, url: str) -> None:
    """Going on with the file that has no name any more would lose every message without a word."""
    broker, publisher = connected(url), SqlitePublisher(url, {})
    publisher.publish(Message(envelope(task_id="gone")))

    for companion in file.parent.iterdir():
        companion.unlink()
    publisher.publish(Message(envelope(task_id="t1")))

    assert [each.headers["id"] for each in collect(broker, 1)] == ["t1"]
    broker.close()
    publisher.close()


def test_close_does_not_make_a_deleted_file_again(file: Path, url: str) -> None:
    broker = connected(url)
    for companion in file.parent.iterdir():
        companion.unlink()

    broker.close()

    assert list(file.parent.iterdir()) == []


# ---------------------------------------------------------------- creation


def test_processes_that_create_the_file_at_once_all_work(
    file: Path, url: str, start: Callable[..., BaseProcess]
) -> None:
    def use(tag: int) -> None:
        SqlitePublisher(url, {}).publish(Message(envelope(task_id=f"t{tag}")))
        SqliteResults(url, {}).store([StoredResult(f"t{tag}", "SUCCESS", b"{}")])
        connected(url, holder=f"h{tag}")

    processes = [start(use, tag) for tag in range(8)]
    for process in processes:
        process.join(30)

    assert [process.exitcode for process in processes] == [0] * 8
    broker = connected(url, holder="counter")
    assert broker.size("celery").waiting == 8
    broker.close()
    assert not [each.name for each in file.parent.iterdir() if each.name.endswith(".new")]


def test_tables_of_an_application_may_live_in_the_same_file(file: Path, url: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, total REAL)")
    connection.execute("INSERT INTO orders (total) VALUES (9.5)")
    connection.commit()
    connection.close()

    broker = connected(url)
    broker.publish("celery", envelope())
    broker.close()

    connection = sqlite3.connect(file)
    assert connection.execute("SELECT total FROM orders").fetchall() == [(9.5,)]
    connection.close()


def test_full_synchronisation_is_asked_of_sqlite(url: str) -> None:
    for name, number in (("normal", 1), ("full", 2)):
        opened = database.Database(parse_url(f"{url}?synchronous={name}"), database.Schema("t", ()))
        assert opened.read(lambda connection: connection.execute("PRAGMA synchronous").fetchone()) == (number,)
        opened.close()


if sys.platform != "linux":  # resource limits, /proc and setuid are used as Linux has them
    pytest.skip("written for Linux", allow_module_level=True)
