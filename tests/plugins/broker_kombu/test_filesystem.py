"""Files: what peers write, what is left of crashes, what a folder of many costs."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kombu
import pytest

from kernel_broker_kombu import FilesystemBroker, FilesystemPublisher
from kernel_broker_kombu.filesystem import waiting
from kernel_broker_kombu.filesystem.names import Name, new_name, order, parse
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import BrokerRefused, ConfigError
from kernel_worker.testing import broker_factory, envelope
from kernel_worker.testing.broker_base import QUEUE, ack, collect, counts, ids, nothing_comes, queues, settle
from kernel_worker.types import QueueSpec, Verdict

Make = Callable[..., Broker]


@pytest.fixture
def url(folder: Path) -> str:
    return f"filesystem://{folder}"


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    with broker_factory(FilesystemBroker, url, lease_s=30.0) as make:
        yield make


@pytest.fixture
def peer(folder: Path) -> Iterator[kombu.Connection]:
    """kombu itself, on the same folders."""
    options = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(folder / "control")}
    folder.mkdir(exist_ok=True)
    with kombu.Connection("filesystem://", transport_options=options) as connection:
        yield connection


def put(folder: Path, raw: bytes, queue: str = QUEUE) -> Path:
    """A file as a peer leaves it."""
    path = folder / new_name(queue)
    path.write_bytes(raw)
    return path


@pytest.mark.timeout(20)
def test_change_of_queues_waits_for_no_fetch(make: Make) -> None:
    """Cause: fetches that follow each other hold the lock nearly always; the change came nine seconds late."""
    broker = make()
    assert isinstance(broker, FilesystemBroker)
    broker.declare(queues(QUEUE, "added"))

    with broker._fetch_lock:
        broker.consume(queues(QUEUE, "added"))

    broker.publish("added", envelope(queue="added"))
    assert broker.fetch(1, 0.0) == [], "the interrupt is used up"
    assert [each.queue for each in collect(broker, 1)] == ["added"]


# ------------------------------------------------------------------ peers


def test_kombu_reads_what_we_published(make: Make, peer: kombu.Connection) -> None:
    make().publish(QUEUE, envelope("proj.add", (1, "ä"), task_id="t1"))

    message = peer.channel().basic_get(QUEUE)

    assert message.headers["id"] == "t1"
    assert json.loads(message.body)[0] == [1, "ä"]


def test_kombu_reads_what_we_gave_back(make: Make, peer: kombu.Connection) -> None:
    broker = make()
    broker.publish(QUEUE, envelope(task_id="t1"))
    settle(broker, Verdict.REQUEUE, *collect(broker, 1), count=True)

    assert peer.channel().basic_get(QUEUE).headers["id"] == "t1"
    assert counts(broker) == {}


def test_we_read_what_kombu_wrote(make: Make, peer: kombu.Connection) -> None:
    peer.Producer().publish([[], {}, {}], routing_key=QUEUE, headers={"id": "t1", "task": "x"}, serializer="json")

    (delivery,) = collect(make(), 1)

    assert (delivery.headers["id"], delivery.error, delivery.redelivered) == ("t1", None, False)


def test_message_is_not_taken_while_a_peer_writes_it(make: Make, folder: Path) -> None:
    """kombu opens the file under its final name, locks it, and only then writes."""
    broker = make()
    path = put(folder, b"")
    with path.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        writer.write(envelope(task_id="t1")[:40])
        writer.flush()

        assert nothing_comes(broker)

        writer.write(envelope(task_id="t1")[40:])

    assert [each.error for each in collect(broker, 1)] == [None]


def test_empty_file_is_left_to_its_writer_for_a_while(make: Make, folder: Path) -> None:
    broker = make()
    path = put(folder, b"")

    assert nothing_comes(broker)
    os.utime(path, (time.time() - 60,) * 2)

    (delivery,) = collect(broker, 1)
    assert "not JSON" in str(delivery.error)


def test_exchanges_lead_to_queues_in_both_directions(
    make: Make, peer: kombu.Connection, url: str, message: Callable[..., object]
) -> None:
    specs = (
        QueueSpec("news", "topics", "topic", "news.*.de"),
        QueueSpec("one", "all", "fanout"),
        QueueSpec("two", "all", "fanout"),
        QueueSpec("mail", "direct", "direct", "post"),
    )
    broker = make(queues=specs)
    publisher = FilesystemPublisher(url, {})

    publisher.publish(message("t1", queue="", exchange="topics", exchange_type="topic", routing_key="news.sport.de"))
    publisher.publish(message("t2", queue="", exchange="all", exchange_type="fanout"))
    publisher.publish(message("t3", queue="", exchange="direct", routing_key="post"))
    exchange = kombu.Exchange("direct", type="direct")
    kombu.Queue("mail", exchange, routing_key="post")(peer.channel()).declare()
    peer.Producer().publish({}, exchange=exchange, routing_key="post", headers={"id": "t4"})

    got = {(each.queue, each.headers["id"]) for each in collect(broker, 5)}
    assert got == {("news", "t1"), ("one", "t2"), ("two", "t2"), ("mail", "t3"), ("mail", "t4")}
    with pytest.raises(LookupError, match="no queue is bound to exchange 'topics'"):
        publisher.publish(message(queue="", exchange="topics", exchange_type="topic", routing_key="weather"))
    table = json.loads((Path(broker._folders.control) / "direct.exchange").read_text())  # type: ignore[attr-defined]
    assert table == [["post", "", "mail"]], "kombu and we write the same row"


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("text", ["1_a.celery.msg", "1_a~r2.celery.msg", "1_a~x0u3.my.queue.msg", "1_a~n0u1.q.msg"])
def test_name_is_read_and_written_alike(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize("text", ["", ".kw", "notes.txt", "x", ".msg"])
def test_other_files_are_no_messages(text: str) -> None:
    assert parse(text) is None


def test_names_are_ordered_by_age() -> None:
    names = [new_name("q") for _ in range(500)]

    names.reverse()

    assert sorted(names, key=order) == names[::-1]
    assert order("999_x.q.msg") < order("1000_a.q.msg")


def test_state_tells_what_happened_to_a_message() -> None:
    fresh = Name("1_a", "q")

    assert fresh.marked().marked().attempts == 1
    assert fresh.marked().returned(count=True) == Name("1_a", "q", "r", 2)
    assert fresh.marked().returned() == Name("1_a", "q", "r", 1)
    assert fresh.recovered().returned() == fresh.recovered()
    assert fresh.recovered().returned(count=True) == Name("1_a", "q", "r", 1)
    assert fresh.delayed(count=True).delayed(count=True).returns == 2


@pytest.mark.parametrize("queue", ["a/b", "..", "x" * 200, ""])
def test_queue_that_cannot_be_a_file_name_is_refused_at_start(url: str, queue: str) -> None:
    if queue == "..":  # dots are harmless: the name goes on behind them
        FilesystemBroker(BrokerContext(url, queues=queues(queue)))
        return
    with pytest.raises(ConfigError, match="file name"):
        FilesystemBroker(BrokerContext(url, queues=queues(queue)))


def test_letter_cannot_be_looked_for_outside_of_its_folder(make: Make, tmp_path: Path) -> None:
    (tmp_path / "secret.msg").write_text("secret")

    assert make().dead_letter(QUEUE, "../../../../secret") is None
    assert make().drop_dead(QUEUE, ["../../../../secret"]) == 0
    assert (tmp_path / "secret.msg").exists()


# ------------------------------------------------------------------ where


def test_options_name_the_folders(tmp_path: Path, message: Callable[..., object]) -> None:
    options = {"data_folder_in": str(tmp_path / "in"), "data_folder_out": str(tmp_path / "out")}

    FilesystemPublisher("filesystem://", options).publish(message("t1"))

    assert len(list((tmp_path / "out").glob("*.celery.msg"))) == 1
    swapped = {"data_folder_in": str(tmp_path / "out"), "control_folder": str(tmp_path / "control")}
    with broker_factory(FilesystemBroker, "filesystem://localhost//", options=swapped) as make:
        assert ids(collect(make(), 1)) == ["t1"]


@pytest.mark.parametrize("url", ["filesystem://host/folder", "filesystem:///folder?x=1"])
def test_url_that_names_no_folder_of_this_machine_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="filesystem:///absolute/folder"):
        FilesystemBroker(BrokerContext(url))
    with pytest.raises(ValueError, match="filesystem:///absolute/folder"):
        FilesystemPublisher(url, {})


def test_publisher_tells_that_the_folder_cannot_be_used(tmp_path: Path, message: Callable[..., object]) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConnectionError, match="file"):
        FilesystemPublisher(f"filesystem://{tmp_path}/file", {}).publish(message())


def test_exchange_type_that_files_do_not_have_is_refused(make: Make) -> None:
    with pytest.raises(BrokerRefused, match="headers"):
        make().declare((QueueSpec("q", "e", "headers"),))


# ------------------------------------------------------------------ many, crashes


def test_only_the_oldest_names_are_kept_in_memory(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "KEEP", 10)
    broker = make()
    for n in range(95):
        put(folder, envelope(task_id=f"t{n:02}"))

    got = collect(broker, 95, limit=7)

    assert ids(got) == [f"t{n:02}" for n in range(95)]


def test_takeover_that_was_interrupted_is_finished_by_another(make: Make, folder: Path) -> None:
    """Who takes over renames the holder's folder first; when it dies then, its folder is one of a dead holder."""
    broker = make()
    broker.publish(QUEUE, envelope(task_id="t1"))
    dead = make(lease_s=0.3)
    collect(dead, 1)
    (held,) = [path for path in (folder / ".kw" / "held").iterdir() if len(list(path.glob("*.msg"))) == 1]
    held.rename(held.with_name(f"{held.name}~1234"))

    (delivery,) = collect(broker, 1)

    assert delivery.recovered
    ack(broker, delivery)
    assert counts(broker) == {}


def test_half_written_message_of_a_killed_client_is_never_seen_and_removed_later(make: Make, folder: Path) -> None:
    drafts = folder / ".kw" / "new"
    drafts.mkdir(parents=True)
    old, young = drafts / new_name(QUEUE), drafts / new_name(QUEUE)
    for draft in (old, young):
        draft.write_bytes(b"{")
    os.utime(old, (time.time() - 7200,) * 2)

    broker = make()

    assert nothing_comes(broker)
    assert list(drafts.iterdir()) == [young]
