"""Options: how values are read from text, files and applications."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from kernel_worker.options import (
    at_least,
    boolean,
    byte_size,
    duration,
    integer,
    number,
    option,
    option_fields,
    word_list,
)


@pytest.mark.parametrize(
    ("parse", "given", "value"),
    [
        (integer, "12", 12),
        (integer, " 7 ", 7),
        (integer, 3, 3),
        (integer, 4.0, 4),
        (number, "1.5", 1.5),
        (number, 2, 2.0),
        (boolean, "Yes", True),
        (boolean, "off", False),
        (boolean, True, True),
        (boolean, 0, False),
        (duration, "500ms", 0.5),
        (duration, "25", 25.0),
        (duration, "2m", 120.0),
        (duration, "1h", 3600.0),
        (duration, 1.25, 1.25),
        (byte_size, "64k", 65536),
        (byte_size, "16M", 16 * 1024**2),
        (byte_size, "16MiB", 16 * 1024**2),
        (byte_size, "1Gb", 1024**3),
        (byte_size, 100, 100),
        (word_list, "a, b,,a", ("a", "b")),
        (word_list, ["b", "a"], ("b", "a")),
        (word_list, "", ()),
        (at_least(1), "1", 1),
    ],
)
def test_parser_reads(parse: Any, given: Any, value: Any) -> None:
    assert parse(given) == value


@pytest.mark.parametrize(
    ("parse", "given", "text"),
    [
        (integer, "many", "'many' is not a number"),
        (integer, "1.5", "'1.5' is not a whole number"),
        (integer, True, "True is not a number"),
        (integer, None, "None is not a number"),
        (number, "nan", "'nan' is not a number"),
        (number, "inf", "'inf' is not a number"),
        (number, False, "False is not a number"),
        (boolean, "maybe", "'maybe' is neither true nor false"),
        (duration, "soon", "'soon' is not a duration such as 30, 500ms, 2m or 1h"),
        (duration, "3 weeks", "'3 weeks' is not a duration"),
        (duration, -1, "-1 is below zero"),
        (duration, "-1", "'-1' is not a duration"),
        (byte_size, "16X", "'16X' is not a size such as 65536, 64k, 16M or 1G"),
        (byte_size, "0", "'0' is not a size"),
        (word_list, 7, "7 is not a list of names separated by commas"),
        (word_list, [1], "[1] is not a list of names"),
        (at_least(1), "0", "0 is too small: at least 1"),
    ],
)
def test_parser_refuses_with_words_for_people(parse: Any, given: Any, text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(given)

    assert text in str(refused.value)


def test_option_fields_keep_the_order_and_the_spec() -> None:
    @dataclass(frozen=True)
    class Options:
        first: int = option(1, "--first", celery="worker_first")
        second: str = "plain"

    fields = list(option_fields(Options))

    assert [field.name for field, _ in fields] == ["first", "second"]
    assert fields[0][1].flags == ("--first",)
    assert fields[0][1].celery == "worker_first"
    assert fields[1][1].flags == ()
    assert Options() == Options(1, "plain")
