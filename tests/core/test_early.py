"""The pool and the application are guessed from the words behind `kw run`, before they are parsed."""

from __future__ import annotations

import sys
import types

import pytest

from kernel_worker.early import begin


class Server:
    """Stands for an interpreter that was started."""

    def __init__(self, app: str) -> None:
        self.app = app
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def pools(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prefork", "other"):
        module = types.ModuleType(f"kernel_pool_{name}.early")
        module.start_interpreter = Server  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"kernel_pool_{name}.early", module)


@pytest.mark.parametrize(
    ("words", "environment", "pool", "app"),
    [
        ("-A proj", {}, "prefork", "proj"),
        ("-Aproj:app -P other", {}, "other", "proj:app"),
        ("--app=proj --pool=other", {}, "other", "proj"),
        ("--app proj --pool other -c 2", {}, "other", "proj"),
        ("-Pother", {"KW_APP": "proj"}, "other", "proj"),
        ("", {"KW_POOL": "other"}, "other", ""),
        ("-A proj --workdir elsewhere", {}, "prefork", ""),  # its modules are looked for there
        ("-A proj", {"KW_WORKDIR": "elsewhere"}, "prefork", ""),
        ("-c 2 -A", {}, "prefork", ""),
    ],
)
def test_pool_and_application_are_seen_in_the_words(
    words: str, environment: dict[str, str], pool: str, app: str
) -> None:
    begun = begin(words.split(), environment)

    started = begun.of(pool)
    assert isinstance(started, Server)
    assert started.app == app


@pytest.mark.parametrize("words", ["-A proj --help", "-h", "-P nobody-has-it", "-P absent", "-P"])
def test_nothing_is_started_for_help_and_for_pools_without_an_early_part(words: str) -> None:
    begun = begin(words.split(), {})

    assert begun.of(words.partition("-P ")[2] or "absent") is None
    begun.close()


def test_what_was_started_for_another_pool_is_not_used_and_ends() -> None:
    begun = begin(["-A", "proj"], {})
    started = begun.of("prefork")

    assert begun.of("solo") is None
    begun.close()

    assert isinstance(started, Server)
    assert started.closed == 1
