"""The state file: whole at every moment, whatever is killed, full or damaged."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kernel_limits import statedb
from kernel_limits.revokes import KEPT_S
from kernel_limits.statedb import HEAD, Record, StateFile
from kernel_worker.errors import ConfigError

NOW = 1_800_000_000.0
LATER = NOW + 1000


def write(file: StateFile, new: list[Record], everything: list[Record] | None = None) -> None:
    records = everything if everything is not None else new
    file.write(new, len(records), lambda: records)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker.state"


def load(path: Path) -> list[Record]:
    return StateFile(str(path)).load(NOW)


def test_what_was_written_is_read_again(path: Path) -> None:
    file = StateFile(str(path))
    assert file.load(NOW) == []
    write(file, [("a", LATER)])
    write(file, [("b", LATER), (("customer", "x"), LATER)], [("a", LATER), ("b", LATER), (("customer", "x"), LATER)])
    file.close()

    assert load(path) == [("a", LATER), ("b", LATER), (("customer", "x"), LATER)]


def test_what_is_expired_for_a_year_is_not_read(path: Path) -> None:
    file = StateFile(str(path))
    file.load(NOW)
    write(file, [("old", NOW - 1 - KEPT_S), ("new", LATER)])
    file.close()

    assert load(path) == [("new", LATER)]


@pytest.mark.parametrize("cut", range(1, 40))
def test_torn_last_line_costs_only_itself(path: Path, cut: int) -> None:
    file = StateFile(str(path))
    file.load(NOW)
    write(file, [("first", LATER), ("torn" * 10, LATER)])
    file.close()
    path.write_bytes(path.read_bytes()[:-cut])

    again = StateFile(str(path))
    found = again.load(NOW)
    write(again, [("next", LATER)], [*found, ("next", LATER)])
    again.close()

    assert [record[0] for record in found][:1] == ["first"]
    assert [record[0] for record in load(path)] == [*(record[0] for record in found), "next"]


def test_damaged_line_in_the_middle_costs_only_itself(path: Path) -> None:
    path.write_bytes(
        f'{HEAD}\n{{"id": "a", "until": {LATER}}}\n\xff\x00garbage\n{{"id": "b", "until": {LATER}}}\n'.encode("latin-1")
    )

    assert [key for key, _ in load(path)] == ["a", "b"]


@pytest.mark.parametrize("content", [b"SQLite format 3\0", b"\x80\x04}q", b'{"other": 1}\n', b"\n\n"])
def test_file_of_another_program_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="not a state file of kw"):
        load(path)

    assert path.read_bytes() == content


def test_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        load(tmp_path / "none" / "worker.state")


def test_half_written_head_of_a_first_start_is_no_stranger(path: Path) -> None:
    path.write_text(HEAD[:7])

    assert load(path) == []


def test_file_stays_small_however_often_it_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statedb, "SPARE_LINES", 100)
    file = StateFile(str(path))
    file.load(NOW)

    for number in range(1000):
        write(file, [(f"id{number}", LATER)], [(f"id{each}", LATER) for each in range(max(0, number - 9), number + 1)])
    file.close()

    assert len(path.read_text().splitlines()) < 130
    assert {"id990", "id999"} <= {key for key, _ in load(path)}


def test_full_disk_leaves_the_file_readable_and_the_next_write_brings_everything(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(str(path))
    file.load(NOW)
    write(file, [("a", LATER)])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                write(file, [("b", LATER)], [("a", LATER), ("b", LATER)])
            assert "a" in [key for key, _ in load(path)]
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    write(file, [("c", LATER)], [("a", LATER), ("b", LATER), ("c", LATER)])
    file.close()

    assert [key for key, _ in load(path)] == ["a", "b", "c"]
