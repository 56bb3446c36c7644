"""`kw queues`, `kw purge`, `kw dead`: against a broker that keeps its messages in a JSON file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_worker.cli import main
from kernel_worker.cli.table import printable
from tests.core.fake_distributions import Site

BROKER = '''
    """Queues in a JSON file: {queue: {waiting, in_flight, parked, dead: [[id, reason, died_at, raw]]}}."""
    import json
    from pathlib import Path
    from kernel_worker import Broker, BrokerCapability, BrokerUnavailable, DeadLetter, QueueInfo

    class Driver(Broker):
        capabilities = frozenset({BrokerCapability.DEAD_LETTER})

        def connect(self):
            assert not self.context.may_create
            self.path = self.context.url.removeprefix("shelf://").partition("@")[2]
            try:
                self.queues = json.loads(Path(self.path).read_text())
            except OSError:
                raise BrokerUnavailable("no shelf there") from None

        def size(self, queue):
            found = self.queues.get(queue, {})
            return QueueInfo(
                queue, found.get("waiting", 0), found.get("in_flight", 0), found.get("parked", 0), len(found.get("dead", []))
            )

        def purge(self, queue):
            found = self.queues.get(queue, {})
            count = found.pop("waiting", 0) + found.pop("parked", 0)
            Path(self.path).write_text(json.dumps(self.queues))
            return count

        def dead_letters(self, queue, limit=100):
            letters = self.queues.get(queue, {}).get("dead", [])[:limit]
            return [DeadLetter(id, queue, raw.encode(), reason, died, 1) for id, reason, died, raw in letters]

        def dead_letter(self, queue, id):
            return next((letter for letter in self.dead_letters(queue) if letter.id == id), None)

        def replay_dead(self, queue, ids=None):
            count = self.drop_dead(queue, ids)
            self.queues[queue]["waiting"] += count
            Path(self.path).write_text(json.dumps(self.queues))
            return count

        def drop_dead(self, queue, ids=None):
            before = self.queues.get(queue, {}).get("dead", [])
            after = [letter for letter in before if ids is not None and letter[0] not in ids]
            self.queues.setdefault(queue, {})["dead"] = after
            Path(self.path).write_text(json.dumps(self.queues))
            return len(before) - len(after)

        def close(self):
            pass

        def declare(self, queues): raise AssertionError("not for looking")
        fetch = settle = renew = interrupt = publish = declare
'''
CONTENT = {
    "celery": {
        "waiting": 12,
        "in_flight": 3,
        "parked": 1,
        "dead": [["id-1", "undecodable\x1b[31m body", 1700000000.0, '{"headers": {"task": "a.b", "id": "t-1"}}']],
    },
    "mail": {"waiting": 0, "dead": []},
}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file behind the broker; KW_BROKER names it."""
    folder = tmp_path / "site"
    folder.mkdir()
    path = tmp_path / "shelf.json"
    path.write_text(json.dumps(CONTENT))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KW_BROKER", f"shelf://user:hunter2@{path}")
    with Site(folder).alone() as site:
        site.pool("prefork")
        site.loader()
        site.broker("shelf", source=BROKER)
        yield path


def test_queues_shows_counts(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queues", "-Q", "celery,mail"]) == 0

    assert capsys.readouterr().out == (
        "QUEUE   WAITING  IN FLIGHT  PARKED  DEAD\n"
        "celery       12          3       1     1\n"
        "mail          0          0       0     0\n"
    )


def test_queues_without_names_shows_the_default_queue_as_json(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queues", "-j"]) == 0

    assert json.loads(capsys.readouterr().out) == [
        {"name": "celery", "waiting": 12, "in_flight": 3, "parked": 1, "dead": 1}
    ]


def test_purge_deletes_when_forced(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["purge", "-f", "-Q", "celery,mail"]) == 0

    assert capsys.readouterr().out == "celery: 13 messages deleted\nmail: 0 messages deleted\n"
    assert json.loads(shelf.read_text())["celery"] == {"in_flight": 3, "dead": CONTENT["celery"]["dead"]}


def test_a_commands_own_flags_do_not_hide_the_selection(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`-f` is a flag here and takes a value in `kw run`: pass 1 must not take the next word for it."""
    assert main(["purge", "-f", "--plugins", "absent"]) == 2

    assert "no plugin named 'absent' is installed" in capsys.readouterr().err
    assert json.loads(shelf.read_text()) == CONTENT


def test_purge_asks_first(shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))

    assert main(["purge"]) == 1

    assert "Delete all waiting messages of celery (13)?" in capsys.readouterr().out
    assert json.loads(shelf.read_text()) == CONTENT


def test_purge_goes_on_after_yes(
    shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))

    assert main(["purge"]) == 0
    assert "celery: 13 messages deleted" in capsys.readouterr().out


def test_dead_letters_are_listed_and_harmless_to_print(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead", "ls", "-Q", "celery"]) == 0

    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "QUEUE", "TASK", "TASK", "ID", "ATTEMPTS", "DIED", "REASON"]
    assert row.split()[:4] == ["id-1", "celery", "a.b", "t-1"]
    assert "2023-11-1" in row
    assert "undecodable\N{REPLACEMENT CHARACTER}[31m body" in row


@pytest.mark.parametrize("raw", ["", "{", "[]", "null", '{"headers": 1}', '{"headers": {"task": 7}}', "[" * 9000])
def test_dead_letters_without_readable_headers_are_listed(
    raw: str, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.write_text(json.dumps({"celery": {"dead": [["id-1", "bad", 1700000000.0, raw]]}}))

    assert main(["dead", "ls", "-Q", "celery", "--json"]) == 0

    (letter,) = json.loads(capsys.readouterr().out)
    assert (letter["id"], letter["task"], letter["task_id"]) == ("id-1", "", "")


def test_no_dead_letters_are_said_to_be_none(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead", "ls", "-Q", "mail"]) == 0
    assert capsys.readouterr().out == "no dead letters in mail\n"


def test_dead_letters_as_json_keep_their_reason(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead", "ls", "-j"]) == 0

    (letter,) = json.loads(capsys.readouterr().out)
    assert letter["id"] == "id-1"
    assert letter["reason"] == "undecodable\x1b[31m body"


LETTERS = {
    "celery": {
        "waiting": 0,
        "dead": [
            ["id-2", "unknown task 'a.c'", 1700000001.0, '{"headers": {"task": "a.c\\u001b[31m", "eta": null}}'],
            ["id-1", "lost", 1700000000.0, '{"body": "W10=", "headers": {"id": "t-1", "argsrepr": "(1, 2)"}, '
             '"content-type": "application/json", "properties": {"priority": 3}}  '],
        ],
    },
    "mail": {"waiting": 0, "dead": [["id-3", "lost", 1700000000.0, "no JSON"]]},
}  # fmt: skip


def left(shelf: Path) -> dict[str, list[str]]:
    """Ids of the dead letters of each queue."""
    return {name: [letter[0] for letter in queue["dead"]] for name, queue in json.loads(shelf.read_text()).items()}


def test_dead_letter_is_shown_with_its_headers(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.write_text(json.dumps(LETTERS))

    assert main(["dead", "show", "id-1"]) == 0

    shown = capsys.readouterr().out
    for line in ("id: id-1", "reason: lost", "attempts: 1", "task_id: t-1", "  argsrepr: (1, 2)", "  priority: 3"):
        assert line in shown.splitlines()
    assert "died_at: 2023-11-1" in shown


def test_shown_dead_letter_is_harmless_to_print(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.write_text(json.dumps(LETTERS))

    assert main(["dead", "show", "id-2"]) == 0

    assert "\x1b" not in capsys.readouterr().out


def test_dead_letter_is_shown_as_json(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.write_text(json.dumps(LETTERS))

    assert main(["dead", "show", "-j", "-Q", "celery,mail", "id-3"]) == 0

    letter = json.loads(capsys.readouterr().out)
    assert (letter["queue"], letter["bytes"], letter["headers"]) == ("mail", 7, {})


def test_raw_dead_letter_is_written_byte_for_byte(shelf: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    shelf.write_text(json.dumps(LETTERS))

    assert main(["dead", "show", "--raw", "id-1"]) == 0

    assert capfdbinary.readouterr().out == str(LETTERS["celery"]["dead"][1][3]).encode()  # type: ignore[index]


def test_dead_letters_are_put_back_by_id_in_whatever_queue(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.write_text(json.dumps(LETTERS))

    assert main(["dead", "replay", "id-1", "id-3", "id-1", "-Q", "celery,mail"]) == 0

    assert capsys.readouterr().out == "celery: 1 dead letter put back\nmail: 1 dead letter put back\n"
    assert left(shelf) == {"celery": ["id-2"], "mail": []}


def test_all_dead_letters_of_a_queue_are_put_back(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.write_text(json.dumps(LETTERS))

    assert main(["dead", "replay", "--all", "-Q", "celery"]) == 0

    assert capsys.readouterr().out == "celery: 2 dead letters put back\n"
    assert left(shelf) == {"celery": [], "mail": ["id-3"]}


@pytest.mark.parametrize("command", ["show", "replay", "drop"])
def test_unknown_dead_letter_is_named(command: str, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--yes"] if command == "drop" else []

    assert main(["dead", command, "id-9", *options]) == 1

    assert "no dead letter 'id-9' in celery" in capsys.readouterr().err
    assert json.loads(shelf.read_text())["celery"]["dead"]


def test_known_dead_letters_are_dropped_though_others_are_unknown(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.write_text(json.dumps(LETTERS))

    assert main(["dead", "drop", "--yes", "id-9", "id-1"]) == 1

    told = capsys.readouterr()
    assert told.out == "celery: 1 dead letter deleted\n"
    assert "no dead letter 'id-9' in celery" in told.err
    assert left(shelf)["celery"] == ["id-2"]


def test_drop_asks_first(shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.write_text(json.dumps(LETTERS))
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))

    assert main(["dead", "drop", "--all", "-Q", "celery,mail"]) == 1

    assert "Delete all dead letters of celery (2), mail (1)?" in capsys.readouterr().out
    assert left(shelf) == {"celery": ["id-2", "id-1"], "mail": ["id-3"]}


@pytest.mark.parametrize("words", [["replay"], ["drop"], ["replay", "--all", "id-1"], ["show", "--raw", "-j", "id-1"]])
def test_unclear_wish_is_a_usage_error(words: list[str], shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead", *words]) == 2

    assert capsys.readouterr().err.startswith("kw: ")
    assert json.loads(shelf.read_text()) == CONTENT


def test_broker_without_dead_letters_is_a_usage_error(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((shelf.parent / "site").rglob("*shelf*.py"))
    path.write_text(path.read_text().replace("frozenset({BrokerCapability.DEAD_LETTER})", "frozenset()"))

    assert main(["dead", "ls"]) == 2

    told = capsys.readouterr().err
    assert "the broker 'shelf' keeps no dead letters" in told
    assert "hunter2" not in told


def test_a_broker_that_is_away_is_told_without_its_password(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.unlink()

    assert main(["queues"]) == 69
    assert capsys.readouterr().err == "kw: no shelf there\n"


def test_a_broker_without_a_driver_is_a_usage_error(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queues", "-b", "amqp://u:hunter2@h"]) == 2

    told = capsys.readouterr().err
    assert told == "kw: no broker named 'amqp' is installed (have: shelf)\n    pip install kernel-broker-amqp\n"


def test_the_application_says_which_broker_and_queues(tmp_path: Path) -> None:
    """With the distributions that are really installed: the application is asked in a process of its own."""
    (tmp_path / "proj.py").write_text(
        "from kernel_app import App\n"
        "app = App('proj', broker_url='sqlite:///elsewhere.db', task_default_queue='mail')\n"
    )
    (tmp_path / "elsewhere.db").touch()
    command = [sys.executable, "-m", "kernel_worker.cli", "queues", "-A", "proj", "-j"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KW_")}

    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=30)

    assert finished.returncode == 0, finished.stderr
    assert [queue["name"] for queue in json.loads(finished.stdout)] == ["mail"]
    assert (tmp_path / "elsewhere.db").stat().st_size > 0


@pytest.mark.parametrize("command", [["queues"], ["purge", "-f"], ["dead", "ls"]], ids=" ".join)
def test_looking_makes_no_file(command: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "kernel_worker.cli", *command, "-b", "sqlite:///nowhere.db"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KW_")}

    finished = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=30)

    assert finished.returncode == 69
    assert finished.stderr.startswith(f"kw: there is no file {tmp_path}/nowhere.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\nb\tc", "a�b�c"),
        ("\x1b]0;x\x07", "�]0;x�"),
        ("x" * 200, "x" * 99 + "…"),
        ("\u202eevil", "�evil"),
    ],
    ids=["plain", "newlines", "escape", "long", "direction"],
)
def test_text_of_strangers_is_made_fit_to_print(text: str, shown: str) -> None:
    assert printable(text) == shown
